"""The filter loss in training: what the released form learns, and that a run goes on where it was."""

from __future__ import annotations

import pytest
import torch
from fakes.training import OnReport, Runtime, tiny
from safetensors.torch import load

from ipcnn_ray.core.classification import classification_loss
from ipcnn_ray.core.filter_loss import filter_loss
from ipcnn_ray.core.released import centroids, groups, released_gradient, strengths
from ipcnn_ray.core.templates import log_prior, part_templates, template_bank
from ipcnn_ray.models.build import build
from ipcnn_ray.models.layer_loss import InformationTerm, ReleasedTerm, StepContext
from ipcnn_ray.models.layers import CentroidMask, LearnedBetaMask, NoMask, PeakMask, ReleasedMask
from ipcnn_ray.train.filter_term import filter_terms
from ipcnn_ray.train.runtime import StopRun
from ipcnn_ray.train.train_epoch import step_loss

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
        ({"template": {"mask": "none"}}, NoMask),
        ({"template": {"mask": "centroid"}}, CentroidMask),
        ({"template": {"mask": "centroid"}, "loss": {"filter": None}}, CentroidMask),
        ({"template": {"shape": "released", "mask": "centroid"}}, ReleasedMask),
        ({"template": {"shape": "released", "mask": "peak"}}, PeakMask),
        ({"template": {"shape": "released", "mask": "none"}}, NoMask),
    ],
)
def test_the_mask_follows_the_form_unless_it_is_set(changes, mask):
    spec = tiny(**changes)
    net = build(spec.model, spec.template, 0, 1, spec.loss.filter)
    assert type(net.mask("conv4")) is type(net.mask("conv5")) is mask


@pytest.mark.parametrize("form", [None, "exact", "zconst", "single", "released"])
@pytest.mark.parametrize("mask", ["none", "peak", "centroid"])
@pytest.mark.parametrize("shape", ["gradient", "released"])
def test_every_mask_goes_with_every_form(shape, mask, form):
    """The gradient at the maps is that of the classification, through the mask, and that of the filter loss."""
    filter_section = None if form is None else {"form": form, "weight": 1e5 if form == "released" else 10.0}
    if form == "released":
        filter_section["learn_beta"] = False
    spec = tiny(template={"shape": shape, "mask": mask}, loss={"filter": filter_section})
    net = build(spec.model, spec.template, 0, 1, spec.loss.filter).eval()
    terms = filter_terms(spec, spec.template, net, torch.tensor([0.5]))
    torch.manual_seed(0)
    images, label_N = 100 * torch.randn(4, 3, 64, 64), torch.tensor([0, -1, 0, -1])
    output = net(images, full=True)
    maps_NCHW, passed_NCHW = (maps["conv5"] for maps in (output.maps, output.passed))
    loss = step_loss(output, label_N, terms, 1, 4, Runtime()).total
    (found_NCHW,) = torch.autograd.grad(loss, maps_NCHW)

    x_NCHW, unit_Pnn = maps_NCHW.detach(), part_templates(16, **spec.template.arguments(), tau=1.0)
    mu = centroids(x_NCHW)
    at_centroid_NCHW = unit_Pnn[16 * mu.row_NC + mu.col_NC]
    mask_NCHW = {
        "none": torch.ones_like(x_NCHW),
        "peak": unit_Pnn[x_NCHW.flatten(2).argmax(2)],
        "centroid": at_centroid_NCHW,
    }[mask]
    torch.testing.assert_close(passed_NCHW, (x_NCHW * mask_NCHW).relu())
    inner_NCHW = passed_NCHW.detach().requires_grad_()
    above = classification_loss(net(inner_NCHW, above="conv5", full=True).logits_NL, label_N, "logistic").sum() / 4
    (wanted_NCHW,) = torch.autograd.grad(above, inner_NCHW)
    positive_NCHW = mask_NCHW.clamp(min=0)
    wanted_NCHW = wanted_NCHW * (positive_NCHW * (x_NCHW > 0) if mask == "peak" else positive_NCHW)
    if form == "released":
        strength = strengths(x_NCHW, at_centroid_NCHW, at_centroid_NCHW)
        added = released_gradient(at_centroid_NCHW, strength, groups(label_N, 32, None, torch.tensor([0.5])), 1e5)
        added_NCHW = added / 4
    elif form is not None:
        leaf_NCHW = x_NCHW.clone().requires_grad_()
        positive_NC = (label_N >= 0)[:, None] if form == "single" else None
        bank_Tnn = template_bank(16, **spec.template.arguments())
        value_C = filter_loss(leaf_NCHW, bank_Tnn, log_prior(16), form=form, positive_NC=positive_NC)
        (added_NCHW,) = torch.autograd.grad(10 * value_C.sum(), leaf_NCHW)
    else:
        added_NCHW = torch.zeros_like(x_NCHW)
    scale = float(found_NCHW.abs().max())
    assert form is None or float(added_NCHW.abs().max()) > 1e-3 * scale > 0
    torch.testing.assert_close(found_NCHW, wanted_NCHW + added_NCHW, rtol=1e-4, atol=1e-5 * scale)


def test_a_template_without_mask_and_filter_loss_is_the_plain_network(bench):
    for name, template in (("plain", {"shape": "none"}), ("idle", {"mask": "none"})):
        bench.run(tiny(template=template, loss={"filter": None}, train={"epochs": 1}), name)
    assert bench.weights("plain") == bench.weights("idle")


@pytest.mark.parametrize(
    ("changes", "learned", "start"),
    [
        (RELEASED, "width_C", 2.0),
        (LEARNED, "log_beta_C", 0.6931),
        (RELEASED | SEVERAL, "width_C", 2.0),
        (SEVERAL | {"loss": {"filter": {"form": "single"}}}, None, None),
        ({"template": {"shape": "released", "mask": "none"}, "loss": {"filter": {"weight": 100.0}}}, None, None),
        ({"template": {"mask": "centroid"}}, None, None),
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
    released = spec.loss.filter.form == "released"
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
