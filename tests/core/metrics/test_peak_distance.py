"""Distances between peaks: by hand and against loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from fakes.metrics import LAYER

from ipcnn_ray.core.metrics import peak_distance
from ipcnn_ray.core.metrics.filter_metric import LayerContext
from ipcnn_ray.core.metrics.peak_distance import PeakDistance, PeakSpread
from ipcnn_ray.core.receptive_field import Field

CELLS_OF_5 = LayerContext(image_size=50, map_side=8, field=Field(5, 9, 2.0))


def test_three_filters_by_hand():
    # In units of 5 pixels filter 1 is (3, 4) from filter 0, and filter 2 sits on filter 0; 50 pixels a side.
    image_C2 = torch.tensor([[2.0, 2.0], [17.0, 22.0], [2.0, 2.0]], dtype=torch.float64)
    found = PeakDistance(CELLS_OF_5).compute(torch.stack([image_C2, image_C2]))
    assert found.tolist() == pytest.approx([0.25, 0.5, 0.25])
    together = image_C2[:1].expand(3, 2)
    assert PeakDistance(CELLS_OF_5).compute(together[None]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("filters", [2, 9, 10, 40], ids=str)
@pytest.mark.parametrize("chunk", [1, 1 << 22], ids=["parts", "at once"])
def test_both_ways_agree_with_loops(monkeypatch, filters, chunk):
    """Up to nine filters on nine cells by pairs, more by counts of cells."""
    monkeypatch.setattr(peak_distance, "CHUNK", chunk)
    layer = LayerContext(image_size=30, map_side=3, field=Field(8, 9, 3.5))
    cells = torch.randint(0, 3, (7, filters, 2), generator=torch.Generator().manual_seed(1))
    peaks = cells.double() * 8 + 3.5
    expected = [
        statistics.mean(
            math.dist(image[c].tolist(), image[other].tolist()) / 30
            for image in peaks
            for other in range(filters)
            if other != c
        )
        for c in range(filters)
    ]
    assert PeakDistance(layer).compute(peaks).tolist() == pytest.approx(expected, rel=1e-12)


def test_one_filter_has_no_other():
    assert PeakDistance(LAYER).compute(torch.zeros(4, 1, 2)).isnan().tolist() == [True]


def test_spread_over_the_strongest_images_by_hand():
    # Of the two strongest images of filter 0 the peaks are 6 apart, 3 from their mean; filter 1 never moves.
    layer = LayerContext(image_size=60, map_side=8, field=Field(4, 9, 1.5), top_images=2)
    peaks = torch.tensor([[[0.0, 0], [9, 9]], [[0, 6], [9, 9]], [[50, 50], [9, 9]]]).double()
    activation = torch.tensor([[3.0, 1], [2, 1], [1, 1]])
    assert PeakSpread(layer).compute(peaks, activation).tolist() == [pytest.approx(3 / 60), 0]
    # An equal activation: the earlier image counts.
    assert PeakSpread(layer).compute(peaks, torch.ones(3, 2)).tolist() == [pytest.approx(3 / 60), 0]
