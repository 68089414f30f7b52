"""The layer for networks of others: its mask, its loss and their gradients, and the tools of PyTorch around it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from fakes.training import Runtime, tiny
from torch import Tensor, nn

from ipcnn_ray.core.filter_loss import filter_loss
from ipcnn_ray.core.released import centroids
from ipcnn_ray.core.templates import log_prior, part_templates, template_bank
from ipcnn_ray.models.build import build
from ipcnn_ray.models.interpretable_layer import LEARNED, InterpretableLayer
from ipcnn_ray.models.layer_loss import StepContext
from ipcnn_ray.spec.extensions import TEMPLATES
from ipcnn_ray.train.filter_term import filter_terms

TABLE = [[-1, 0.5, -1], [0.5, 1, 0.5], [-1, 0.5, -1]]
SHAPES: dict[str, dict[str, Any]] = {
    "gradient l1": {"shape": "gradient", "norm": "l1", "beta": 2},
    "gradient l2": {"shape": "gradient", "norm": "l2", "beta": 10},
    "gradient linf": {"shape": "gradient", "norm": "linf", "beta": 3.0},
    "gradient lp": {"shape": "gradient", "norm": "lp", "p": 0.5, "beta": 3.0},
    "uniform": {"shape": "uniform", "norm": "l2", "beta": 2, "gamma": 0.5},
    "released": {"shape": "released", "width": 2.0},
    "gaussian": {"shape": "gaussian", "sigma": 0.2},
    "ellipse": {"shape": "ellipse", "beta": 3, "aspect": 2, "angle": 30},
    "ring": {"shape": "ring", "radius": 0.25, "width": 0.25},
    "mask": {"shape": "mask", "values": TABLE, "extent": 0.5},
}
L2 = SHAPES["gradient l2"]


def maps(N: int = 4, C: int = 3, n: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(N, C, n, n, generator=generator)).relu()


class Net(nn.Module):
    """A convolution, the layer, and a linear head."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 2)
        self.layer = InterpretableLayer(n=6, **(arguments or L2))

    def forward(self, images: Tensor) -> Tensor:
        maps_NCHW = self.layer(torch.relu(self.conv(images)))
        return self.head(maps_NCHW.mean((2, 3)))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("mask", ["peak", "centroid", "none"])
def test_maps_are_masked_by_the_template(name, mask):
    x_NCHW, unit_Pnn = maps(), part_templates(6, **SHAPES[name], tau=1.0)
    y_NCHW = InterpretableLayer(6, mask=mask, **SHAPES[name])(x_NCHW)
    mu = centroids(x_NCHW)
    center_NC = x_NCHW.flatten(2).argmax(2) if mask == "peak" else 6 * mu.row_NC + mu.col_NC
    for i in range(4):
        for c in range(3):
            expected_nn = x_NCHW[i, c] if mask == "none" else (x_NCHW[i, c] * unit_Pnn[center_NC[i, c]]).relu()
            torch.testing.assert_close(y_NCHW[i, c], expected_nn)


@pytest.mark.parametrize("name", SHAPES)
def test_the_loss_is_minus_the_mutual_information(name):
    """By the definition, with sums over images and templates in float64."""
    x_NCHW = maps().double()
    layer = InterpretableLayer(6, tau=0.1, **SHAPES[name])
    layer(x_NCHW)
    score_NCT = torch.einsum("nchw,thw->nct", x_NCHW, template_bank(6, tau=0.1, **SHAPES[name]).double())
    p_xt_NCT = score_NCT.softmax(0)
    p_x_NC1 = p_xt_NCT.mean(2, keepdim=True)
    information_C = (p_xt_NCT * (p_xt_NCT / p_x_NC1).log()).sum(0).mean(1)
    torch.testing.assert_close(layer.filter_loss(reduction="none"), -information_C, rtol=1e-5, atol=1e-9)
    assert float(layer.filter_loss()) == pytest.approx(-float(information_C.sum()), rel=1e-5)
    assert float(layer.filter_loss(reduction="mean")) == pytest.approx(-float(information_C.mean()), rel=1e-5)


FORMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "zconst": {"form": "zconst"},
    "single": {"form": "single"},
    "released": {"form": "released"},
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", ["peak", "centroid", "none"])
def test_gradient_and_averages_are_those_of_a_submitted_run(form, mask, several):
    """Three steps of the term that `ipcnn submit` differentiates."""
    data = {"data": {"category": ["cow", "dog"], "negatives": 10}} if several else {}
    loss = {"filter": {**FORMS[form], "weight": 1.0, "schedule": "constant"}}
    spec = tiny(template={**L2, "mask": mask}, loss=loss, **data)
    categories, density = (2, [0.5, 0.25]) if several else (1, [0.5])
    net = build(spec.model, spec.template, 0, categories, spec.loss.filter)
    term = filter_terms(spec, spec.template, net, torch.tensor(density))["conv5"]
    more = {"density": density} if several and form == "released" else {}
    layer = InterpretableLayer(16, mask=mask, filters=7, categories=categories, **L2, **FORMS[form], **more)
    label_N = torch.tensor([0, 1, -1, 0, 1] if several else [0, 0, -1, 0, -1])
    for step in range(3):
        x_NCHW = maps(5, 7, 16, seed=step).requires_grad_()
        context = StepContext(label_N, 1, 5, Runtime())
        (expected_NCHW,) = torch.autograd.grad(term(x_NCHW, None, context).loss, x_NCHW)
        (found_NCHW,) = torch.autograd.grad(layer.filter_loss(label_N, x_NCHW), x_NCHW)
        torch.testing.assert_close(found_NCHW, expected_NCHW, rtol=1e-6, atol=0)
        assert float(expected_NCHW.abs().max()) > 0
    if several and form in ("single", "released"):
        torch.testing.assert_close(layer.average_CL, term.average_CL)
        again = InterpretableLayer(16, mask=mask, filters=7, categories=2, **L2, **FORMS[form], **more)
        again.load_state_dict(layer.state_dict())
        label_N, x_NCHW = label_N.flip(0), maps(5, 7, 16, seed=4).requires_grad_()
        gradients = [torch.autograd.grad(one.filter_loss(label_N, x_NCHW), x_NCHW)[0] for one in (layer, again)]
        assert torch.equal(*gradients)
    else:
        assert layer.state_dict() == {}


@pytest.mark.parametrize("shape", LEARNED)
def test_a_learned_beta_has_the_gradient_of_the_loss(shape):
    beta = 2.9  # no cell is where the template reaches -1, which has no derivative
    arguments = {
        "shape": shape,
        "beta": beta,
        **({"norm": "l2"} if shape == "gradient" else {"aspect": 2, "angle": 30}),
    }
    layer, x_NCHW = InterpretableLayer(6, **arguments, learn_beta=True, filters=3), maps()
    layer(x_NCHW.requires_grad_()).sum().backward()
    assert layer.mask.log_beta_C.grad is None  # no gradient flows through the mask
    torch.testing.assert_close(layer.betas, torch.full((3,), beta))
    layer.filter_loss().backward()

    def loss_at(slope: float, c: int) -> float:
        bank_Tnn = template_bank(6, **{**arguments, "beta": slope}, dtype=torch.float64)
        prior_T = log_prior(6, dtype=torch.float64)
        return float(filter_loss(x_NCHW.detach().double(), bank_Tnn, prior_T)[c])

    step = 1e-4  # in log beta
    for c in range(3):
        slope = (loss_at(beta * (1 + step), c) - loss_at(beta * (1 - step), c)) / (2 * step)
        assert float(layer.mask.log_beta_C.grad[c]) == pytest.approx(slope, rel=1e-3)
    assert [name for name, _ in layer.named_parameters()] == ["mask.log_beta_C"]


def test_shapes_that_learn_are_those_of_specs():
    sections = {name: TEMPLATES.load(name) for name in TEMPLATES.built_in if name != "none"}
    learned = {name: section.learned for name, section in sections.items() if section.learned}
    assert learned == {**LEARNED, "released": "width"}  # this one with the released form alone


def test_a_template_can_narrow():
    layer, x_NCHW = InterpretableLayer(6, **L2), maps()
    wide = part_templates(6, **L2, tau=1.0, widening=3.0)
    narrow = layer.filter_loss(maps_NCHW=x_NCHW)
    layer.set_widening(3.0)
    assert torch.equal(layer.mask.unit_Pnn, wide)
    expected = filter_loss(x_NCHW, template_bank(6, **L2, widening=3.0), log_prior(6)).sum()
    assert float(layer.filter_loss(maps_NCHW=x_NCHW)) == float(expected) != float(narrow)
    layer.set_widening(1.0)
    assert float(layer.filter_loss(maps_NCHW=x_NCHW)) == float(narrow)


def test_the_maps_are_those_of_the_last_pass_in_training_mode():
    layer = InterpretableLayer(6, **L2)
    with pytest.raises(RuntimeError, match=r"no maps\. Call the layer in training mode first"):
        layer.filter_loss()
    layer(maps(seed=1))
    layer(maps())
    assert float(layer.filter_loss()) == float(layer.filter_loss(maps_NCHW=maps()))
    assert float(copy.deepcopy(layer).filter_loss(maps_NCHW=maps())) == float(layer.filter_loss())
    with pytest.raises(RuntimeError, match="no maps"):
        copy.deepcopy(layer).filter_loss()
    layer.eval()(maps(seed=1))
    with pytest.raises(RuntimeError, match="the maps of a pass in evaluation mode are not kept"):
        layer.filter_loss()


def test_a_flag_says_whether_an_image_shows_the_object():
    layer, x_NCHW = InterpretableLayer(6, form="single", **L2), maps().requires_grad_()
    by_flag = layer.filter_loss(torch.tensor([True, False, False, True]), x_NCHW)
    by_category = layer.filter_loss(torch.tensor([0, -1, -1, 0]), x_NCHW)
    gradients = [torch.autograd.grad(loss, x_NCHW)[0] for loss in (by_flag, by_category)]
    assert torch.equal(*gradients) and float(gradients[0].abs().max()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, {"mask": "centroid"}, {"mask": "none"}, {"learn_beta": True, "filters": 5}],
    ids=["peak", "centroid", "no mask", "learned"],
)
def test_compiled_and_exported_it_computes_the_same(more):
    """The forward pass compiles without a graph break, and the maps of a compiled pass have their gradient."""
    torch.compiler.reset()
    net, images = Net(**L2, **more), torch.randn(4, 3, 6, 6)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    results = []
    for model in (net, compiled):
        net.zero_grad()
        logits = model(images)
        (logits.square().sum() + net.layer.filter_loss()).backward()
        results.append((logits, {name: p.grad.clone() for name, p in net.named_parameters()}))
    (eager, gradients), (other, others) = results
    torch.testing.assert_close(other, eager)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient)
    for mode in (True, False):
        program = torch.export.export(net.train(mode), (images,), dynamic_shapes=[{0: torch.export.Dim("N", min=2)}])
        torch.testing.assert_close(program.module()(images[:3]), net(images[:3]))


def test_copies_and_pickles():
    net, images = Net(), torch.randn(4, 3, 6, 6)
    net(images)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(images), net(images))
        assert torch.equal(other.layer.filter_loss(), net.layer.filter_loss())
    fresh = Net()
    fresh.load_state_dict(net.state_dict())
    assert net.state_dict().keys() == {"conv.weight", "conv.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("mask", ["peak", "centroid"])
def test_under_autocast_the_loss_is_float32(mask):
    net, images = Net(**L2, mask=mask), torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images).dtype == torch.bfloat16
        maps_NCHW = net.layer._maps_NCHW
        assert maps_NCHW.dtype == net.layer(maps_NCHW).dtype == torch.bfloat16
        loss = net.layer.filter_loss()
    assert loss.dtype == torch.float32
    expected = filter_loss(maps_NCHW.float(), template_bank(6, **L2), log_prior(6)).sum()
    assert float(loss.detach()) == float(expected)
    loss.backward()
    assert float(net.conv.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_in_other_formats(dtype):
    """The templates of the loss are never rounded to a short format."""
    net = Net(**L2).to(dtype)
    assert net(torch.randn(4, 3, 6, 6, dtype=dtype)).dtype == dtype
    loss, kept = net.layer.filter_loss(), dtype if dtype == torch.float64 else torch.float32
    bank_Tnn, maps_NCHW = template_bank(6, **L2, dtype=kept), net.layer._maps_NCHW.to(kept)
    assert loss.dtype == kept
    assert float(loss) == float(filter_loss(maps_NCHW, bank_Tnn, log_prior(6, dtype=kept)).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0, **L2}, "n = 0: expected a whole number of at least 1"),
        ({"n": 6.0, **L2}, "n = 6.0: expected a whole number of at least 1"),
        ({"shape": "star"}, "shape = 'star': expected one of gradient, uniform, released, gaussian, ellipse, ring"),
        ({"shape": "gradient", "beta": 2}, "norm = None: a gradient template needs norm"),
        ({"shape": "gradient", "norm": "l2"}, "beta = None: a gradient template needs beta"),
        ({"shape": "gradient", "norm": "l3", "beta": 2}, "norm = 'l3': expected 'l1', 'l2', 'linf' or 'lp'"),
        ({"shape": "gradient", "norm": "lp", "beta": 2}, "p belongs to norm 'lp', which needs it"),
        ({**L2, "gamma": 2}, "gamma = 2: a gradient template has no gamma; it has norm, beta, p"),
        ({**L2, "betta": 2}, "betta = 2: a gradient template has no betta; it has norm, beta, p"),
        ({**L2, "beta": -1}, "beta = -1: expected a positive number"),
        ({**L2, "beta": "2"}, "beta = '2': expected a number"),
        ({**L2, "tau": 0}, "tau = 0: expected a positive number"),
        ({"shape": "mask", "values": [[2.0]], "extent": 1}, "values from 2 to 2: expected [-1, 1], some above 0"),
        ({**L2, "mask": "center"}, "mask = 'center': expected one of 'peak', 'centroid', 'none', None"),
        ({**L2, "form": "eq4"}, "form = 'eq4': expected one of 'exact', 'zconst', 'single', 'released'"),
        ({**L2, "categories": 0}, "categories = 0: expected a whole number of at least 1"),
        ({**L2, "filters": True}, "filters = True: expected a whole number of at least 1"),
        ({**L2, "learn_beta": True}, "filters = None: learn_beta needs the number of maps"),
        (
            {**L2, "form": "single", "categories": 2},
            "filters = None: form 'single' with 2 categories needs the number of maps",
        ),
        ({**L2, "learn_beta": True, "form": "single"}, "learn_beta = True: expected form 'exact', got 'single'"),
        (
            {"shape": "released", "width": 2, "learn_beta": True, "form": "released"},
            "learn_beta = True: expected form 'exact', got 'released'; released widths are learned by `ipcnn submit`",
        ),
        (
            {**SHAPES["uniform"], "learn_beta": True, "filters": 3},
            "learn_beta = True: expected shape 'gradient' or 'ellipse', got 'uniform'",
        ),
        ({**L2, "learn_beta": True, "mask": "none"}, "learn_beta = True: expected mask 'peak', got 'none'"),
        ({**L2, "density": [0.5, 0.5]}, "density = [0.5, 0.5]: it is for form 'released' with several categories"),
        (
            {**L2, "form": "released", "categories": 2, "filters": 3, "density": [0.5]},
            "density = [0.5]: expected 2 shares between 0 and 1",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        InterpretableLayer(**{"n": 6, **arguments})
    assert str(error.value).startswith(message) or message in str(error.value)


@pytest.mark.parametrize(
    ("form", "labels", "message"),
    [
        ("single", None, "labels = None: form 'single' needs the category of each image"),
        ("released", None, "labels = None: form 'released' needs the category of each image"),
        ("exact", torch.zeros(3), "labels has shape (3,): expected [4], one for each image of the maps"),
        ("single", torch.zeros(4), "labels is torch.float32: expected whole numbers, or bool"),
        (
            "single",
            torch.tensor([0, 1, 0, 1]),
            "labels from 0 to 1: expected -1 (no object) to 0, as categories = 1; or bool, whether an image shows it",
        ),
    ],
)
def test_wrong_labels(form, labels, message):
    layer = InterpretableLayer(6, form=form, **L2)
    layer(maps())
    with pytest.raises(ValueError) as error:
        layer.filter_loss(labels)
    assert str(error.value) == message


def test_wrong_calls():
    layer = InterpretableLayer(6, learn_beta=True, filters=3, **L2)
    for shape in ((4, 3, 5, 6), (4, 2, 6, 6), (3, 6, 6)):
        with pytest.raises(ValueError, match=r"x_NCHW has shape .*: expected \[N, 3, 6, 6\]"):
            layer(torch.zeros(shape))
    layer(maps())
    with pytest.raises(ValueError, match="reduction = 'max': expected one of 'sum', 'mean', 'none'"):
        layer.filter_loss(reduction="max")
    with pytest.raises(ValueError, match=r"widening = 2: with learn_beta the filters set their own width"):
        layer.set_widening(2)
    with pytest.raises(ValueError, match="widening = 0: expected a positive number"):
        InterpretableLayer(6, **L2).set_widening(0)
