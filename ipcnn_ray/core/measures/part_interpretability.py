"""Part interpretability P_f: how often the region of a filter's top activations covers one part.

Symbols: N images, C filters, K parts, n x n maps, S x S pixels; positions are (row, col) in pixels.
A caller with many images takes, in a first look at the maps, `top_values`, in a second `part_hits`, and at the end
`part_interpretability`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.measures import FilterMeasure, expect
from ipcnn_ray.core.receptive_field import Field

TOP_SHARE, IOU = 0.005, 0.2
"""Share of a filter's cells that are above its threshold, and what intersection over union counts as a hit."""


def values_above(images: int, n: int) -> int:
    """How many of a filter's cells may be above its threshold: 0.5 % of those of all images, rounded down."""
    return int(TOP_SHARE * images * n * n + 1e-9)


def top_values(x_NCHW: Tensor, known_CM: Tensor) -> Tensor:
    """The M largest of `known_CM` and of the cells of `x_NCHW`, largest first, as [C, M]; start from -inf."""
    return torch.cat([known_CM, x_NCHW.transpose(0, 1).flatten(1)], 1).topk(known_CM.shape[1], dim=1).values


def to_pixels(field: Field, n: int, size: int) -> Tensor:
    """Weights [S, n] float64 with which the cells of a line of the map make up the pixels of a line of the image.

    Linear between the centres of neighbouring receptive fields; beyond the first and the last centre as there.
    """
    at_S = (torch.arange(size, dtype=torch.float64) - field.first_center) / field.stride
    apart_Sn = (at_S.clamp(0, n - 1)[:, None] - torch.arange(n, dtype=torch.float64)).abs()
    return (1 - apart_Sn).clamp(min=0)


def part_boxes(centers_K2: Tensor, sizes_K2: Tensor, size: int) -> Tensor:
    """Masks [K, S, S] bool of boxes of (height, width) pixels; empty for a part with a number that is NaN."""
    pixel_S = torch.arange(size, dtype=torch.float64)
    low_K2 = centers_K2.double() - sizes_K2.double() / 2
    high_K2 = centers_K2.double() + sizes_K2.double() / 2
    inside_K2S = (pixel_S >= low_K2[:, :, None]) & (pixel_S < high_K2[:, :, None])
    return inside_K2S[:, 0, :, None] & inside_K2S[:, 1, None, :]


def part_hits(x_CHW: Tensor, threshold_C: Tensor, weights_Sn: Tensor, masks_KSS: Tensor) -> Tensor:
    """Whether each filter's region in one image has an intersection over union above 0.2 with each part, [C, K] bool.

    x_CHW: maps after ReLU and mask. threshold_C: T_f. weights_Sn: of `to_pixels`. masks_KSS: pixels of the parts, of
    any shape. The region is where the map, scaled up, is above the threshold.
    """
    C, n = x_CHW.shape[:2]
    size = len(weights_Sn)
    expect("weights_Sn", weights_Sn, (size, n))
    expect("masks_KSS", masks_KSS, (len(masks_KSS), size, size))
    hit_CK = torch.zeros(C, len(masks_KSS), dtype=torch.bool, device=x_CHW.device)
    live = (x_CHW.amax((1, 2)) > threshold_C).nonzero()[:, 0]  # scaling up makes nothing larger
    if len(live):
        weights_Sn = weights_Sn.to(x_CHW)
        scaled = weights_Sn @ x_CHW[live] @ weights_Sn.T
        region_LP = (scaled > threshold_C[live, None, None]).flatten(1).float()
        part_KP = masks_KSS.flatten(1).to(region_LP)
        both_LK = region_LP @ part_KP.T
        either_LK = region_LP.sum(1, keepdim=True) + part_KP.sum(1) - both_LK
        hit_CK[live] = both_LK > IOU * either_LK
    return hit_CK


def part_interpretability(hit_NCK: Tensor, shown_NK: Tensor) -> FilterMeasure:
    """P_f = max over parts of the share of the images with the part in which the filter hits it; higher is better.

    hit_NCK: bool, of `part_hits`. shown_NK: bool, the image has the part. A filter that is zero everywhere has 0; no
    filter can be measured where no image has a part.

    Threshold: T_f with p(x > T_f) = 0.005 over all cells of all images. On average 0.005 n^2 cells of an image are
    above it (1 for n = 14, 0.8 for n = 13), so a small n bounds P_f from above: 0.005 n^2 where that is below 1 and
    the cells lie apart.

    Source: Zhang et al., CVPR 2018, section 5 (part interpretability), after Bau et al., Network Dissection, CVPR 2017.
    Deviations: "scaled up to the image resolution" is read as in Network Dissection: bilinear between the centres of
    the receptive fields, then the threshold. The images are those of the category, not also the negatives. Where there
    are no part masks, the box around the landmark (`part_boxes`) takes the place of the mask: boxes are larger, and
    values are lower than with masks for parts that fill little of their box.
    """
    N, C, K = hit_NCK.shape
    expect("shown_NK", shown_NK, (N, K))
    hits_CK = (hit_NCK & shown_NK[:, None]).sum(0)
    shown_K = shown_NK.sum(0)
    rate_CK = torch.where(shown_K > 0, hits_CK / shown_K.double(), -1.0)
    per_filter_C = rate_CK.amax(1) if K else torch.full((C,), -1.0, dtype=torch.float64)
    return FilterMeasure(torch.where(per_filter_C < 0, torch.nan, per_filter_C))
