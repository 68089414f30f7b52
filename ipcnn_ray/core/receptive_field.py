"""Where in the image a cell of a map looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A convolution or pooling as geometry: square `kernel`, `stride` and `pad` in cells of its input."""

    kernel: int
    stride: int = 1
    pad: int = 0
    ceil: bool = False
    """A window that overhangs the far edge counts (pooling in Caffe)."""


@dataclass(frozen=True)
class Field:
    """Receptive fields of a layer, in image pixels, 0-based."""

    stride: int
    """Distance between the centres of neighbouring cells."""
    size: int
    """Side of the square that a cell sees."""
    first_center: float
    """Centre of cell 0; a half for fields of even size."""


def receptive_field(windows: Sequence[Window]) -> Field:
    """The receptive fields of a layer behind `windows`, given from the image up.

    The centre of cell (row, col) is (first_center + stride * row, first_center + stride * col).
    Deviations: the released `getConvNetPara` gives the same stride and (1-based) centre, but a size that is too
    large behind a convolution of stride > 1.
    """
    stride, size, first = 1, 1, 0.0
    for window in windows:
        first += ((window.kernel - 1) / 2 - window.pad) * stride
        size += (window.kernel - 1) * stride
        stride *= window.stride
    return Field(stride, size, first)


def map_side(image_size: int, windows: Sequence[Window]) -> int:
    """Side in cells of the map behind `windows` for a square image of `image_size` pixels."""
    side = image_size
    for window in windows:
        room = side + 2 * window.pad - window.kernel
        if room < 0:
            raise ValueError(f"image_size = {image_size}: a map of {side} cells is smaller than its {window}")
        steps = math.ceil(room / window.stride) if window.ceil else room // window.stride
        if window.ceil and steps * window.stride >= side + window.pad:
            steps -= 1  # a window must start inside the input or its left padding
        side = steps + 1
    return side


def centers(field: Field, n: int) -> Tensor:
    """Pixel centres of cells 0 to n - 1 along one axis, as [n] float64."""
    return field.first_center + field.stride * torch.arange(n, dtype=torch.float64)
