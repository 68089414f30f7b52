"""The region of a filter's strong cells by hand, and against a loop over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from ipcnn_ray.core.receptive_field import Field, activation_region, discs

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
    """Every pixel looks at every cell."""
    n = len(x_nn)
    rows = []
    for row in range(size):
        line = []
        for col in range(size):
            inside = False
            for r in range(n):
                for c in range(n):
                    centre = (field.first_center + field.stride * r, field.first_center + field.stride * c)
                    if float(x_nn[r, c]) > threshold and math.dist((row, col), centre) <= diameter / 2:
                        inside = True
            line.append(inside)
        rows.append(line)
    return rows


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
