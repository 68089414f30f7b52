"""Parts of an image: which are shown, which lie at a filter's peak, and the boxes of those with a size.

Symbols: N images, C filters, K landmarks, S x S pixels; positions are (row, col) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import check_shape


def landmarks_shown(landmarks_NK2: Tensor) -> Tensor:
    """Whether each image shows each landmark, [N, K] bool: a coordinate that is NaN means that it does not."""
    if landmarks_NK2.ndim != 3 or landmarks_NK2.shape[2] != 2 or not landmarks_NK2.shape[1]:
        raise ValueError(f"landmarks_NK2 has shape {tuple(landmarks_NK2.shape)}: expected [N, K >= 1, 2]")
    return ~landmarks_NK2.isnan().any(2)


def parts_at_peaks(peaks_NC2: Tensor, landmarks_NK2: Tensor, half_side: float) -> Tensor:
    """Whether each landmark lies in the square of `half_side` pixels to each side of the peak, as [N, C, K] bool.

    The edges belong to the square. peaks_NC2: centre of the receptive field of each map's peak. landmarks_NK2: NaN
    where the image does not show the landmark, which then lies in no square.
    Raises ValueError for shapes that do not fit and for a half_side that is not positive.
    """
    shown_NK = landmarks_shown(landmarks_NK2)
    if peaks_NC2.ndim != 3:
        raise ValueError(f"peaks_NC2 has shape {tuple(peaks_NC2.shape)}: expected [N, C, 2]")
    check_shape("peaks_NC2", peaks_NC2, (len(shown_NK), peaks_NC2.shape[1], 2))
    if not half_side > 0:
        raise ValueError(f"half_side = {half_side}: expected a positive number of pixels")
    columns = []
    for k in range(shown_NK.shape[1]):
        apart_NC2 = (peaks_NC2.double() - landmarks_NK2[:, k, None].double()).abs()
        columns.append((apart_NC2 <= half_side).all(2))  # NaN is never inside
    return torch.stack(columns, 2)


def part_boxes(centers_K2: Tensor, sizes_K2: Tensor, size: int) -> Tensor:
    """Masks [K, S, S] bool of boxes of (height, width) pixels; empty for a part with a number that is NaN."""
    pixel_S = torch.arange(size, dtype=torch.float64)
    low_K2 = centers_K2.double() - sizes_K2.double() / 2
    high_K2 = centers_K2.double() + sizes_K2.double() / 2
    inside_K2S = (pixel_S >= low_K2[:, :, None]) & (pixel_S < high_K2[:, :, None])
    return inside_K2S[:, 0, :, None] & inside_K2S[:, 1, None, :]
