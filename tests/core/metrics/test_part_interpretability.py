"""P_f against numbers by hand and a loop over images, filters, parts and pixels."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import LayerContext, MetricResult
from ipcnn_ray.core.metrics.part_interpretability import PartInterpretability, part_hits
from ipcnn_ray.core.metrics.part_positions import part_boxes
from ipcnn_ray.core.receptive_field import Field, cells_above, discs, top_values

FIELD = Field(stride=4, size=9, first_center=1.5)
SIZE = 32
DIAMETER = 10.0
METRIC = PartInterpretability(LayerContext(SIZE, 8, FIELD), diameter=DIAMETER / SIZE)


def part_interpretability(hit_NCK: Tensor, shown_NK: Tensor) -> MetricResult:
    return MetricResult(METRIC.compute(hit_NCK, shown_NK))


def in_a_field(row: int, col: int, cells: list[tuple[int, int]], field: Field, diameter: float) -> bool:
    """Whether a pixel is in the round field of one of the cells."""
    middles = [(field.first_center + field.stride * r, field.first_center + field.stride * c) for r, c in cells]
    return any(math.dist((row, col), middle) <= diameter / 2 for middle in middles)


def slow(x_NCHW: Tensor, masks_NKSS: Tensor, shown_NK: Tensor, field: Field) -> list[float]:
    """P_f, one filter, part, image and pixel after the other."""
    N, C = x_NCHW.shape[:2]
    size, found = masks_NKSS.shape[-1], []
    for c in range(C):
        cells = sorted(x_NCHW[:, c].flatten().tolist(), reverse=True)
        threshold = cells[int(0.005 * len(cells) + 1e-9)]
        shares = []
        for k in range(masks_NKSS.shape[1]):
            hits = []
            for i in [i for i in range(N) if shown_NK[i, k]]:
                above = [(int(r), int(q)) for r, q in (x_NCHW[i, c] > threshold).nonzero()]
                pixels = product(range(size), repeat=2)
                region = {pixel for pixel in pixels if in_a_field(*pixel, above, field, DIAMETER)}
                part = {(row, col) for row, col in masks_NKSS[i, k].nonzero().tolist()}
                hits.append(bool(region | part) and len(region & part) / len(region | part) > 0.2)
            if hits:
                shares.append(sum(hits) / len(hits))
        found.append(max(shares) if shares else math.nan)
    return found


def fast(x_NCHW: Tensor, masks_NKSS: Tensor, shown_NK: Tensor, batch: int) -> MetricResult:
    N, C, n, _ = x_NCHW.shape
    top_CM = torch.full((C, cells_above(N, n) + 1), -torch.inf, dtype=x_NCHW.dtype)
    for start in range(0, N, batch):
        top_CM = top_values(x_NCHW[start : start + batch], top_CM)
    return part_interpretability(METRIC.update(x_NCHW, top_CM[:, -1], masks_NKSS), shown_NK)


def drawn(images: int = 10) -> tuple[Tensor, Tensor, Tensor]:
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
    assert 0 < expected[0] < 1 and expected[3] == 0
    for batch in (1, 4, 10):
        found = fast(x_NCHW, masks_NKSS, shown_NK, batch)
        assert found.per_filter_C.tolist() == pytest.approx(expected)


def test_by_hand():
    # 2 x 2 cells with centres at 1 and 4 of 6 pixels; a field of diameter 2 is a cross of five pixels.
    discs_PSS = discs(Field(3, 3, 1.0), 2, 6, 2.0)
    cross = [[0, 1], [1, 0], [1, 1], [1, 2], [2, 1]]
    assert discs_PSS[0].nonzero().tolist() == cross
    assert discs_PSS[1].nonzero().tolist() == [[row, col + 3] for row, col in cross]
    x_CHW = torch.zeros(2, 2, 2)
    x_CHW[0, 0] = torch.tensor([3.0, 2.0])  # the upper two cells are above 1: two crosses, ten pixels
    x_CHW[1, 0] = torch.tensor([3.0, 1.0])  # the first alone
    mask_KSS = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask_KSS[0, 1, :] = True  # 6 of 10 pixels, and 3 of 8
    mask_KSS[1, 1, 1] = True  # 1 of 10, and 1 of 5: exactly 0.2 is no hit
    assert part_hits(x_CHW, torch.ones(2), discs_PSS, mask_KSS).tolist() == [[True, False], [True, False]]
    mask_KSS[1, 1, 2] = True  # 2 of 10, and 2 of 5
    assert part_hits(x_CHW, torch.ones(2), discs_PSS, mask_KSS).tolist() == [[True, False], [True, True]]
    assert part_hits(x_CHW, torch.full((2,), 3.0), discs_PSS, mask_KSS).tolist() == [[False, False]] * 2


def test_a_part_counts_over_the_images_that_show_it():
    hit_NCK = torch.tensor([[[True, False]], [[False, False]], [[True, True]], [[False, False]]])
    shown_NK = torch.tensor([[True, False], [True, False], [True, True], [False, True]])
    assert part_interpretability(hit_NCK, shown_NK).per_filter_C.tolist() == [pytest.approx(2 / 3)]


def test_half_a_per_cent_of_the_cells_is_above_the_threshold():
    assert [cells_above(*sizes) for sizes in ((1, 14), (2, 10), (200, 13), (1, 1))] == [0, 1, 169, 0]
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
    x_CHW, threshold_C, discs_PSS = torch.zeros(2, 4, 4), torch.zeros(2), torch.zeros(16, 8, 8)
    with pytest.raises(ValueError, match=r"discs_PSS has shape \(15, 8, 8\): expected \[16, 8, 8\]"):
        part_hits(x_CHW, threshold_C, discs_PSS[1:], torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"masks_KSS has shape \(1, 8, 7\): expected \[1, 8, 8\]"):
        part_hits(x_CHW, threshold_C, discs_PSS, torch.zeros(1, 8, 7))
    with pytest.raises(ValueError, match=r"parts_shown_NK has shape \(3, 1\): expected \[3, 2\]"):
        part_interpretability(torch.zeros(3, 4, 2, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.bool))
