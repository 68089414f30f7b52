"""Sizes of parts by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ipcnn_ray.core.template_fit import HalfAxes, axes_of_sizes, axes_of_spacing, ellipse_of, table_of_mask
from ipcnn_ray.core.templates import part_templates

NAN = math.nan


def test_half_of_the_mean_size_of_what_is_known():
    sizes = torch.tensor([[0.2, 0.5], [NAN, NAN], [0.4, 0.3]])
    found = axes_of_sizes(sizes)
    assert found.images == 2
    assert (found.rows, found.cols) == pytest.approx((0.15, 0.2))
    with pytest.raises(ValueError, match="no size is known"):
        axes_of_sizes(sizes[1:2])


def test_half_way_to_the_nearest_other_landmark():
    # Nearest offsets: (0.3, 0.1) in the first image, (0.1, -0.3) in the second, none in the third and fourth.
    # Both root mean squares are sqrt(0.05): a circle with half of sqrt(0.1).
    place = torch.tensor([[0.2, 0.2], [0.5, 0.5], [NAN, NAN], [0.1, 0.1]], dtype=torch.float64)
    others = [[[0.5, 0.3], [0.9, 0.9]], [[NAN, NAN], [0.6, 0.2]], [[0.5, 0.3], [0.9, 0.9]], [[NAN, NAN], [NAN, NAN]]]
    others = torch.tensor(others, dtype=torch.float64)
    found = axes_of_spacing(place, others)
    assert found.images == 2
    assert (found.rows, found.cols) == pytest.approx((math.sqrt(0.1) / 2,) * 2)


def test_landmarks_on_one_line_give_the_longest_ellipse_not_a_thread():
    place, others = torch.zeros(3, 2), torch.tensor([0.0, 0.4]).expand(3, 1, 2)
    found = axes_of_spacing(place, others)
    assert (found.rows, found.cols) == pytest.approx((0.1, 0.4))
    assert axes_of_spacing(place.flip(1), others.flip(2))[:2] == pytest.approx((0.4, 0.1))
    with pytest.raises(ValueError, match="it is never seen together with another landmark"):
        axes_of_spacing(place, others * NAN)
    with pytest.raises(ValueError, match="it lies on another landmark in every image"):
        axes_of_spacing(place, others * 0)


@pytest.mark.parametrize("axes", [HalfAxes(0.25, 0.5, 1), HalfAxes(0.5, 0.25, 1), HalfAxes(0.25, 0.25, 1)])
def test_the_ellipse_is_zero_on_its_half_axes(axes):
    unit = part_templates(12, shape="ellipse", **ellipse_of(axes), tau=1.0, dtype=torch.float64)
    assert float(unit[0, round(12 * axes.rows), 0]) == pytest.approx(0, abs=1e-12)
    assert float(unit[0, 0, round(12 * axes.cols)]) == pytest.approx(0, abs=1e-12)


def test_a_mean_mask_becomes_a_symmetric_table_cut_to_what_is_there():
    mean = torch.zeros(9, 9)
    mean[4, 3:6] = torch.tensor([0.2, 0.8, 0.6])  # mirrored with itself: 0.4, 0.8, 0.4
    mean[3, 4] = 0.2
    mean[0, 0] = 0.001
    values, extent = table_of_mask(mean, 1.0)
    expected = torch.tensor([[-1, -0.5, -1], [0, 1, 0], [-1, -1, -1]], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    assert extent == pytest.approx(3 / 4)  # a step of the table is 1 / 4 of the crop
    with pytest.raises(ValueError, match="its mean mask is empty"):
        table_of_mask(mean * NAN, 1.0)


def test_a_disc_comes_back_at_every_map_side():
    """A disc of radius 0.25: its table is 1 inside, -1 outside, and so is its template, but for the rim's cells."""
    axis = torch.arange(-32, 33) / 32
    far = (axis[:, None].square() + axis[None].square()).sqrt()
    values, extent = table_of_mask((far <= 0.25).double(), 1.0)
    for n in (6, 13, 14, 16):
        unit = part_templates(n, shape="mask", values=values, extent=extent, tau=1.0)
        offsets = part_templates(n, shape="gradient", norm="l2", beta=1.0, tau=1.0)
        inside, outside = 1 - offsets < 0.25 - 1 / 32, (1 - offsets > 0.25 + 1 / 16) & (offsets > -1)
        assert bool((unit[inside] == 1).all()) and bool((unit[outside] == -1).all())
