"""The filter loss in training: what the released form learns, and that a run goes on where it was."""

from __future__ import annotations

import pytest
import torch
from fakes.training import OnReport, Runtime, tiny
from safetensors.torch import load

from ipcnn_ray.core.templates import log_prior, template_bank
from ipcnn_ray.models.build import build
from ipcnn_ray.models.layers import CentroidMask, LearnedBetaMask, PeakMask, ReleasedMask
from ipcnn_ray.train.filter_term import InformationTerm, ReleasedTerm, StepContext, filter_terms
from ipcnn_ray.train.runtime import StopRun

RELEASED = {"template": {"shape": "released"}, "loss": {"filter": {"weight": 1000.0}}}
LEARNED = {"loss": {"filter": {"weight": 1.0, "learn_beta": True, "beta_rate": 1.0}}}
SEVERAL = {"data": {"category": ["cow", "dog"], "negatives": 0}}


@pytest.mark.parametrize(
    ("changes", "mask"),
    [
        ({}, PeakMask),
        (LEARNED, LearnedBetaMask),
        (RELEASED, ReleasedMask),
        ({"loss": {"filter": {"form": "released"}}}, CentroidMask),
        ({"template": {"shape": "released"}, "loss": {"filter": {"form": "exact"}}}, PeakMask),
    ],
)
def test_the_mask_follows_the_form(changes, mask):
    spec = tiny(**changes)
    net = build(spec.model, spec.template, 0, 1, spec.loss.filter)
    assert type(net.mask("conv4")) is type(net.mask("conv5")) is mask


@pytest.mark.parametrize(
    ("changes", "learned", "start"),
    [
        (RELEASED, "width_C", 2.0),
        (LEARNED, "log_beta_C", 0.6931),
        (RELEASED | SEVERAL, "width_C", 2.0),
        (SEVERAL | {"loss": {"filter": {"form": "single"}}}, None, None),
    ],
)
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(bench, changes, learned, start):
    """The widths, their momentum, and what the categories of filters are read from are in the checkpoint; what each
    filter learns is in the weights. The released form records no filter loss."""

    def stop(epoch):
        if epoch == 1:
            raise StopRun("asked", resumable=True)

    spec = tiny(**changes, train={"epochs": 2})
    for name, runtime in (("cut", OnReport(stop)), ("cut", Runtime()), ("whole", Runtime())):
        bench.run(spec, name, runtime)
    assert bench.weights("cut") == bench.weights("whole")
    released = "template" in changes
    assert all(("filter_loss" in metrics) != released for metrics in bench.record.epochs.values())
    weights = load(bench.weights("whole"))
    for layer in ("conv4", "conv5") if learned else ():
        values = weights[f"masks.{layer}.{learned}"]
        assert float((values - start).abs().min()) > 0 and len(values.unique()) > 1


def test_a_pooled_mask_acts_behind_the_pooling():
    spec = tiny(model={"appended_mask": "pooled"}, **RELEASED)
    net = build(spec.model, spec.template, 0, 1, spec.loss.filter)
    output = net.eval()(torch.randn(2, 3, 64, 64), full=True)
    assert output.scores["conv5"].shape == (2, 32, 16, 16)
    assert output.maps["conv5"].shape == (2, 32, 4, 4)
    assert output.masked["conv5"].mask_NCHW.shape == (2, 32, 4, 4)
    terms = filter_terms(spec, spec.template, net, torch.tensor([0.5]))
    value = terms["conv5"](
        output.maps["conv5"], output.masked["conv5"], StepContext(torch.tensor([0, -1]), 1, 2, Runtime())
    )
    assert float(value.loss.detach().abs()) > 0


def test_the_released_term_is_the_released_gradient_over_the_batch_size():
    spec = tiny(**RELEASED)
    net = build(spec.model, spec.template, 0, 1, spec.loss.filter)
    term = filter_terms(spec, spec.template, net, torch.tensor([0.5]))["conv4"]
    assert isinstance(term, ReleasedTerm)
    x_NCHW = torch.rand(4, 32, 16, 16).requires_grad_()
    masked = net.mask("conv4")(x_NCHW.detach())
    values = {}
    for epoch in (1, 4):
        step = StepContext(torch.tensor([0, 0, -1, 0]), epoch, 4, Runtime())
        (values[epoch],) = torch.autograd.grad(term(x_NCHW, masked, step).loss, x_NCHW)
    torch.testing.assert_close(values[1], 4 * values[4])
    inside = masked.mask_NCHW[0] > 0.5
    assert bool((values[1][0][inside] < 0).all()) or bool((values[1][0][inside] > 0).any())
    assert bool((values[1][2] == values[1][2].amax((1, 2), keepdim=True)).all()), "equal over the cells of a negative"


def test_single_with_several_categories_reads_a_filters_category_from_its_activation():
    term = InformationTerm(
        template_bank(3, shape="gradient", norm="l1", beta=2.0), log_prior(3), 1.0, "constant", "single", categories=2
    )
    maps_NCHW = torch.zeros(2, 2, 3, 3)
    maps_NCHW[0, 0, 0, 0] = maps_NCHW[1, 1, 2, 2] = 1.0
    step = StepContext(torch.tensor([0, 1]), 1, 2, Runtime())
    term(maps_NCHW, None, step)
    assert term.state()["sums_CL"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    term(2 * maps_NCHW[:1], None, StepContext(torch.tensor([0]), 1, 1, Runtime()))
    assert term.state()["sums_CL"].tolist() == [[pytest.approx(1.1), 0.0], [0.0, 1.0]], "category 1 was not shown"
