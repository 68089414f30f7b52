"""Diversity losses against numbers by hand, loops over filters and cells, and automatic differentiation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from ipcnn_ray.core.diversity import largest_overlap, overlap

FORMS = {
    "overlap": overlap,
    "largest": partial(largest_overlap, margin=0.1),
    "overlap of powers": partial(overlap, power=3.0),
    "largest of powers": partial(largest_overlap, margin=0.1, power=3.0),
}
each_form = pytest.mark.parametrize("form", FORMS)


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Half of the cells zero, as after ReLU; one map of the first image zero everywhere."""
    x_NCHW = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()
    x_NCHW[0, 0] = 0
    return x_NCHW.to(dtype)


def slow(x_NCHW: Tensor, form: str, margin: float = 0.1) -> Tensor:
    """As the docstrings print them, filter by filter; differentiable."""
    values, x_NCHW = [], x_NCHW.pow(3.0 if "powers" in form else 1.0)
    for x_CHW in x_NCHW:
        live = [x_HW for x_HW in x_CHW if float(x_HW.detach().sum()) > 0]
        total, A = x_CHW.sum() * 0, len(live)
        for i in range(A if A > 1 else 0):
            others = [k for k in range(A) if k != i]
            p = [x_HW / x_HW.sum() for x_HW in live]
            if form.startswith("overlap"):
                total = total + sum((p[i] * p[k]).sum() for k in others) / (A * (A - 1))
            else:
                strongest = torch.stack([p[k] for k in others]).amax(0)
                total = total + (p[i] * (strongest - margin).clamp(min=0)).sum() / A
        values.append(total)
    return torch.stack(values)


def test_by_hand():
    # Three maps of two cells: p = (1, 0), (1/2, 1/2), (0, 1). Pairs: 1/2, 0, 1/2; mean 1/3.
    x_NCHW = torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.0, 5.0]]).reshape(1, 3, 1, 2)
    assert overlap(x_NCHW).tolist() == [pytest.approx(1 / 3)]
    # The largest of the others: (1/2, 1), (1, 1), (1, 1/2). Less 0.1, times p: 0.4, 0.9, 0.4; mean 1.7 / 3. Less 0.6:
    # (0, 0.4), (0.4, 0.4), (0.4, 0) times p: 0, 0.4, 0.
    assert largest_overlap(x_NCHW, 0.1).tolist() == [pytest.approx(1.7 / 3)]
    assert largest_overlap(x_NCHW, 0.6).tolist() == [pytest.approx(0.4 / 3)]
    apart = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
    assert overlap(apart).tolist() == largest_overlap(apart, 0.1).tolist() == [0.0]


def test_the_gradient_by_hand():
    # p = (1/2, 1/2) and (1, 0): v = 1/2 (two ordered pairs of 1/2, over 2). With x_1 = (2, 2) and x_2 = (3, 0):
    # dv/dp_1 = (1, 0), so dv/dx_1 = ((1, 0) - 1/2) / 4; dv/dp_2 = (1/2, 1/2), so dv/dx_2 = 0 in both cells.
    x_NCHW = torch.tensor([[2.0, 2.0], [3.0, 0.0]]).reshape(1, 2, 1, 2).requires_grad_()
    overlap(x_NCHW).sum().backward()
    assert x_NCHW.grad.flatten().tolist() == [0.125, -0.125, 0.0, 0.0]


@each_form
def test_from_one_cell_for_all_to_one_for_each(form):
    together, apart = torch.zeros(1, 4, 2, 2), torch.eye(4).reshape(1, 4, 2, 2)
    together[:, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(overlap(together)) == 1.0 and float(overlap(apart)) == 0.0
    assert float(overlap(torch.ones(1, 4, 2, 2))) == pytest.approx(1 / 4)
    assert float(FORMS[form](together)) == pytest.approx(1.0 if form.startswith("overlap") else 0.9)
    assert float(FORMS[form](apart)) == 0.0


def test_more_filters_than_cells_overlap_as_little_as_they_can():
    """Six filters in four cells, spread evenly as 2, 2, 1, 1: two of fifteen pairs. Eight, by the formula: 4 of 28."""
    spread = torch.zeros(2, 8, 1, 4)
    for c in range(8):
        spread[:, c, 0, c % 4] = 1.0
    spread[0, 6:] = 0.0
    assert overlap(spread).tolist() == [pytest.approx(2 / 15), pytest.approx(4 / 28)]
    assert pytest.approx((8 - 4) / (4 * (8 - 1))) == 4 / 28


@each_form
@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (2, 2, 3, 3), (4, 9, 1, 3), (2, 1, 3, 3)])
def test_equals_the_loop_in_value_and_gradient(form, shape):
    x_NCHW, same = (maps(*shape, seed=sum(shape)).requires_grad_() for _ in range(2))
    up_N = torch.arange(1, len(x_NCHW) + 1, dtype=torch.float64)
    fast_N, slow_N = FORMS[form](x_NCHW), slow(same, form)
    torch.testing.assert_close(fast_N, slow_N)
    (fast_N * up_N).sum().backward()
    (slow_N * up_N).sum().backward()
    # Where a map is zero, which of several zeros is the largest is arbitrary; a ReLU below lets nothing pass there.
    torch.testing.assert_close(x_NCHW.grad[x_NCHW > 0], same.grad[x_NCHW > 0])
    assert shape[1] == 1 or float(x_NCHW.grad.abs().max()) > 0


@each_form
def test_the_gradient_is_that_of_finite_differences(form):
    x_NCHW = torch.rand(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    assert torch.autograd.gradcheck(FORMS[form], x_NCHW.requires_grad_())


@each_form
def test_the_scale_of_a_map_and_a_map_of_zeros_change_nothing(form):
    x_NCHW = maps(2, 5, 4, 4)
    scale_C11 = torch.tensor([1.0, 3.0, 0.01, 100.0, 7.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(FORMS[form](x_NCHW * scale_C11), FORMS[form](x_NCHW))
    more = torch.cat([x_NCHW, torch.zeros_like(x_NCHW)], 1).requires_grad_()
    torch.testing.assert_close(FORMS[form](more), FORMS[form](x_NCHW))
    FORMS[form](more).sum().backward()
    assert bool(more.grad.isfinite().all()) and float(more.grad[:, 5:].abs().max()) == 0


@each_form
def test_float32_and_nothing_at_all(form):
    x_NCHW = maps(2, 64, 8, 8)
    torch.testing.assert_close(FORMS[form](x_NCHW.float()).double(), FORMS[form](x_NCHW), rtol=1e-5, atol=1e-7)
    empty, dead = torch.zeros(0, 3, 2, 2), torch.zeros(2, 3, 2, 2).requires_grad_()
    assert FORMS[form](empty).shape == (0,)
    value_N = FORMS[form](dead)
    value_N.sum().backward()
    assert value_N.tolist() == [0.0, 0.0] and float(dead.grad.abs().max()) == 0


@pytest.mark.parametrize("loss", [overlap, partial(largest_overlap, margin=0.02)], ids=list(FORMS)[:2])
def test_steps_along_the_gradient_take_peaks_apart(loss):
    """Three filters with their peaks in one cell; after descent each has its own."""
    x_NCHW = 1 + 0.1 * torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    x_NCHW[:, :, 1, 1] = 2.0
    for _ in range(500):
        leaf = x_NCHW.clone().requires_grad_()
        loss(leaf).sum().backward()
        x_NCHW = (x_NCHW - leaf.grad * 2 / leaf.grad.abs().max().clamp(min=1e-9) * 0.01).clamp(min=0)
    assert len(set(x_NCHW.flatten(2).argmax(2)[0].tolist())) == 3


def test_the_power_makes_the_peaks_count():
    """Two broad maps with peaks in different cells: p = (4, 1, 1) / 6 and (1, 1, 4) / 6, then (16, 1, 1) / 18 ..."""
    x_NCHW = torch.tensor([[4.0, 1.0, 1.0], [1.0, 1.0, 4.0]]).reshape(1, 2, 1, 3)
    assert overlap(x_NCHW).tolist() == [pytest.approx((4 + 1 + 4) / 36)]
    assert overlap(x_NCHW, power=2.0).tolist() == [pytest.approx((16 + 1 + 16) / 18**2)]
    assert bool(overlap(1e30 * x_NCHW, power=8.0).isfinite().all())


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"power = 0.5: expected at least 1"):
        overlap(torch.zeros(1, 2, 3, 3), power=0.5)
    with pytest.raises(ValueError, match=r"x_NCHW is torch.float16 of shape \(1, 2, 3, 3\): expected float32"):
        overlap(torch.zeros(1, 2, 3, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"margin = 2: expected 0 to 1"):
        largest_overlap(torch.zeros(1, 2, 3, 3), 2)
