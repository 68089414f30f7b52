"""The distances behind one filter's location instability, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LandmarkDistances:
    """From a filter's peak to the landmarks, as fractions of the image diagonal."""

    distance_NK: Tensor
    """float64; NaN where the image does not show the landmark."""
    counted_NK: Tensor
    """bool: the image is one of the strongest, and its distance enters the deviation."""
    mean_K: Tensor
    """Mean of the counted distances; NaN when none is counted."""
    deviation_K: Tensor
    """Standard deviation (N - 1) of the counted distances; NaN below two. Their mean over the landmarks is the
    filter's location instability."""


def landmark_distances(
    peaks_N2: Tensor, activation_N: Tensor, landmarks_NK2: Tensor, diagonal: float, *, top_images: int = 100
) -> LandmarkDistances:
    """The distances of one filter: what `location_instability` reduces to a number.

    peaks_N2: centre of the receptive field of the map's peak, (row, col) in pixels. activation_N: value at the peak.
    landmarks_NK2: NaN where the image does not show the landmark. diagonal: of the image, pixels. Of the images that
    show a landmark the `top_images` with the strongest activation count (ties: the earlier image).
    With several categories, the images are those of the filter's own.

    Source: Zhang et al., CVPR 2018, section 5. Deviations: none.
    Raises ValueError for shapes that do not fit.
    """
    N, K = landmarks_NK2.shape[:2]
    if tuple(peaks_N2.shape) != (N, 2) or tuple(activation_N.shape) != (N,):
        shapes = f"{tuple(peaks_N2.shape)}, {tuple(activation_N.shape)}"
        raise ValueError(f"peaks_N2 and activation_N have shapes {shapes}: expected [{N}, 2] and [{N}]")
    distance_NK = (peaks_N2.double()[:, None] - landmarks_NK2.double()).norm(dim=2) / diagonal
    counted_NK = torch.zeros(N, K, dtype=torch.bool)
    order_N = activation_N.argsort(descending=True, stable=True)
    mean_K = torch.full((K,), torch.nan, dtype=torch.float64)
    deviation_K = mean_K.clone()
    for k in range(K):
        shown_N = ~distance_NK[order_N, k].isnan()
        strongest = order_N[shown_N][:top_images]
        counted_NK[strongest, k] = True
        if len(strongest):
            mean_K[k] = distance_NK[strongest, k].mean()
        if len(strongest) > 1:
            deviation_K[k] = distance_NK[strongest, k].std(correction=1)
    return LandmarkDistances(distance_NK, counted_NK, mean_K, deviation_K)
