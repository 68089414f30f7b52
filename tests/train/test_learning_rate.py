"""The learning rate of every epoch."""

import pytest

from ipcnn_ray.spec.training import Train
from ipcnn_ray.train.train_epoch import learning_rate


def rates(**given) -> list[float]:
    train = Train(**{"learning_rate": 1.0, "final_learning_rate": 0.01} | given)
    return [learning_rate(train, epoch) for epoch in range(1, train.epochs + 1)]


def test_equal_logarithmic_steps():
    assert rates(epochs=3) == pytest.approx([1.0, 0.1, 0.01])


def test_the_final_rate_stays():
    assert rates(epochs=5, decay_epochs=3) == pytest.approx([1.0, 0.1, 0.01, 0.01, 0.01])


def test_the_released_schedule():
    """lrMag * [logspace(-4, -5, 10), then 1e-5], fifty epochs."""
    found = rates(epochs=50, decay_epochs=10, learning_rate=3e-3, final_learning_rate=3e-4)
    wanted = [30 * 10 ** (-4 - i / 9) for i in range(10)] + [3e-4] * 40
    assert found == pytest.approx(wanted)


def test_half_a_cosine():
    assert rates(epochs=3, decay="cosine", final_learning_rate=0.2) == pytest.approx([1.0, 0.6, 0.2])


def test_a_warm_up_comes_before_the_first_rate():
    assert rates(epochs=5, warmup_epochs=2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.1, 0.01])


def test_a_single_epoch_has_the_first_rate():
    assert rates(epochs=1) == [1.0]
    assert rates(epochs=1, decay="cosine") == [1.0]
