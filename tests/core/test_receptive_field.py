"""Receptive fields, and the region of an activation, against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ipcnn_ray.core.receptive_field import Field, Window, activation_region, centers, discs, map_side, receptive_field

POOL = Window(3, 2, ceil=True)
ALEXNET = [Window(11, 4), POOL, Window(5, 1, 2), POOL, *[Window(3, 1, 1)] * 4]
"""Caffe's, to the appended sixth convolution."""


@pytest.mark.parametrize(
    ("windows", "field"),
    [
        ([], Field(stride=1, size=1, first_center=0.0)),
        # 5 x 5, stride 2, pad 2: centre 0, size 5. Pooling 2 x 2, stride 2: centre 0 + 0.5 * 2 = 1, size 5 + 2 = 7.
        ([Window(5, 2, 2), Window(2, 2)], Field(stride=4, size=7, first_center=1.0)),
        # conv1 5; pool1 5 + 4 = 9; conv2 9 (5 x 5 with pad 2 keeps it); pool2 9 + 8 = 17; 3 x 3 with pad 1 keep it.
        # Sizes 11, 19, 51, 67, then 3 x 3 convolutions of stride 16: 99, 131, 163, 195.
        (ALEXNET, Field(stride=16, size=195, first_center=17.0)),
    ],
)
def test_fields_by_hand(windows, field):
    assert receptive_field(windows) == field
    assert map_side(227, ALEXNET) == 13


def test_cell_zero_is_at_the_first_centre():
    field = Field(stride=16, size=195, first_center=17.0)
    assert centers(field, 13)[0].item() == 17.0
    assert centers(field, 3).tolist() == [17.0, 33.0, 49.0]
    assert centers(Field(16, 212, 7.5), 2).tolist() == [7.5, 23.5]
    assert centers(field, 13).dtype == torch.float64


@pytest.mark.parametrize(
    "windows",
    [
        [Window(3, 1, 1), Window(2, 2), Window(3, 1, 1)],
        [Window(5, 2, 2), Window(3, 1), Window(2, 2), Window(3, 1)],
        [Window(7, 2), Window(3, 2), Window(5, 2, 1)],
    ],
)
def test_field_is_what_the_gradient_of_a_cell_reaches(windows):
    image = torch.ones(1, 1, 63, 63, dtype=torch.float64, requires_grad=True)
    out = image
    for window in windows:
        ones = torch.ones(1, 1, window.kernel, window.kernel, dtype=torch.float64)
        out = nn.functional.conv2d(out, ones, stride=window.stride, padding=window.pad)
    n = out.shape[-1]
    assert map_side(63, windows) == n
    field = receptive_field(windows)
    middle = n // 2
    (reached,) = torch.autograd.grad(out[0, 0, middle, middle], image)
    rows = reached[0, 0].sum(1).nonzero().flatten()
    assert len(rows) == field.size
    assert (rows[0] + rows[-1]).item() / 2 == centers(field, n)[middle].item()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 3, 0), (2, 3, 1), (4, 4, 0)]
)
def test_map_side_is_torchs(kernel, stride, pad, ceil):
    pool = nn.MaxPool2d(kernel, stride, pad, ceil_mode=ceil)
    for side in range(5, 40):
        assert map_side(side, [Window(kernel, stride, pad, ceil)]) == pool(torch.zeros(1, 1, side, side)).shape[-1]


def test_an_image_that_is_too_small_is_named():
    with pytest.raises(ValueError, match=r"image_size = 12: a map of 1 cells is smaller than its Window\(kernel=3"):
        map_side(12, ALEXNET)


FIELD = Field(stride=2, size=5, first_center=1.0)


def test_by_hand():
    """Cells of a 2 x 2 map are centred on pixels 1 and 3 of 5; a disc of diameter 2 is a pixel and its 4 neighbours."""
    x_nn = torch.tensor([[0.2, 0.5], [0.0, 0.9]])
    region = activation_region(x_nn, 0.5, FIELD, 5, 2.0)
    one_cell = ["00000", "00000", "00010", "00111", "00010"]
    assert ["".join(str(int(pixel)) for pixel in row) for row in region.tolist()] == one_cell
    region = activation_region(x_nn, 0.4, FIELD, 5, 2.0)  # cell (0, 1), too: its disc meets the other in (2, 3)
    two_cells = ["00010", "00111", "00010", "00111", "00010"]
    assert ["".join(str(int(pixel)) for pixel in row) for row in region.tolist()] == two_cells
    assert not activation_region(x_nn, 0.9, FIELD, 5, 2.0).any()


def slow(x_nn: torch.Tensor, threshold: float, field: Field, size: int, diameter: float) -> list[list[bool]]:
    """Every pixel looks at every cell above the threshold."""
    cells = [(int(r), int(c)) for r, c in (x_nn > threshold).nonzero()]
    centres = [(field.first_center + field.stride * r, field.first_center + field.stride * c) for r, c in cells]

    def inside(row: int, col: int) -> bool:
        return any(math.dist((row, col), centre) <= diameter / 2 for centre in centres)

    return [[inside(row, col) for col in range(size)] for row in range(size)]


@pytest.mark.parametrize(("field", "diameter"), [(FIELD, 5.0), (Field(3, 7, -0.5), 7.3), (Field(2, 4, 0.5), 40.0)])
def test_as_the_slow_twin(field, diameter):
    x_nn = torch.rand(6, 6, generator=torch.Generator().manual_seed(1))
    region = activation_region(x_nn, 0.8, field, 17, diameter)
    assert region.any()
    assert region.tolist() == slow(x_nn, 0.8, field, 17, diameter)


def test_it_is_the_region_that_part_interpretability_measures():
    x_nn = torch.rand(6, 6, generator=torch.Generator().manual_seed(2))
    discs_PSS = discs(FIELD, 6, 17, 5.0)
    union = discs_PSS[(x_nn > 0.7).flatten()].any(0)
    assert torch.equal(activation_region(x_nn, 0.7, FIELD, 17, 5.0), union)


def test_wrong_shapes_and_sizes():
    with pytest.raises(ValueError, match=r"x_nn has shape \(2, 3\): expected \[n, n\]"):
        activation_region(torch.zeros(2, 3), 0.0, FIELD, 5, 2.0)
    with pytest.raises(ValueError, match="size = 5, diameter = 0: expected positive numbers of pixels"):
        activation_region(torch.zeros(2, 2), 0.0, FIELD, 5, 0)
