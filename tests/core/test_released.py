"""The released layer against loops over images, filters and cells, and over several workers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fakes.ranks import on_ranks
from torch import Tensor

from ipcnn_ray.core.released import (
    Centroids,
    Groups,
    Strengths,
    _with_largest_for_infinite,
    centroids,
    groups,
    linear_mask,
    masked,
    released_gradient,
    strengths,
    template_mask,
    updated_magnitude,
    width_gradient,
)
from ipcnn_ray.core.templates import part_templates

ONE = torch.zeros(1, dtype=torch.float64)


def maps(N: int, C: int, n: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, C, n, n, generator=generator, dtype=torch.float64).relu() * scale


def masked_maps(x_NCHW: Tensor, width: Any = 2.0, on_C: Tensor | None = None) -> tuple[Tensor, Strengths]:
    """The mask of maps, and their strengths on a single worker."""
    C, n = x_NCHW.shape[1:3]
    width_C = torch.as_tensor(width, dtype=torch.float64).expand(C)
    mask_NCHW = linear_mask(centroids(x_NCHW), width_C, n, on_C)
    return mask_NCHW, strengths(x_NCHW, mask_NCHW, mask_NCHW)


def slow_centroid(map_nn: list[list[float]]) -> tuple[int, int, float]:
    n = len(map_nn)
    cells = [(i, j, map_nn[i][j]) for i in range(n) for j in range(n)]
    total = max(sum(x for _, _, x in cells), 1e-9)
    row = max(math.floor(sum((i + 1) * x for i, _, x in cells) / total + 0.5), 1) - 1
    col = max(math.floor(sum((j + 1) * x for _, j, x in cells) / total + 0.5), 1) - 1
    spread = sum(((i - row) ** 2 + (j - col) ** 2) * x for i, j, x in cells) / total
    return row, col, math.sqrt(spread)


def slow_gradient(
    x_NCHW: Tensor, mask_NCHW: Tensor, positive: list[list[bool]], weights: list[tuple[float, float]], scale: float
) -> Tensor:
    """Section B of the released code's description, entry by entry."""
    N, C, n, _ = x_NCHW.shape
    a, cells = 0.5, n * n
    out = torch.zeros_like(x_NCHW)
    for c in range(C):
        s = [float((x_NCHW[b, c] * mask_NCHW[b, c]).sum()) / cells for b in range(N)]
        mean = [float(x_NCHW[b, c].sum()) / cells for b in range(N)]
        pairs = [float((x_NCHW[b, c] * mask_NCHW[N - 1 - b, C - 1 - c]).sum()) / cells for b in range(N)]
        alogz_positive = a * math.log(sum(math.exp(v / a) for v in pairs) / N)
        alogz_negative = a * math.log(sum(math.exp(-v / a) for v in mean) / N)
        inside = {b: math.exp(s[b] / a) * (s[b] - alogz_positive + a) for b in range(N) if positive[b][c]}
        outside = {b: math.exp(-mean[b] / a) * (-mean[b] - alogz_negative + a) for b in range(N) if not positive[b][c]}
        for b, u in inside.items():
            relative = u / (sum(inside.values()) / len(inside))
            out[b, c] = -mask_NCHW[b, c] * relative * scale * 1e-5 * weights[c][0]
        for b, u in outside.items():
            out[b, c] = u / (sum(outside.values()) / len(outside)) * scale * 1e-5 * weights[c][1]
    return out


@pytest.mark.parametrize("n", [1, 2, 6, 13])
def test_centroids_equal_a_loop(n):
    x_NCHW = maps(3, 4, n, seed=n)
    x_NCHW[0, 0] = 0
    mu = centroids(x_NCHW)
    for b in range(3):
        for c in range(4):
            row, col, sigma = slow_centroid(x_NCHW[b, c].tolist())
            assert (int(mu.row_NC[b, c]), int(mu.col_NC[b, c])) == (row, col)
            assert float(mu.sigma_NC[b, c]) == pytest.approx(sigma, rel=1e-9, abs=1e-7)


def test_a_half_rounds_away_from_zero_and_an_empty_map_lies_in_the_first_cell():
    x_NCHW = torch.zeros(1, 2, 4, 4)
    x_NCHW[0, 0, 1, 0] = x_NCHW[0, 0, 2, 0] = 1.0  # centroid at row 2.5 of 1-based cells: 3
    mu = centroids(x_NCHW)
    assert mu.row_NC.tolist() == [[2, 0]]
    assert mu.col_NC.tolist() == [[0, 0]]
    assert mu.sigma_NC.tolist() == [[pytest.approx(math.sqrt(0.5)), 0.0]]


def test_a_map_that_is_not_finite_has_a_centroid_inside_it():
    """So that training ends with the message on a loss that is not finite, not with an index out of bounds."""
    x_NCHW = torch.ones(1, 2, 4, 4)
    x_NCHW[0, 0, 1, 0], x_NCHW[0, 1, 2, 2] = torch.nan, torch.inf
    mu = centroids(x_NCHW)
    assert all(0 <= int(cell) < 4 for cell in (*mu.row_NC[0], *mu.col_NC[0]))
    assert not bool(template_mask(mu, part_templates(4, shape="gaussian", sigma=0.2, tau=1.0)).isnan().any())


def test_mask_by_hand():
    # n = 3: coordinates -1, 0, 1. Width 2 from the middle: 1 there, 1 - 2 = -1 beside it, and never below -1.
    mu = Centroids(torch.tensor([[1, 0]]), torch.tensor([[1, 0]]), torch.zeros(1, 2))
    mask_NCHW = linear_mask(mu, torch.tensor([2.0, 0.5]), 3)
    assert mask_NCHW[0, 0].tolist() == [[-1, -1, -1], [-1, 1, -1], [-1, -1, -1]]
    assert mask_NCHW[0, 1].tolist() == [[1, 0.5, 0], [0.5, 0, -0.5], [0, -0.5, -1]]
    off = linear_mask(mu, torch.tensor([2.0, 0.5]), 3, torch.tensor([True, False]))
    assert off[0, 1].tolist() == [[1.0] * 3] * 3
    assert torch.equal(off[0, 0], mask_NCHW[0, 0])


@pytest.mark.parametrize("n", [6, 13])
def test_the_linear_mask_is_an_l1_template_in_other_units(n):
    mu, width = centroids(maps(3, 2, n)), 2.0
    beta = 2 * width * n / (n - 1)
    unit_Pnn = part_templates(n, shape="gradient", norm="l1", beta=beta, tau=1.0, dtype=torch.float64)
    linear_NCHW = linear_mask(mu, torch.full((2,), width, dtype=torch.float64), n)
    torch.testing.assert_close(template_mask(mu, unit_Pnn), linear_NCHW, rtol=0, atol=1e-12)


def test_the_masked_map_has_the_released_gradient_where_the_map_is_zero():
    x_NCHW = torch.tensor([0.0, 0.0, 2.0]).reshape(3, 1, 1, 1).requires_grad_()
    inner = masked(x_NCHW, torch.tensor([0.5, -0.5, 0.5]).reshape(3, 1, 1, 1))
    torch.autograd.backward(inner.sum())
    assert inner.flatten().tolist() == [0.0, 0.0, 1.0]
    assert x_NCHW.grad.flatten().tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("label", [[0, -1, 0, -1, -1], [0] * 5, [-1] * 5], ids=["mixed", "all positive", "none"])
def test_gradient_equals_a_loop(scale, label):
    x_NCHW = maps(5, 3, 4, scale)
    mask_NCHW, found = masked_maps(x_NCHW, [2.0, 1.7, 2.5])
    fast = released_gradient(mask_NCHW, found, groups(torch.tensor(label), 3, None, ONE), 0.05)
    positive = [[one >= 0] * 3 for one in label]
    slow = slow_gradient(x_NCHW, mask_NCHW, positive, [(1.0, 1.0)] * 3, 0.05)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-18)
    assert float(fast.abs().max()) > 0


def test_several_categories_equal_a_loop():
    x_NCHW, class_N = maps(7, 4, 4), torch.tensor([0, 1, 2, 1, 0, 2, -1])
    magnitude_CL = torch.tensor([[3.0, 1, 1], [1, 2, 2], [0, 0, 5], [1, 1, 1]], dtype=torch.float64)
    density_L = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    of_filter = [0, 1, 2, 0]  # the first among equals
    mask_NCHW, found = masked_maps(x_NCHW)
    fast = released_gradient(mask_NCHW, found, groups(class_N, 4, magnitude_CL, density_L), 0.1)
    positive = [[int(one) == of_filter[c] for c in range(4)] for one in class_N]
    weights = [(0.5 / float(density_L[k]), 0.5 / (1 - float(density_L[k]))) for k in of_filter]
    torch.testing.assert_close(fast, slow_gradient(x_NCHW, mask_NCHW, positive, weights, 0.1), rtol=1e-9, atol=1e-18)


def test_more_than_ten_categories_count_as_equally_frequent():
    magnitude_CL = torch.eye(11, dtype=torch.float64)
    group = groups(torch.tensor([3]), 11, magnitude_CL, torch.full((11,), 0.9, dtype=torch.float64))
    assert group.positive_weight_C.tolist() == [pytest.approx(5.5)] * 11
    assert group.negative_weight_C.tolist() == [pytest.approx(0.55)] * 11
    assert group.positive_BC[0].tolist() == [k == 3 for k in range(11)]


def test_no_exponential_overflows():
    small, large = maps(4, 2, 4), maps(4, 2, 4) + 3000.0
    for x_NCHW in (large, large.float()):
        mask_NCHW = torch.ones_like(x_NCHW)
        found = strengths(x_NCHW, mask_NCHW, mask_NCHW)
        added = released_gradient(mask_NCHW, found, groups(torch.tensor([0, 0, -1, -1]), 2, None, ONE), 0.1)
        assert bool(added.isfinite().all())
        assert bool(found.alogz_positive_C.isfinite().all())
    # A common shift of s cancels in u over its mean but for (s - aLogZ), which does not see it either.
    group, ones = groups(torch.tensor([0, 0, 0, -1]), 2, None, ONE), torch.ones_like(small)
    shifted, plain = (strengths(x_NCHW, ones, ones) for x_NCHW in (small + 3000.0, small))
    found, wanted = (released_gradient(ones, strength, group, 0.1)[:3] for strength in (shifted, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=0)


def test_what_is_divided_by_zero_takes_the_largest_of_its_category():
    # u is 0 for s = aLogZ - 1/2; opposite u have mean 0, and so does a filter whose images all have u = 0.
    ones = torch.ones(2, 3, 2, 2, dtype=torch.float64)
    s_BC = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.5, 0.0]], dtype=torch.float64)
    alogz_C = torch.tensor([0.5, 0.2, 0.5], dtype=torch.float64)
    found = strengths(maps(2, 3, 2), ones, ones)._replace(template_BC=s_BC, alogz_positive_C=alogz_C)
    group = Groups(torch.tensor([[True], [True]]), torch.ones(1), torch.ones(1), torch.zeros(3, dtype=torch.long))
    added = released_gradient(ones, found, group, 1.0)
    assert added[:, 0].abs().max() == added[:, 2].abs().max() == 0
    assert float(added[:, 1].abs().min()) > 0


def test_infinite_entries_take_the_largest_of_their_group():
    """Against a loop over groups. The last group has no finite entry."""
    generator = torch.Generator().manual_seed(3)
    of_BC, group_C = torch.rand(6, 7, generator=generator) < 0.7, torch.tensor([0, 2, 0, 2, 1, 1, 4])
    entry_BC = torch.randn(6, 7, generator=generator, dtype=torch.float64) - 1
    entry_BC[torch.rand(6, 7, generator=generator) < 0.4] = math.inf
    entry_BC[:, 6] = -math.inf
    entry_BC = torch.where(of_BC, entry_BC, 0)
    wanted_BC = entry_BC.clone()
    for group in set(group_C.tolist()):
        mine_BC = of_BC & (group_C == group)
        finite = entry_BC[mine_BC & entry_BC.isfinite()]
        wanted_BC[mine_BC & entry_BC.isinf()] = finite.max() if len(finite) else 0.0
    assert torch.equal(_with_largest_for_infinite(entry_BC, of_BC, group_C), wanted_BC)
    assert entry_BC.isinf().any(0).sum() > 4 and (wanted_BC < 0).any()


def test_filters_that_are_off_get_nothing():
    x_NCHW, on_C = maps(4, 3, 4), torch.tensor([True, False, True])
    mask_NCHW, found = masked_maps(x_NCHW, on_C=on_C)
    group = groups(torch.tensor([0, 0, -1, -1]), 3, None, ONE)
    added = released_gradient(mask_NCHW, found, group, 0.1, on_C=on_C)
    assert float(added[:, 1].abs().max()) == 0
    assert float(width_gradient(torch.full((3,), 2.0), centroids(x_NCHW).sigma_NC, found, group, on_C)[1]) == 0


def test_width_is_drawn_to_three_over_the_spread():
    width_C = torch.tensor([2.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    s_BC = torch.tensor([[1.0, 1.0, 0.0, 2.0], [3.0, 1.0, 0.0, 2.0], [9.0, 9.0, 9.0, 9.0]], dtype=torch.float64)
    sigma_BC = torch.tensor([[1.0, 0.5, 0.0, 4.0], [1.4, 0.5, 0.0, 4.0], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    ones = torch.ones(3, 4, 2, 2, dtype=torch.float64)
    found = strengths(maps(3, 4, 2), ones, ones)._replace(template_BC=s_BC)
    group = groups(torch.tensor([0, 0, -1]), 4, None, ONE)
    # sigma_bar 1.3: target 3 / 1.3; 0.5: clipped to 3; 0 / 0: 3; 4: clipped to 1.5.
    wanted = [-1e4 * (target - 2.0) for target in (3 / 1.3, 3.0, 3.0, 1.5)]
    assert width_gradient(width_C, sigma_BC, found, group).tolist() == pytest.approx(wanted)


def test_moving_average_by_hand():
    peak_BC = torch.tensor([[1.0, 0.02], [3.0, 0.04], [8.0, 0.0]])
    first = updated_magnitude(None, peak_BC, torch.tensor([0, 0, 1]), 3)
    assert first.tolist() == [pytest.approx([2.0, 8.0, 0.0]), pytest.approx([0.1, 0.1, 0.0])]
    second = updated_magnitude(first, torch.tensor([[4.0, 0.0]]), torch.tensor([1]), 3)
    # Filter 1 shows nothing: the average of category 0 takes the place of its mean.
    assert second.tolist() == [pytest.approx([2.0, 7.6, 0.0]), pytest.approx([0.1, 0.1, 0.0])]
    assert first[0, 1] == 8.0, "the average that came in is left as it is"


@pytest.mark.parametrize("world", [2, 4])
def test_workers_equal_one_worker(world):
    x_NCHW, class_N = maps(8, 5, 6), torch.tensor([0, -1, 0, 0, -1, -1, 0, -1])
    width_C = torch.tensor([2.0, 1.6, 2.2, 2.9, 1.5], dtype=torch.float64)
    mask_NCHW, found = masked_maps(x_NCHW, width_C.tolist())
    group = groups(class_N, 5, None, ONE)
    whole = released_gradient(mask_NCHW, found, group, 0.1)

    def work(rank: int, gather) -> Tensor:
        mine = x_NCHW.chunk(world)[rank]
        my_mu = centroids(mine)
        partner = Centroids(*(gather(part)[world - 1 - rank] for part in my_mu))
        my_mask = linear_mask(my_mu, width_C, 6)
        mine_found = strengths(mine, my_mask, linear_mask(partner, width_C, 6), gather=gather)
        return released_gradient(my_mask, mine_found, group, 0.1, first=rank * len(mine))

    together = torch.cat(on_ranks(world, work))
    torch.testing.assert_close(together, whole, rtol=1e-12, atol=1e-20)
