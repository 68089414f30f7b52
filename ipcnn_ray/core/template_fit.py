"""Fit a template to a part: its size and aspect on a dataset, as parameters of a template's shape.

Positions, sizes and masks are shares of the object's crop. The n cells of a map are taken to span the crop, so they
are shares of n as well. Mirror images change no size and no distance, and make every mean mask symmetric.
Deviations: the cells of a map lie a stride apart, and n strides are not always the crop: all of it in `compact` and
VGG-16 (16 * 4 of 64, 14 * 16 of 224 pixels), 208 of 227 in AlexNet, whose fitted templates are 8 % small.

N images, K landmarks. NaN: not shown, or not known.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_ASPECT = 4.0
"""Bound of the aspect, which could grow without limit for landmarks on one line."""


class HalfAxes(NamedTuple):
    """Half-axes of an upright ellipse, shares of n, and the number of images they were measured on."""

    rows: float
    cols: float
    images: int


def axes_of_sizes(sizes_N2: Tensor) -> HalfAxes:
    """Return half of the mean (height, width) of a part's box. Raises ValueError where no size is known."""
    known = sizes_N2[~sizes_N2.isnan().any(1)].double()
    if not len(known):
        raise ValueError("no size is known")
    rows, cols = (known.mean(0) / 2).tolist()
    return HalfAxes(rows, cols, len(known))


def axes_of_spacing(position_N2: Tensor, others_NK2: Tensor) -> HalfAxes:
    """Return an ellipse that reaches half-way to the nearest other landmark.

    Its area is that of the circle with half the root mean square distance from a part to the nearest other landmark
    of the same image. rows / cols is the ratio of the root mean square offsets, clipped to lie between 1 / MAX_ASPECT
    and MAX_ASPECT.
    Raises ValueError where the part is never shown together with another one. Source: ours.
    """
    offsets_NK2 = (others_NK2 - position_N2[:, None]).double()
    far_NK = offsets_NK2.norm(dim=2).nan_to_num(nan=torch.inf)
    near_N = far_NK.argmin(1)
    nearest_N2 = offsets_NK2[torch.arange(len(near_N)), near_N]
    known = nearest_N2[~nearest_N2.isnan().any(1)]
    if not len(known):
        raise ValueError("it is never seen together with another landmark")
    row, col = known.square().mean(0).sqrt().tolist()
    radius = (row**2 + col**2) ** 0.5 / 2
    if radius == 0:
        raise ValueError("it lies on another landmark in every image")
    ratio = min(max(row / col if col else MAX_ASPECT, 1 / MAX_ASPECT), MAX_ASPECT)
    return HalfAxes(radius * ratio**0.5, radius / ratio**0.5, len(known))


def ellipse_of(axes: HalfAxes) -> dict[str, float]:
    """Return beta, aspect and angle of the `ellipse` shape that is 0 on these half-axes."""
    long, short = max(axes.rows, axes.cols), min(axes.rows, axes.cols)
    return {"beta": (long * short) ** -0.5, "aspect": long / short, "angle": 90.0 if axes.rows > axes.cols else 0.0}


def table_of_mask(mean_GG: Tensor, span: float) -> tuple[Tensor, float]:
    """Return `values` and `extent` of the `mask` shape of a mean part mask.

    mean_GG: share of images in which the part covers an offset from the centre of its box; G is odd, and the offsets
    go from -span to span, shares of n. The values are 2 m / max(m) - 1, where m is the mean of the mask and its mirror
    image: 1 where the part is most frequent, 0 where it is half as frequent. Borders below 1 % of the maximum are cut
    off. Raises ValueError for a mask that is zero everywhere.
    """
    m_GG = (mean_GG.double() + mean_GG.double().flip(1)) / 2
    if not bool((m_GG > 0).any()):
        raise ValueError("its mean mask is empty")
    m_GG = m_GG / m_GG.max()
    middle = len(m_GG) // 2
    reach = int((torch.nonzero(m_GG >= 0.01) - middle).abs().max())
    cut = m_GG[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    return 2 * cut - 1, len(cut) * span / middle
