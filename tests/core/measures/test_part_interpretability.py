"""P_f against numbers by hand and a loop over images, filters, parts and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ipcnn_ray.core.measures.part_interpretability import (
    part_boxes,
    part_hits,
    part_interpretability,
    to_pixels,
    top_values,
    values_above,
)
from ipcnn_ray.core.receptive_field import Field

FIELD = Field(stride=4, size=9, first_center=1.5)
SIZE = 32


def slow_scaled(cells: list[list[float]], field: Field, size: int) -> list[list[float]]:
    """A map at every pixel: between the four centres around it, row by row."""

    def around(pixel: int) -> tuple[int, int, float]:
        at = min(max((pixel - field.first_center) / field.stride, 0), len(cells) - 1)
        low = min(int(at), len(cells) - 2)
        return low, low + 1, at - low

    found = []
    for row in range(size):
        up, down, below = around(row)
        line = []
        for col in range(size):
            left, right, beyond = around(col)
            high = cells[up][left] * (1 - beyond) + cells[up][right] * beyond
            deep = cells[down][left] * (1 - beyond) + cells[down][right] * beyond
            line.append(high * (1 - below) + deep * below)
        found.append(line)
    return found


def slow(x_NCHW: Tensor, masks_NKSS: Tensor, shown_NK: Tensor, field: Field) -> list[float]:
    """P_f, one filter, part, image and pixel after the other."""
    N, C, n, _ = x_NCHW.shape
    size, found = masks_NKSS.shape[-1], []
    for c in range(C):
        cells = sorted(x_NCHW[:, c].flatten().tolist(), reverse=True)
        threshold = cells[int(0.005 * len(cells) + 1e-9)]
        shares = []
        for k in range(masks_NKSS.shape[1]):
            hits = []
            for i in [i for i in range(N) if shown_NK[i, k]]:
                both = either = 0
                scaled = slow_scaled(x_NCHW[i, c].tolist(), field, size)
                for row in range(size):
                    for col in range(size):
                        region, part = scaled[row][col] > threshold, bool(masks_NKSS[i, k, row, col])
                        both += region and part
                        either += region or part
                hits.append(either > 0 and both / either > 0.2)
            if hits:
                shares.append(sum(hits) / len(hits))
        found.append(max(shares) if shares else math.nan)
    return found


def fast(x_NCHW: Tensor, masks_NKSS: Tensor, shown_NK: Tensor, field: Field, batch: int):
    N, C, n, _ = x_NCHW.shape
    top_CM = torch.full((C, values_above(N, n) + 1), -torch.inf, dtype=x_NCHW.dtype)
    for start in range(0, N, batch):
        top_CM = top_values(x_NCHW[start : start + batch], top_CM)
    weights_Sn = to_pixels(field, n, masks_NKSS.shape[-1])
    hit_NCK = [part_hits(x, top_CM[:, -1], weights_Sn, masks) for x, masks in zip(x_NCHW, masks_NKSS, strict=True)]
    return part_interpretability(torch.stack(hit_NCK), shown_NK)


def drawn(images: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Maps with a bump near part 0 (filter 0), near part 1 (filter 1), anywhere (filter 2), nowhere (filter 3)."""
    generator = torch.Generator().manual_seed(11)
    n = 8
    centers_NK2 = torch.randint(1, n - 1, (images, 2, 2), generator=generator)
    x_NCHW = torch.zeros(images, 4, n, n, dtype=torch.float64)
    for i in range(images):
        for c in range(3):
            row, col = centers_NK2[i, c] if c < 2 else torch.randint(0, n, (2,), generator=generator)
            x_NCHW[i, c, row, col] = 2 + torch.rand((), generator=generator, dtype=torch.float64)
    x_NCHW[:, :3] += torch.rand(images, 3, n, n, generator=generator, dtype=torch.float64) * 0.5
    middles = FIELD.first_center + FIELD.stride * centers_NK2.double()
    sizes = torch.randint(4, 9, (images, 2, 2), generator=generator).double()
    masks_NKSS = torch.stack([part_boxes(at, size, SIZE) for at, size in zip(middles, sizes, strict=True)])
    shown_NK = torch.rand(images, 2, generator=generator) < 0.8
    return x_NCHW, masks_NKSS & shown_NK[:, :, None, None], shown_NK


def test_equals_a_loop_over_pixels():
    x_NCHW, masks_NKSS, shown_NK = drawn()
    expected = slow(x_NCHW, masks_NKSS, shown_NK, FIELD)
    assert 0 < max(expected) and expected[3] == 0
    for batch in (1, 5, 12):
        found = fast(x_NCHW, masks_NKSS, shown_NK, FIELD, batch)
        assert found.per_filter_C.tolist() == pytest.approx(expected)


def test_by_hand():
    # One filter, two images of 2 x 2 cells of 2 pixels; the threshold of 2 / 400 of 400 cells is tested below.
    field, weights_Sn = Field(2, 2, 0.5), to_pixels(Field(2, 2, 0.5), 2, 4)
    assert field.first_center == 0.5
    torch.testing.assert_close(weights_Sn[:, 0], torch.tensor([1, 0.75, 0.25, 0], dtype=torch.float64))
    torch.testing.assert_close(weights_Sn.sum(1), torch.ones(4, dtype=torch.float64))
    x_CHW = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # scaled up: outer product of 1, .75, .25, 0 with itself
    mask_KSS = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask_KSS[0, 0, 0] = True  # region of > 0.5 is four pixels but (1, 1) is .5625: 4 pixels; overlap 1 of 4
    mask_KSS[1, :, 0] = True  # 2 of 6 pixels
    mask_KSS[2, 1:, 1:] = True  # 1 of 12 pixels
    hit_CK = part_hits(x_CHW, torch.tensor([0.5]), weights_Sn, mask_KSS)
    assert hit_CK.tolist() == [[True, True, False]]
    assert part_hits(x_CHW, torch.tensor([1.0]), weights_Sn, mask_KSS).tolist() == [[False] * 3]


def test_exactly_a_fifth_is_no_hit():
    weights_Sn = torch.eye(5, dtype=torch.float64)  # cells are pixels
    x_CHW = torch.zeros(1, 5, 5)
    x_CHW[0, 0, 0] = 1.0
    mask_KSS = torch.zeros(2, 5, 5, dtype=torch.bool)
    mask_KSS[0, 0, :5] = True
    mask_KSS[1, 0, :4] = True
    assert part_hits(x_CHW, torch.zeros(1), weights_Sn, mask_KSS).tolist() == [[False, True]]


def test_a_part_counts_over_the_images_that_show_it():
    hit_NCK = torch.tensor([[[True, False]], [[False, False]], [[True, True]], [[False, False]]])
    shown_NK = torch.tensor([[True, False], [True, False], [True, True], [False, True]])
    assert part_interpretability(hit_NCK, shown_NK).per_filter_C.tolist() == [pytest.approx(2 / 3)]


def test_half_a_per_cent_of_the_cells_is_above_the_threshold():
    assert [values_above(*sizes) for sizes in ((1, 14), (2, 10), (200, 13), (1, 1))] == [0, 1, 169, 0]
    x_NCHW = torch.arange(400.0).reshape(2, 2, 10, 10)
    top_CM = top_values(x_NCHW, torch.full((2, 2), -torch.inf))
    assert top_CM.tolist() == [[299, 298], [399, 398]]


def test_boxes():
    boxes_KSS = part_boxes(torch.tensor([[2.0, 1.0], [0.0, math.nan]]), torch.tensor([[3.0, 2.0], [2.0, 2.0]]), 5)
    assert boxes_KSS[0].nonzero().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]]
    assert not boxes_KSS[1].any()
    assert not part_boxes(torch.zeros(1, 2), torch.full((1, 2), math.nan), 5).any()


def test_without_any_part_nothing_is_measured():
    found = part_interpretability(torch.zeros(3, 4, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool))
    assert found.dropped == 4 and math.isnan(found.mean)


def test_wrong_shapes_are_named():
    x_CHW, threshold_C, weights_Sn = torch.zeros(2, 4, 4), torch.zeros(2), torch.zeros(8, 4)
    with pytest.raises(ValueError, match=r"weights_Sn has shape \(8, 3\): expected \[8, 4\]"):
        part_hits(x_CHW, threshold_C, weights_Sn[:, :3], torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"masks_KSS has shape \(1, 8, 7\): expected \[1, 8, 8\]"):
        part_hits(x_CHW, threshold_C, weights_Sn, torch.zeros(1, 8, 7))
    with pytest.raises(ValueError, match=r"shown_NK has shape \(3, 1\): expected \[3, 2\]"):
        part_interpretability(torch.zeros(3, 4, 2, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.bool))
