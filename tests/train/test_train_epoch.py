import math
import threading

import pytest
import torch
from fakes.training import Runtime, as_threads, copy_of, tiny

from ipcnn_ray.core.templates import log_prior, template_bank
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.layer_loss import InformationTerm
from ipcnn_ray.models.net import NetOutput
from ipcnn_ray.spec.training import Train
from ipcnn_ray.train.filter_term import filter_terms
from ipcnn_ray.train.runtime import StopRun
from ipcnn_ray.train.train_epoch import learning_rate, step_loss, train_epoch


def terms_of(spec, net):
    return filter_terms(spec, spec.template, net, torch.tensor([0.5]))


def epoch_of(inputs, spec, epoch=1, terms=None):
    optimizer = torch.optim.SGD(inputs.net.parameter_groups(5e-4), lr=1.0, momentum=0.9)
    return train_epoch(inputs.net, inputs, optimizer, terms or {}, Runtime(), spec, epoch)


def terms_by_hand(schedule="constant", **weights):
    bank = template_bank(3, shape="gradient", norm="l1", beta=2.0, tau=1.0)
    return {name: InformationTerm(bank, log_prior(3), weight, schedule) for name, weight in weights.items()}


def test_classification_alone_by_hand():
    # log(1 + e^-2) for a score of 2 on the category, log(1 + e^2) for a score of 2 on a negative; a batch of 4.
    output = NetOutput(torch.tensor([[2.0], [2.0]]), {}, {}, {})
    loss, classification, information, _ = step_loss(output, torch.tensor([0, -1]), {}, 1, 4, Runtime())
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(2))
    assert float(classification) == pytest.approx(expected, rel=1e-6)
    assert float(loss) == pytest.approx(expected / 4, rel=1e-6)
    assert float(information) == 0


def test_filter_losses_are_summed_over_filters_and_layers_with_lambda():
    torch.manual_seed(0)
    maps, labels = torch.rand(4, 2, 3, 3), torch.zeros(4, dtype=torch.int64)
    output = NetOutput(torch.zeros(4, 1), {"a": maps, "b": maps.flip(0)}, {}, {})
    terms = terms_by_hand(a=0.5, b=2.0)
    loss, classification, information, _ = step_loss(output, labels, terms, 1, 4, Runtime())
    one_layer = float(information) / 2  # the order of images does not matter
    assert float(classification) == pytest.approx(4 * math.log(2))
    assert float(loss) == pytest.approx(math.log(2) + (0.5 + 2.0) * one_layer, rel=1e-5)
    assert one_layer < 0
    # The paper's schedule divides by the epoch.
    terms = terms_by_hand("paper", a=1.0)
    first, third = (float(step_loss(output, labels, terms, epoch, 4, Runtime())[0]) - math.log(2) for epoch in (1, 3))
    assert first == pytest.approx(3 * third, rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "paper"])
@pytest.mark.parametrize("world", [2, 4])
def test_gradients_of_workers_average_to_those_of_one(bench, world, schedule):
    """What DDP does, written out: the mean over the workers of each one's gradient."""
    spec = tiny(loss={"filter": {"weight": 30.0, "schedule": schedule}})
    inputs = bench.inputs(spec)
    losses = terms_of(spec, inputs.net)
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64), torch.tensor([0, -1, 0, 0, -1, -1, 0, -1])

    def gradients(runtime):
        net, local = copy_of(inputs).net.train(), 8 // runtime.world_size
        rows = slice(runtime.rank * local, (runtime.rank + 1) * local)
        net.set_step(0, 2, 1, runtime.rank * local, 8)
        output = net(images[rows], full=True)
        loss, _, information, _ = step_loss(output, labels[rows], losses, 2, 8, runtime)
        loss.backward()
        return {name: p.grad for name, p in net.named_parameters()}, information

    alone, information = gradients(Runtime())
    many = as_threads(world, gradients)
    for name, gradient in alone.items():
        mean = torch.stack([found[name] for found, _ in many]).mean(0)
        assert (mean - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    assert all(float(other) == pytest.approx(float(information), rel=1e-5) for _, other in many)


def test_an_epoch_takes_every_item_at_most_once_and_full_batches_only(bench):
    spec = tiny().model_copy(update={"seed": 7})
    inputs = bench.inputs(tiny())
    steps = []
    real = inputs.net.set_step
    inputs.net.set_step = lambda *step: (steps.append(step), real(*step))
    metrics = epoch_of(inputs, spec, epoch=2)
    assert len(inputs.store.train_items) == 24  # 8 of 10 cows twice, 8 of 10 others
    assert steps == [(7, 2, step, 0, 8) for step in range(3)]
    assert 0 <= metrics["train_error"] <= 1 and metrics["filter_loss"] == 0 < metrics["images_per_second"]
    assert (metrics["epoch"], metrics["learning_rate"]) == (2.0, learning_rate(spec.train, 2))


def test_too_few_items_for_one_batch(bench):
    with pytest.raises(TrainingError, match="has 24 items, fewer than one batch of 25: use more data or a smaller"):
        epoch_of(bench.inputs(tiny()), tiny().model_copy(update={"train": Train(epochs=1, batch_size=25)}))


def test_a_loss_that_is_not_finite_names_the_step_and_what_to_try(bench):
    spec = tiny(train={"learning_rate": 1e30, "final_learning_rate": 1e30}, loss={"filter": {"weight": 0.1}})
    inputs = bench.inputs(spec)
    with pytest.raises(
        TrainingError,
        match=r"not finite in epoch 4, step [23] of 3: classification (nan|inf), filter (nan|inf|-?[\d.e+-]+); "
        r"lower train.learning_rate \(here 1e\+30\) or loss.filter.weight \(0.1\)",
    ):
        epoch_of(inputs, spec, 4, terms_of(spec, inputs.net))


def test_no_thread_and_no_hook_stays_behind_an_error(bench):
    inputs = bench.inputs(tiny())
    real = inputs.net.set_step

    def fail(seed, epoch, step, first_row, rows_total):
        if step == 1:
            raise KeyError("in the middle of an epoch")
        real(seed, epoch, step, first_row, rows_total)

    inputs.net.set_step = fail
    before = set(threading.enumerate())
    with pytest.raises(KeyError, match="in the middle of an epoch") as caught:
        epoch_of(inputs, tiny())
    assert set(threading.enumerate()) == before, caught.traceback
    for module in inputs.net.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert not any(p._backward_hooks for p in inputs.net.parameters())


RELEASED_SCHEDULE = {"epochs": 50, "decay_epochs": 10, "learning_rate": 3e-3, "final_learning_rate": 3e-4}
"""lrMag * [logspace(-4, -5, 10), then 1e-5], fifty epochs."""


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"epochs": 3}, [1.0, 0.1, 0.01]),
        ({"epochs": 5, "decay_epochs": 3}, [1.0, 0.1, 0.01, 0.01, 0.01]),
        (RELEASED_SCHEDULE, [30 * 10 ** (-4 - i / 9) for i in range(10)] + [3e-4] * 40),
        ({"epochs": 3, "decay": "cosine", "final_learning_rate": 0.2}, [1.0, 0.6, 0.2]),
        ({"epochs": 5, "warmup_epochs": 2}, [1 / 3, 2 / 3, 1.0, 0.1, 0.01]),
        ({"epochs": 1}, [1.0]),
        ({"epochs": 1, "decay": "cosine"}, [1.0]),
    ],
)
def test_learning_rates(changes, rates):
    train = Train(**{"learning_rate": 1.0, "final_learning_rate": 0.01} | changes)
    assert [learning_rate(train, epoch) for epoch in range(1, train.epochs + 1)] == pytest.approx(rates)


def test_one_worker_is_a_group_of_one():
    runtime, net = Runtime(), torch.nn.Linear(1, 1)
    assert runtime.wrap(net) is net
    assert runtime.gather(torch.tensor([3.0, 4.0])).tolist() == [[3.0, 4.0]]
    assert str(StopRun("early stopping")) == "early stopping" and not StopRun("early stopping").resumable
