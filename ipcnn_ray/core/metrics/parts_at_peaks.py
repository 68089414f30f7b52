"""Which landmarks lie in the square around a filter's peak: shared by consistency, stability and purity.

Symbols: N images, C filters, K landmarks; positions are (row, col) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import expect


def seen_NK(landmarks_NK2: Tensor) -> Tensor:
    """Whether each image shows each landmark: one coordinate that is NaN means that it does not."""
    if landmarks_NK2.ndim != 3 or landmarks_NK2.shape[2] != 2 or not landmarks_NK2.shape[1]:
        raise ValueError(f"landmarks_NK2 has shape {tuple(landmarks_NK2.shape)}: expected [N, K >= 1, 2]")
    return ~landmarks_NK2.isnan().any(2)


def parts_at_peaks(peaks_NC2: Tensor, landmarks_NK2: Tensor, half_side: float) -> Tensor:
    """Whether each landmark lies in the square of `half_side` pixels to each side of the peak, edges included.

    peaks_NC2: centre of the receptive field of each map's peak. landmarks_NK2: NaN where the image does not show the
    landmark, which then lies in no square. The answer is bool, [N, C, K].
    Raises ValueError for shapes that do not fit and for a half_side that is not positive.
    """
    known_NK = seen_NK(landmarks_NK2)
    if peaks_NC2.ndim != 3:
        raise ValueError(f"peaks_NC2 has shape {tuple(peaks_NC2.shape)}: expected [N, C, 2]")
    expect("peaks_NC2", peaks_NC2, (len(known_NK), peaks_NC2.shape[1], 2))
    if not half_side > 0:
        raise ValueError(f"half_side = {half_side}: expected a positive number of pixels")
    columns = []
    for k in range(known_NK.shape[1]):
        apart_NC2 = (peaks_NC2.double() - landmarks_NK2[:, k, None].double()).abs()
        columns.append((apart_NC2 <= half_side).all(2))  # NaN is never in
    return torch.stack(columns, 2)
