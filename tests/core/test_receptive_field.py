"""Receptive fields against numbers by hand, torch's own pooling, and what a cell really sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipcnn_ray.core.receptive_field import Field, Window, centers, map_side, receptive_field

ALEXNET = [  # Caffe's, to the appended sixth convolution
    Window(11, 4),
    Window(3, 2, ceil=True),
    Window(5, 1, 2),
    Window(3, 2, ceil=True),
    *[Window(3, 1, 1)] * 4,
]


def test_no_window_sees_one_pixel():
    assert receptive_field([]) == Field(stride=1, size=1, first_center=0.0)


def test_two_windows_by_hand():
    # 5 x 5, stride 2, pad 2: centre 0, size 5. Pooling 2 x 2, stride 2: centre 0 + 0.5 * 2 = 1, size 5 + 2 = 7.
    assert receptive_field([Window(5, 2, 2), Window(2, 2)]) == Field(stride=4, size=7, first_center=1.0)


def test_alexnet_by_hand():
    # conv1 5; pool1 5 + 4 = 9; conv2 9 (5 x 5 with pad 2 keeps it); pool2 9 + 8 = 17; 3 x 3 with pad 1 keep it.
    # Sizes 11, 19, 51, 67, then 3 x 3 convolutions of stride 16: 99, 131, 163, 195.
    assert receptive_field(ALEXNET) == Field(stride=16, size=195, first_center=17.0)
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
    layers = []
    for window in windows:
        conv = nn.Conv2d(1, 1, window.kernel, window.stride, window.pad, bias=False, dtype=torch.float64)
        nn.init.ones_(conv.weight)
        layers.append(conv)
    image = torch.ones(1, 1, 63, 63, dtype=torch.float64, requires_grad=True)
    out = nn.Sequential(*layers)(image)
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
