"""The exact filter loss against numbers by hand, a loop over every image and template, and the check vectors."""

from __future__ import annotations

import math
import weakref
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ipcnn_ray.core.filter_loss import filter_loss, filter_weight, mean_over
from ipcnn_ray.core.templates import log_prior, template_bank


def bank(n: int, dtype: torch.dtype = torch.float64, tau: float | None = None) -> tuple[Tensor, Tensor]:
    return template_bank(n, shape="gradient", norm="l1", beta=4.0, tau=tau, dtype=dtype), log_prior(n, dtype=dtype)


def maps(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Half of the cells zero, as after ReLU, images of different strength."""
    generator = torch.Generator().manual_seed(seed)
    x_NCHW = torch.randn(shape, generator=generator, dtype=torch.float64).relu() * scale
    return (x_NCHW * torch.rand(shape[0], shape[1], 1, 1, generator=generator, dtype=torch.float64)).to(dtype)


def slow_loss(x_NCHW: Tensor, bank_Tnn: Tensor, prior_T: list[float]) -> list[float]:
    """-MI of every filter, as the paper writes it, one number at a time."""
    losses = []
    for c in range(x_NCHW.shape[1]):
        score = [[float((x_NCHW[b, c] * t).sum()) for t in bank_Tnn] for b in range(len(x_NCHW))]
        images, templates = range(len(score)), range(len(bank_Tnn))
        z = [sum(math.exp(score[b][t]) for b in images) for t in templates]
        given = [[math.exp(score[b][t]) / z[t] for t in templates] for b in images]
        alone = [sum(prior_T[t] * given[b][t] for t in templates) for b in images]
        pairs = product(images, templates)
        losses.append(-sum(prior_T[t] * given[b][t] * math.log(given[b][t] / alone[b]) for b, t in pairs))
    return losses


def loss_and_gradient(x_NCHW: Tensor, tau: float | None = None) -> tuple[Tensor, Tensor]:
    x_NCHW = x_NCHW.clone().requires_grad_()
    loss_C = filter_loss(x_NCHW, *bank(x_NCHW.shape[-1], x_NCHW.dtype, tau))
    loss_C.sum().backward()
    return loss_C.detach(), x_NCHW.grad


def test_two_images_two_templates_by_hand():
    # n = 1: templates +1/2 and -1/2, each with probability 1/2. x = 0 and 2 log 3: scores 0 and +-log 3, so
    # p(x | +) = 1/4, 3/4 and p(x | -) = 3/4, 1/4; p(x) = 1/2, 1/2. MI = log 2 - H(1/4) for each template.
    # With 1,000 in place of 2 log 3 each template picks its own image: MI is log 2, its bound.
    information = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    for x, expected in ((2 * math.log(3), information), (1e3, math.log(2))):
        x_NCHW = torch.tensor([0.0, x], dtype=torch.float64).reshape(2, 1, 1, 1)
        assert float(filter_loss(x_NCHW, *bank(1))) == pytest.approx(-expected, rel=1e-12)


UNEQUAL = [0.2, 0.15, 0.15, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]


@pytest.mark.parametrize(("scale", "tau"), [(1.0, None), (30.0, None), (1.0, 0.5), (8.0, 0.5)])
@pytest.mark.parametrize("prior", [[0.1] * 10, UNEQUAL], ids=["uniform", "unequal"])
def test_equals_a_loop(scale, tau, prior):
    x_NCHW, (bank_Tnn, _) = maps(4, 3, 3, 3, scale=scale), bank(3, tau=tau)
    fast = filter_loss(x_NCHW, bank_Tnn, torch.tensor(prior, dtype=torch.float64).log())
    slow = torch.tensor(slow_loss(x_NCHW, bank_Tnn, prior), dtype=torch.float64)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-13)


def slow_slope(x_NCHW: Tensor, bank_Tnn: Tensor, prior_T: list[float], form: str, kept: list[list[int]]) -> Tensor:
    """dLoss/dx of the paper's equation 4, one number at a time. kept: the template of each image and filter."""
    out = torch.zeros_like(x_NCHW)
    images, templates = range(len(x_NCHW)), range(len(bank_Tnn))
    for c in range(x_NCHW.shape[1]):
        score = [[float((x_NCHW[b, c] * t).sum()) for t in bank_Tnn] for b in images]
        z = [sum(math.exp(score[b][t]) for b in images) for t in templates]
        for b in images:
            given = [math.exp(score[b][t]) / z[t] for t in templates]
            alone = sum(prior_T[t] * given[t] for t in templates)
            for t in templates if form == "zconst" else [kept[b][c]]:
                out[b, c] -= bank_Tnn[t] * prior_T[t] * given[t] * (score[b][t] - math.log(z[t] * alone))
    return out


@pytest.mark.parametrize("form", ["zconst", "single"])
@pytest.mark.parametrize(("scale", "tau"), [(1.0, None), (8.0, 0.5)])
def test_gradient_with_z_constant_equals_a_loop(form, scale, tau):
    x_NCHW, (bank_Tnn, log_prior_T) = maps(4, 3, 3, 3, scale=scale), bank(3, tau=tau)
    positive_NC = torch.tensor([[True, True, False], [False, True, True], [True, False, False], [False, False, True]])
    kept = [[int(x_NCHW[b, c].argmax()) if positive_NC[b, c] else 9 for c in range(3)] for b in range(4)]
    x_NCHW.requires_grad_()
    own_category = positive_NC if form == "single" else None
    loss_C = filter_loss(x_NCHW, bank_Tnn, log_prior_T, form=form, positive_NC=own_category)
    torch.testing.assert_close(loss_C, filter_loss(x_NCHW, bank_Tnn, log_prior_T), rtol=0, atol=0)
    loss_C.sum().backward()
    slow = slow_slope(x_NCHW.detach(), bank_Tnn, log_prior_T.exp().tolist(), form, kept)
    torch.testing.assert_close(x_NCHW.grad, slow, rtol=1e-9, atol=1e-14)


def test_templates_of_each_filters_own():
    """Equal templates for all give the shared ones' loss; the gradient with respect to beta is the derivative."""
    x_NCHW, (bank_Tnn, log_prior_T) = maps(4, 3, 3, 3, scale=20.0).requires_grad_(), bank(3, tau=0.5)
    shared_C = filter_loss(x_NCHW, bank_Tnn, log_prior_T)
    own_C = filter_loss(x_NCHW, bank_Tnn.expand(3, -1, -1, -1), log_prior_T)
    torch.testing.assert_close(own_C, shared_C, rtol=1e-12, atol=0)
    (shared_slope,) = torch.autograd.grad(shared_C.sum(), x_NCHW)
    (own_slope,) = torch.autograd.grad(own_C.sum(), x_NCHW)
    torch.testing.assert_close(own_slope, shared_slope, rtol=1e-10, atol=1e-15)

    negative_C1nn = bank_Tnn[-1].expand(3, 1, 3, 3)

    def loss_of(stretch_C: Tensor, x: Tensor) -> Tensor:
        positive = torch.tanh(stretch_C[:, None, None, None] * bank_Tnn[:-1])
        return filter_loss(x, torch.cat([positive, negative_C1nn], 1), log_prior_T)

    stretch_C = torch.tensor([0.7, 1.0, 1.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss_of, (stretch_C, (x_NCHW.detach() + 0.1).requires_grad_()), atol=1e-8)


@pytest.mark.parametrize(("n", "scale"), [(1, 3.0), (3, 1.0), (3, 200.0)])
def test_gradient_is_the_derivative(n, scale):
    x_NCHW = (maps(4, 2, n, n, scale=scale) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: filter_loss(x, *bank(n)), x_NCHW, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 10.0, 100.0, 1000.0])
def test_float32_gradient_holds_to_1e_5_of_its_maximum(scale):
    exact, exact_gradient = loss_and_gradient(maps(16, 4, 13, 13, scale=scale))
    single, gradient = loss_and_gradient(maps(16, 4, 13, 13, scale=scale, dtype=torch.float32))
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=0, atol=1e-5 * float(exact_gradient.abs().max()))
    informed = exact < -1e-3
    torch.testing.assert_close(single.double()[informed], exact[informed], rtol=2e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_maps_hold_no_information(dtype):
    loss_C, gradient = loss_and_gradient(maps(1, 3, 6, 6, scale=50.0, dtype=dtype).expand(9, -1, -1, -1))
    assert float(loss_C.abs().max()) < 1e-9
    assert float(gradient.abs().max()) < 1e-7 * 0.5 / 36


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_one_image_gives_exactly_zero(scale):
    loss_C, gradient = loss_and_gradient(maps(1, 5, 6, 6, scale=scale, dtype=torch.float32))
    assert torch.equal(loss_C, torch.zeros(5)) and torch.equal(gradient, torch.zeros(1, 5, 6, 6))


def test_dead_filters_give_zero_beside_living_ones():
    x_NCHW = maps(6, 3, 6, 6, dtype=torch.float32)
    x_NCHW[:, 1] = 0
    loss_C, gradient = loss_and_gradient(x_NCHW)
    assert float(loss_C[1]) == 0 and not bool(gradient[:, 1].any())
    assert bool((loss_C[[0, 2]] < 0).all()) and bool(gradient[:, [0, 2]].any())


@pytest.mark.parametrize("images", [2, 5, 40])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1e3, 1e5])
def test_information_stays_between_zero_and_its_bound(images, scale):
    x_NCHW, (bank_Tnn, log_prior_T) = maps(images, 8, 3, 3, scale=scale), bank(3)
    information = -filter_loss(x_NCHW, bank_Tnn, log_prior_T)
    entropy = -float((log_prior_T.exp() * log_prior_T).sum())
    assert bool((information > -1e-12).all())
    assert bool((information < min(math.log(images), entropy) + 1e-12).all())


@pytest.mark.parametrize("scale", [1e4, 1e10, 1e30])
def test_large_activations_do_not_overflow(scale):
    single, gradient = loss_and_gradient(maps(8, 6, 6, 6, scale=scale, dtype=torch.float32))
    exact, _ = loss_and_gradient(maps(8, 6, 6, 6, scale=scale))
    assert bool(torch.isfinite(single).all()) and bool(torch.isfinite(gradient).all())
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4)


def test_autocast_changes_nothing():
    x_NCHW = maps(4, 3, 6, 6, dtype=torch.float32)
    plain, plain_gradient = loss_and_gradient(x_NCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, cast_gradient = loss_and_gradient(x_NCHW)
    assert torch.equal(plain, cast) and torch.equal(plain_gradient, cast_gradient)


def test_layout_in_memory_changes_nothing():
    x_NCHW = maps(4, 3, 6, 6)
    other = loss_and_gradient(x_NCHW.to(memory_format=torch.channels_last))
    assert all(map(torch.equal, loss_and_gradient(x_NCHW), other))


def test_each_filters_gradient_takes_its_own_factor():
    x_NCHW = maps(4, 3, 6, 6).requires_grad_()
    lambda_C = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    (lambda_C * filter_loss(x_NCHW, *bank(6))).sum().backward()
    _, plain = loss_and_gradient(x_NCHW.detach())
    torch.testing.assert_close(x_NCHW.grad, plain * lambda_C[:, None, None])


def test_a_second_derivative_is_refused():
    x_NCHW = maps(4, 3, 6, 6).requires_grad_()
    lambda_C = torch.ones(3, dtype=torch.float64, requires_grad=True)
    loss_C = lambda_C * filter_loss(x_NCHW, *bank(6))
    (slope,) = torch.autograd.grad(loss_C.sum(), x_NCHW, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


class Arrays(TorchDispatchMode):
    """The most arrays of `numel` numbers alive at once."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.most = numel, 0
        self.made: list[weakref.ref[Tensor]] = []

    def alive(self) -> int:
        """Arrays, not views: tensors of one storage count once."""
        tensors = [made() for made in self.made]
        return len({tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == self.numel:
            self.made.append(weakref.ref(result))
        self.most = max(self.most, self.alive())
        return result


def test_at_most_three_arrays_of_scores_are_alive():
    images, filters, n = 4, 3, 6
    x_NCHW, (bank_Tnn, log_prior_T) = maps(images, filters, n, n).requires_grad_(), bank(n)
    with Arrays(images * filters * (n * n + 1)) as arrays:
        loss_C = filter_loss(x_NCHW, bank_Tnn, log_prior_T)
        assert arrays.most == 3
        assert arrays.alive() == 0  # backward keeps numbers of the size of the maps only
        loss_C.sum().backward()
    assert arrays.most <= 3


ONES = torch.ones(4, 2, dtype=torch.bool)
OWN_BANK = bank(3)[0].expand(2, -1, -1, -1).clone().requires_grad_()
BANK, PRIOR = bank(3, torch.bfloat16)
HALF = {"x_NCHW": maps(4, 2, 3, 3).bfloat16(), "bank_Tnn": BANK, "log_prior_T": PRIOR}
EXPECTED = r"expected \[N >= 1, C, 3, 3\]"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"form": "paper"}, r"form = 'paper': expected 'exact', 'zconst' or 'single'"),
        ({"form": "single"}, r"form = 'single': positive_NC is for 'single', and needed there"),
        ({"positive_NC": ONES}, r"form = 'exact': positive_NC is for 'single', and needed there"),
        ({"form": "single", "positive_NC": ONES[1:]}, r"is torch.bool \(3, 2\): expected bool \[4, 2\] or \[4, 1\]"),
        ({"form": "zconst", "bank_Tnn": OWN_BANK}, r"'zconst': only 'exact' has a gradient with respect to the templ"),
        *[
            ({"x_NCHW": torch.zeros(shape)}, rf"x_NCHW has shape \({', '.join(map(str, shape))}\): {EXPECTED}")
            for shape in ((2, 3, 3, 5), (2, 3, 5, 5), (3, 3, 3), (0, 3, 3, 3))
        ],
        ({"bank_Tnn": bank(3)[0][1:]}, r"bank_Tnn has shape \(9, 3, 3\): expected \[10, 3, 3\]"),
        ({"log_prior_T": bank(3)[1][1:]}, r"log_prior_T has shape \(9,\): expected \[10\]"),
        (
            {"x_NCHW": maps(4, 2, 3, 3, dtype=torch.float32)},
            r"have dtypes \(torch\.float32, torch\.float64, torch\.float64\): expected",
        ),
        (HALF, r"torch\.bfloat16.*: expected float32 or float64 in all"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changed, text):
    bank_Tnn, log_prior_T = bank(3)
    with pytest.raises(ValueError, match=text):
        filter_loss(**{"x_NCHW": maps(4, 2, 3, 3), "bank_Tnn": bank_Tnn, "log_prior_T": log_prior_T} | changed)


def test_schedules_by_hand():
    # Maxima 1 and 3 of filter 0, 0 and 0 of the dead filter 1: means 2 and 0; weight 0.6, third epoch.
    x_NCHW = torch.zeros(2, 2, 2, 2)
    x_NCHW[0, 0, 1, 1], x_NCHW[1, 0, 0, 1] = 1.0, 3.0
    x_NCHW.requires_grad_()
    lambda_C = filter_weight(x_NCHW, 0.6, 3, "paper")
    torch.testing.assert_close(lambda_C, torch.tensor([0.4, 0.0]))
    assert not lambda_C.requires_grad
    for epoch in (1, 50):
        assert torch.equal(filter_weight(x_NCHW, 0.25, epoch, "constant"), torch.full((2,), 0.25))


def test_wrong_schedules_are_named():
    with pytest.raises(ValueError, match=r"epoch = 0: epochs count from 1"):
        filter_weight(torch.rand(2, 3, 2, 2), 0.1, 0, "paper")
    with pytest.raises(ValueError, match=r"schedule = 'linear': expected 'paper', 'constant' or 'epoch'"):
        filter_weight(torch.rand(2, 3, 2, 2), 0.1, 1, "linear")


def test_a_mean_over_some_images_selects_them_or_weighs_the_others_with_zero():
    """The first on a CPU, the second on a GPU."""
    x_BC = torch.tensor([[1.0, 5.0], [torch.inf, torch.nan], [2.0, -1.0]])
    for select in (True, False):
        assert mean_over(x_BC, torch.tensor([True, False, True]), select=select).tolist() == [1.5, 2.0]
        assert mean_over(x_BC, torch.zeros(3, dtype=torch.bool), select=select).isnan().all()
