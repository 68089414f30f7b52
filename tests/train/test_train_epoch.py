import math
import threading

import pytest
import torch
from fakes.training import InProcess, as_threads, copy_of, tiny

from ipcnn_ray.core.templates import log_prior, template_bank
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.build import template_banks
from ipcnn_ray.models.net import NetOutput
from ipcnn_ray.train.filter_term import InformationTerm
from ipcnn_ray.train.train_epoch import step_loss, train_epoch


def layer_losses(spec, weight=0.1, schedule="constant"):
    return {
        layer: InformationTerm(bank, log_prior(bank.shape[-1]), weight, schedule)
        for layer, bank in template_banks(spec.model, spec.template).items()
    }


def sgd(net, rate=0.05):
    return torch.optim.SGD(net.parameter_groups(5e-4), lr=rate, momentum=0.9)


def test_classification_alone_by_hand():
    # log(1 + e^-2) for a score of 2 on the category, log(1 + e^2) for a score of 2 on a negative; a batch of 4.
    output = NetOutput(torch.tensor([[2.0], [2.0]]), {}, {}, {})
    loss, classification, information = step_loss(output, torch.tensor([0, -1]), {}, 1, 4, InProcess())
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(2))
    assert float(classification) == pytest.approx(expected, rel=1e-6)
    assert float(loss) == pytest.approx(expected / 4, rel=1e-6)
    assert float(information) == 0


def test_filter_losses_are_summed_over_filters_and_layers_with_lambda():
    torch.manual_seed(0)
    bank = template_bank(3, shape="gradient", norm="l1", beta=2.0, tau=1.0)
    maps = torch.rand(4, 2, 3, 3)
    losses = {
        name: InformationTerm(bank, log_prior(3), weight, "constant") for name, weight in (("a", 0.5), ("b", 2.0))
    }
    output = NetOutput(torch.zeros(4, 1), {"a": maps, "b": maps.flip(0)}, {}, {})
    loss, classification, information = step_loss(output, torch.zeros(4, dtype=torch.int64), losses, 1, 4, InProcess())
    one_layer = float(information) / 2  # the order of images does not matter
    assert float(classification) == pytest.approx(4 * math.log(2))
    assert float(loss) == pytest.approx(math.log(2) + (0.5 + 2.0) * one_layer, rel=1e-5)
    assert one_layer < 0


def test_the_paper_schedule_divides_by_the_epoch():
    torch.manual_seed(0)
    bank = template_bank(3, shape="gradient", norm="l1", beta=2.0, tau=1.0)
    output = NetOutput(torch.zeros(4, 1), {"a": torch.rand(4, 2, 3, 3)}, {}, {})
    losses, labels = {"a": InformationTerm(bank, log_prior(3), 1.0, "paper")}, torch.zeros(4, dtype=torch.int64)
    first, third = (
        float(step_loss(output, labels, losses, epoch, 4, InProcess())[0]) - math.log(2) for epoch in (1, 3)
    )
    assert first == pytest.approx(3 * third, rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "paper"])
@pytest.mark.parametrize("world", [2, 4])
def test_gradients_of_workers_average_to_those_of_one(bench, world, schedule):
    """What DDP does, written out: the mean over the workers of each one's gradient."""
    spec = tiny()
    inputs = bench.inputs(spec)
    losses = layer_losses(spec, 30.0, schedule)
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64), torch.tensor([0, -1, 0, 0, -1, -1, 0, -1])

    def gradients(runtime):
        net, local = copy_of(inputs).net.train(), 8 // runtime.world_size
        rows = slice(runtime.rank * local, (runtime.rank + 1) * local)
        net.set_step(0, 2, 1, runtime.rank * local, 8)
        output = net(images[rows], full=True)
        loss, _, information = step_loss(output, labels[rows], losses, 2, 8, runtime)
        loss.backward()
        return {name: p.grad for name, p in net.named_parameters()}, information

    alone, information = gradients(InProcess())
    many = as_threads(world, gradients)
    for name, gradient in alone.items():
        mean = torch.stack([found[name] for found, _ in many]).mean(0)
        assert (mean - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    assert all(float(other) == pytest.approx(float(information), rel=1e-5) for _, other in many)


def test_an_epoch_takes_every_item_at_most_once_and_full_batches_only(bench):
    spec = tiny()
    inputs = bench.inputs(spec)
    steps = []
    real = inputs.net.set_step
    inputs.net.set_step = lambda *step: (steps.append(step), real(*step))
    sums = train_epoch(
        inputs.net, inputs, sgd(inputs.net), {}, InProcess(), seed=7, epoch=2, batch_size=8, bfloat16=False
    )
    assert len(inputs.store.train_items) == 24  # 8 of 10 cows twice, 8 of 10 others
    assert sums.images == 24
    assert steps == [(7, 2, step, 0, 8) for step in range(3)]
    assert 0 <= sums.train_error <= 1 and sums.filter_loss == 0


def test_too_few_items_for_one_batch(bench):
    inputs = bench.inputs(tiny())
    with pytest.raises(TrainingError, match="has 24 items, fewer than one batch of 25: use more data or a smaller"):
        train_epoch(
            inputs.net, inputs, sgd(inputs.net), {}, InProcess(), seed=0, epoch=1, batch_size=25, bfloat16=False
        )


def test_a_loss_that_is_not_finite_names_the_step_and_what_to_try(bench):
    spec = tiny()
    inputs = bench.inputs(spec)
    with pytest.raises(
        TrainingError,
        match=r"not finite in epoch 4, step [23] of 3: classification (nan|inf), filter (nan|inf|-?[\d.e+-]+); "
        r"lower train.learning_rate \(here 1e\+30\) or loss.filter.weight \(0.1\)",
    ):
        train_epoch(
            inputs.net,
            inputs,
            sgd(inputs.net, 1e30),
            layer_losses(spec),
            InProcess(),
            seed=0,
            epoch=4,
            batch_size=8,
            bfloat16=False,
        )


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
        train_epoch(inputs.net, inputs, sgd(inputs.net), {}, InProcess(), seed=0, epoch=1, batch_size=8, bfloat16=False)
    assert set(threading.enumerate()) == before, caught.traceback
    for module in inputs.net.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert not any(p._backward_hooks for p in inputs.net.parameters())
