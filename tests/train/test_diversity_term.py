"""The diversity loss in training."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fakes.training import OnReport, Runtime, as_threads, tiny

from ipcnn_ray.core.diversity import largest_overlap, overlap
from ipcnn_ray.models.net import NetOutput
from ipcnn_ray.train.diversity_term import DiversityTerm, diversity_term
from ipcnn_ray.train.runtime import StopRun
from ipcnn_ray.train.train_epoch import step_loss

LABELS = torch.tensor([0, -1, 1, -1, 0, -1, -1, -1])
"""Of four workers with two images each, the last has no object."""


def maps():
    torch.manual_seed(0)
    return {"a": torch.rand(8, 3, 4, 4), "b": torch.rand(8, 5, 2, 2)}


@pytest.mark.parametrize("form", ["overlap", "largest"])
def test_it_is_the_mean_over_images_with_an_object_summed_over_layers(form):
    given = {name: x.requires_grad_() for name, x in maps().items()}
    loss, value = DiversityTerm(2.0, form, 0.05, 3.0)(given, LABELS, Runtime())
    of_images = partial(overlap, power=3.0) if form == "overlap" else partial(largest_overlap, margin=0.05, power=3.0)
    expected = sum(float(of_images(x.detach()[[0, 2, 4]]).mean()) for x in given.values())
    assert float(value) == pytest.approx(expected) and float(loss.detach()) == pytest.approx(2 * expected)
    loss.backward()
    for x in given.values():
        assert x.grad.flatten(1).abs().amax(1).gt(0).tolist() == [label >= 0 for label in LABELS.tolist()]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("form", ["overlap", "largest"])
def test_workers_equal_one(form, world):
    """The mean over the workers of each one's gradient, which DDP takes, is the gradient of one worker."""
    term, whole = DiversityTerm(3.0, form, 0.05), {name: x.requires_grad_() for name, x in maps().items()}

    def work(runtime):
        rank, local = runtime.rank, 8 // runtime.world_size
        rows = slice(rank * local, (rank + 1) * local)
        mine = {name: x.detach()[rows].clone().requires_grad_() for name, x in whole.items()}
        output = NetOutput(torch.zeros(local, 2), mine, {}, {})
        losses = step_loss(output, LABELS[rows], {}, 1, 8, runtime, diversity=term)
        losses.total.backward()
        return losses.diversity, {name: x.grad / runtime.world_size for name, x in mine.items()}

    (value, gradients), many = work(Runtime()), as_threads(world, work)
    assert all(torch.equal(other, many[0][0]) for other, _ in many)
    torch.testing.assert_close(many[0][0], value)
    for name, gradient in gradients.items():
        torch.testing.assert_close(torch.cat([found[name] for _, found in many]), gradient)


@pytest.mark.parametrize("form", ["overlap", "largest"])
def test_images_without_an_object_are_left_out_or_weighed_with_zero(form):
    """The first on a CPU, the second on a GPU."""
    term, x_NCHW = DiversityTerm(2.0, form, 0.05, 3.0), maps()["a"]
    x_NCHW[1] = 0
    sums, gradients = [], []
    for select in (True, False):
        given = x_NCHW.clone().requires_grad_()
        sums.append(term._sum(given, LABELS >= 0, select=select))
        sums[-1].backward()
        gradients.append(given.grad)
    torch.testing.assert_close(sums[1], sums[0])
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_batch_without_an_object_has_none():
    given = {name: x.requires_grad_() for name, x in maps().items()}
    loss, value = DiversityTerm(2.0, "overlap", 0.05)(given, torch.full((8,), -1), Runtime())
    loss.backward()
    assert float(value) == 0 and all(float(x.grad.abs().max()) == 0 for x in given.values())


@pytest.mark.parametrize("template", [{"shape": "none"}, {"shape": "gradient"}, {"mask": "centroid"}])
@pytest.mark.parametrize("form", ["overlap", "largest"])
def test_training_lowers_it(bench, template, form):
    """With a weight of next to nothing it is measured, with a large one it falls, in twelve steps."""
    last, heavy = {}, 1000.0 if form == "overlap" else 30.0
    train = {"epochs": 4, "learning_rate": 0.01, "final_learning_rate": 0.01}
    for weight in (1e-9, heavy):
        margin = {"margin": 0.005} if form == "largest" else {}
        loss = {"filter": None, "diversity": {"weight": weight, "form": form, **margin}}
        bench.run(tiny(template=template, loss=loss, train=train), f"weight {weight}")
        last[weight] = bench.record.epochs[4]["diversity_loss"]
    assert 0 < last[heavy] < 0.95 * last[1e-9], last


def test_without_it_nothing_is_recorded_and_a_resumed_run_is_exact(bench):
    def stop(epoch):
        if epoch == 1:
            raise StopRun("asked", resumable=True)

    spec = tiny(loss={"diversity": {}}, train={"epochs": 2})
    for name, runtime in (("cut", OnReport(stop)), ("cut", Runtime()), ("whole", Runtime())):
        bench.run(spec, name, runtime)
    assert bench.weights("cut") == bench.weights("whole")
    bench.run(tiny(train={"epochs": 2}), "without")
    assert bench.weights("without") != bench.weights("whole")
    assert all("diversity_loss" not in metrics for metrics in bench.record.epochs.values())
    assert diversity_term(tiny().loss) is None
