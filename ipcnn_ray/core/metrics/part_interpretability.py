"""Part interpretability P_f: how often the region of a filter's top activations covers one part.

Symbols: N images, C filters, K parts, n x n maps, S x S pixels; positions are (row, col) in pixels.
A caller with many images takes, in a first look at the maps, `top_values`, in a second `part_hits`, and at the end
`part_interpretability`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import FilterMeasure, expect
from ipcnn_ray.core.receptive_field import Field, centers

TOP_SHARE, IOU = 0.005, 0.2
"""Share of a filter's cells that are above its threshold, and what intersection over union a hit is above."""
DIAMETER = 72 / 224
"""Of the round receptive field of a cell, as a share of the image's side."""


def values_above(images: int, n: int) -> int:
    """How many of a filter's cells may be above its threshold: 0.5 % of those of all images, rounded down."""
    return int(TOP_SHARE * images * n * n + 1e-9)


def top_values(x_NCHW: Tensor, known_CM: Tensor) -> Tensor:
    """The M largest of `known_CM` and of the cells of `x_NCHW`, largest first, as [C, M]; start from -inf."""
    return torch.cat([known_CM, x_NCHW.transpose(0, 1).flatten(1)], 1).topk(known_CM.shape[1], dim=1).values


def round_fields(field: Field, n: int, size: int, diameter: float) -> Tensor:
    """The pixels of the round receptive field of every cell, as [P, S, S] bool: those within half a `diameter` (pixels)
    of the centre of the cell's receptive field."""
    apart_nS = torch.arange(size, dtype=torch.float64) - centers(field, n)[:, None]
    square_nnSS = apart_nS.square()[:, None, :, None] + apart_nS.square()[None, :, None, :]
    return (square_nnSS <= (diameter / 2) ** 2).reshape(n * n, size, size)


def part_boxes(centers_K2: Tensor, sizes_K2: Tensor, size: int) -> Tensor:
    """Masks [K, S, S] bool of boxes of (height, width) pixels; empty for a part with a number that is NaN."""
    pixel_S = torch.arange(size, dtype=torch.float64)
    low_K2 = centers_K2.double() - sizes_K2.double() / 2
    high_K2 = centers_K2.double() + sizes_K2.double() / 2
    inside_K2S = (pixel_S >= low_K2[:, :, None]) & (pixel_S < high_K2[:, :, None])
    return inside_K2S[:, 0, :, None] & inside_K2S[:, 1, None, :]


def part_hits(x_CHW: Tensor, threshold_C: Tensor, fields_PSS: Tensor, masks_KSS: Tensor) -> Tensor:
    """Whether each filter's region in one image has an intersection over union above 0.2 with each part, [C, K] bool.

    x_CHW: maps after ReLU and mask. threshold_C: T_f. fields_PSS: of `round_fields`. masks_KSS: pixels of the parts,
    of any shape. The region is the union of the fields of the cells above the threshold.
    """
    C, n = x_CHW.shape[:2]
    size = fields_PSS.shape[-1]
    expect("fields_PSS", fields_PSS, (n * n, size, size))
    expect("masks_KSS", masks_KSS, (len(masks_KSS), size, size))
    above_CP = x_CHW.flatten(1) > threshold_C[:, None]
    hit_CK = torch.zeros(C, len(masks_KSS), dtype=torch.bool, device=x_CHW.device)
    live_C = above_CP.any(1)
    region_LX = (above_CP[live_C].float() @ fields_PSS.flatten(1).float() > 0).float()
    part_KX = masks_KSS.flatten(1).float()
    both_LK = region_LX @ part_KX.T
    either_LK = region_LX.sum(1, keepdim=True) + part_KX.sum(1) - both_LK
    hit_CK[live_C] = both_LK.double() > IOU * either_LK.double()
    return hit_CK


def part_interpretability(hit_NCK: Tensor, shown_NK: Tensor) -> FilterMeasure:
    """P_f = max over parts of the share of the images with the part in which the filter hits it; higher is better.

    hit_NCK: bool, of `part_hits`. shown_NK: bool, the image has the part. A filter that is zero everywhere has 0; no
    filter can be measured where no image has a part.

    Threshold: T_f with p(x > T_f) = 0.005 over all cells of all images. On average 0.005 n^2 cells of an image are
    above it (1 for n = 14, 0.8 for n = 13), so a small n bounds P_f from above.

    Source: Zhang et al., CVPR 2018, section 5.2.1 (the text of arXiv 1710.00935, with its footnote on receptive
    fields), after Bau et al., Network Dissection, CVPR 2017. As there: maps after ReLU and mask, images of the
    category, a round receptive field for each cell above the threshold, their union, the same for plain and
    interpretable networks.
    Deviations: the paper does not say how large a round field is; here its diameter is a share of the image's side,
    72 of 224 pixels, about the size that Zhou et al., ICLR 2015, measured for units of AlexNet's last convolution.
    The paper takes testing images alone; here `eval.images` says which. Where there are no part masks, the box around
    the landmark (`part_boxes`) takes the place of the mask; a box is larger than what is drawn in it, so values are
    not those with masks.
    """
    N, C, K = hit_NCK.shape
    expect("shown_NK", shown_NK, (N, K))
    hits_CK = (hit_NCK & shown_NK[:, None]).sum(0)
    shown_K = shown_NK.sum(0)
    rate_CK = torch.where(shown_K > 0, hits_CK / shown_K.double(), -1.0)
    per_filter_C = rate_CK.amax(1) if K else torch.full((C,), -1.0, dtype=torch.float64)
    return FilterMeasure(torch.where(per_filter_C < 0, torch.nan, per_filter_C))
