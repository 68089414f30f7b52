"""Receptive fields: the pixels of the image that a cell of a map depends on, and those of a filter's strongest cells.

The activation threshold T_f of network dissection is the value that a filter's strongest cells are above. Take
`top_values` of one batch after the other with M = `cells_above` + 1; the threshold is the last column.
Source: Bau et al., Network Dissection, CVPR 2017; Zhang et al., CVPR 2018, section 5.2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DISC_DIAMETER = 72 / 224
"""Diameter of the round receptive field of a cell, as a share of the image's side: see `PartInterpretability`."""
TOP_SHARE = 0.005


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pooling: square `kernel`, `stride` and `pad` in cells of its input."""

    kernel: int
    stride: int = 1
    pad: int = 0
    ceil: bool = False
    """Whether a window that overhangs the far edge counts (pooling in Caffe)."""
    whole: bool = False
    """Whether a cell depends on all other cells, too (squeeze-and-excitation, attention)."""


@dataclass(frozen=True)
class Field:
    """Receptive fields of a layer, in image pixels, 0-based."""

    stride: int
    """Distance between the centres of neighbouring cells."""
    size: int
    """Side of the square that a cell depends on; where `whole`, that it depends on most."""
    first_center: float
    """Centre of cell 0; a half-integer for fields of even size."""
    whole: bool = False
    """Whether a cell depends on the whole input (squeeze-and-excitation, attention)."""


def receptive_field(windows: Sequence[Window]) -> Field:
    """Return the receptive fields of a layer after `windows`, which are given from the image up.

    The centre of cell (row, col) is (first_center + stride * row, first_center + stride * col).
    Deviations: the released `getConvNetPara` gives the same stride and (1-based) centre, but a size that is too
    large after a convolution of stride > 1.
    """
    stride, size, first = 1, 1, 0.0
    for window in windows:
        first += ((window.kernel - 1) / 2 - window.pad) * stride
        size += (window.kernel - 1) * stride
        stride *= window.stride
    return Field(stride, size, first, any(window.whole for window in windows))


def map_side(image_size: int, windows: Sequence[Window]) -> int:
    """Side in cells of the map after `windows`, for a square image of `image_size` pixels."""
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


def peak_positions(peak_NC: Tensor, field: Field, n: int) -> Tensor:
    """(row, col) in pixels, [N, C, 2] float64, of the centres of the receptive fields of cells row * n + col."""
    center_n = centers(field, n)
    return torch.stack([center_n[peak_NC // n], center_n[peak_NC % n]], 2)


def discs(field: Field, n: int, size: int, diameter: float) -> Tensor:
    """The round receptive field of every cell, as [P, size, size] bool: the pixels within half a `diameter` (pixels)
    of the centre of the cell's receptive field."""
    apart_nS = torch.arange(size, dtype=torch.float64) - centers(field, n)[:, None]
    square_nnSS = apart_nS.square()[:, None, :, None] + apart_nS.square()[None, :, None, :]
    return (square_nnSS <= (diameter / 2) ** 2).reshape(n * n, size, size)


def cells_above(images: int, n: int) -> int:
    """Number of cells of a filter's n x n maps that may be above T_f: 0.5 % of those of all images, rounded down."""
    return int(TOP_SHARE * images * n * n + 1e-9)


def top_values(x_NCHW: Tensor, known_CM: Tensor) -> Tensor:
    """The M largest values of `known_CM` and of the cells of `x_NCHW`, largest first, as [C, M]; start from -inf."""
    return torch.cat([known_CM, x_NCHW.transpose(0, 1).flatten(1)], 1).topk(known_CM.shape[1], dim=1).values


def activation_region(x_nn: Tensor, threshold: float, field: Field, size: int, diameter: float) -> Tensor:
    """The image-resolution receptive field of the activation above a threshold, [size, size] bool, on the CPU.

    x_nn: one filter's map in one image, after ReLU and mask. threshold: T_f. field: receptive fields of
    the map's cells. size: side of the image, pixels. diameter: of a cell's round receptive field, pixels.

    Nothing is interpolated. A pixel (row, col) belongs to the region when it lies within half a `diameter` of the
    centre of the receptive field of a cell above the threshold, the circle included. The region is the union of these
    discs, and empty where no cell is above the threshold.

    Source: Zhang et al., CVPR 2018, section 5.2.1 with its footnote on receptive fields: round fields, overlapped, so
    that plain and interpretable networks are shown alike. `PartInterpretability` measures the same region.
    Threshold: the paper's top 0.5 %; the released `step_drawRF` takes 0.3 %.
    Deviations: for its figures the paper estimates the shape of a filter's field by covering patches of its strongest
    images (Zhou et al., ICLR 2015; 33 pixels, steps of 9 in the released code), which needs contours that agree from
    image to image and so cannot be done for every filter of a plain network; here the disc replaces that shape.
    Raises ValueError for a map that is not square, and sizes that are not positive.
    """
    if x_nn.ndim != 2 or x_nn.shape[0] != x_nn.shape[1]:
        raise ValueError(f"x_nn has shape {tuple(x_nn.shape)}: expected [n, n]")
    if size < 1 or not diameter > 0:
        raise ValueError(f"size = {size}, diameter = {diameter}: expected positive numbers of pixels")
    center_n = centers(field, len(x_nn))
    pixel_S = torch.arange(size, dtype=torch.float64)
    square_nS = (pixel_S - center_n[:, None]).square()
    region_SS = torch.zeros(size, size, dtype=torch.bool)
    for row, col in (x_nn > threshold).nonzero().tolist():
        region_SS |= square_nS[row][:, None] + square_nS[col] <= (diameter / 2) ** 2
    return region_SS
