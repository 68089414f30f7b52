"""Random crops, mirror images and colours, against one image after the other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ipcnn_ray.data.augmentation import DRAWS, colored, cropped, draws, mirrors

MIRROR, AREA, ROW, COL, BRIGHTNESS, CONTRAST, SATURATION = range(DRAWS)


def images(count: int, side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 255


def numbers(**columns: float) -> Tensor:
    """The draws of one image: 0.5 but for these."""
    drawn = torch.full((1, DRAWS), 0.5)
    for name, value in columns.items():
        drawn[0, globals()[name.upper()]] = value
    return drawn


def pixel(image: Tensor, row: float, col: float) -> Tensor:
    """Bilinear interpolation at a position in pixels, 0 the centre of the first."""
    side = image.shape[-1]
    total = torch.zeros(3)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(col), math.floor(col) + 1):
            weight = (1 - abs(row - r)) * (1 - abs(col - c))
            total += weight * image[:, min(max(r, 0), side - 1), min(max(c, 0), side - 1)]
    return total


def test_a_crop_of_the_whole_image_is_the_image():
    x = images(5)
    assert cropped(x, draws(5, 0, 1), (1.0, 1.0)) is x
    assert colored(x, draws(5, 0, 1), 0.0) is x


def test_a_quarter_in_each_corner_by_hand():
    """A quarter of the area of 4 x 4 pixels is 2 x 2 of them; each becomes 2 x 2, blended at their borders."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4).contiguous()
    for row, col in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        crop = cropped(x, numbers(row=row, col=col), (0.25, 0.25))
        first = 8 * row + 2 * col  # the pixel in the corner of the square
        assert crop[0, 0, 1, 1] == first + 0.25 * 1 + 0.25 * 4
        assert crop[0, 0, 2, 2] == first + 0.75 * 1 + 0.75 * 4
    assert cropped(x, numbers(row=0.0, col=0.0), (0.25, 0.25))[0, 0, 0, 0] == 0  # the edge repeats outside the image


def test_crops_are_those_of_a_loop_over_pixels():
    x, drawn = images(6), draws(6, 3, 2)
    crops = cropped(x, drawn, (0.3, 0.9))
    for image, crop, d in zip(x, crops, drawn.tolist(), strict=True):
        side = 12 * math.sqrt(0.3 + 0.6 * d[AREA])
        top, left = (12 - side) * d[ROW], (12 - side) * d[COL]
        for row in range(12):
            for col in range(12):
                expected = pixel(image, top + (row + 0.5) / 12 * side - 0.5, left + (col + 0.5) / 12 * side - 0.5)
                torch.testing.assert_close(crop[:, row, col], expected, rtol=1e-5, atol=1e-3)


def test_colours_are_those_of_torchvision_image_by_image():
    x, drawn = images(6), draws(6, 3, 2)
    jittered = colored(x, drawn, 0.4)
    for image, result, d in zip(x, jittered, drawn.tolist(), strict=True):
        factors = [1 + 0.4 * (2 * d[k] - 1) for k in (BRIGHTNESS, CONTRAST, SATURATION)]
        expected = tv.adjust_brightness(image / 255, factors[0])
        expected = tv.adjust_saturation(tv.adjust_contrast(expected, factors[1]), factors[2])
        torch.testing.assert_close(result, 255 * expected, rtol=1e-4, atol=1e-2)
    assert float(jittered.min()) >= 0 and float(jittered.max()) <= 255
    assert not torch.allclose(jittered, x, atol=1)


@pytest.mark.parametrize("column", ["brightness", "contrast", "saturation"])
def test_each_colour_by_hand(column):
    """Factor 1.4 on grey pixels of 50 and 150."""
    x = torch.tensor([50.0, 150.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    expected = {"brightness": [70, 210], "contrast": [30, 170], "saturation": [50, 150]}[column]
    result = colored(x, numbers(**{column: 1.0}), 0.4)
    torch.testing.assert_close(result[0, 2, 0], torch.tensor(expected).float(), rtol=1e-3, atol=1e-2)


def test_draws_depend_on_seed_epoch_and_item_alone():
    drawn = draws(50, 1, 4)
    assert torch.equal(drawn, draws(50, 1, 4))
    assert not torch.equal(drawn, draws(50, 2, 4)) and not torch.equal(drawn, draws(50, 1, 5))
    assert len(drawn.unique(dim=0)) == 50
    assert 15 < int(mirrors(drawn).sum()) < 35


def test_an_image_does_not_depend_on_its_batch():
    x, drawn = images(8), draws(8, 0, 1)
    whole = colored(cropped(x, drawn, (0.5, 1.0)), drawn, 0.3)
    halves = [colored(cropped(x[part], drawn[part], (0.5, 1.0)), drawn[part], 0.3) for part in (slice(3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-4)
