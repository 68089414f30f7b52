"""Location instability: how much the distance from a filter's peak to the landmarks varies over images.

Symbols: N images, C filters, K landmarks; positions are (row, col) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LocationInstability:
    """The measure, as fractions of the image diagonal; lower is better."""

    mean: float
    """Mean over the filters that could be measured; NaN when none could."""
    per_filter_C: Tensor
    """One number per filter; NaN for a filter that was dropped."""
    deviation_CK: Tensor
    """One deviation per filter and landmark, as a fraction of the diagonal; NaN below two images."""

    @property
    def dropped(self) -> int:
        """Filters that could not be measured."""
        return int(self.per_filter_C.isnan().sum())


def location_instability(
    peaks_NC2: Tensor, activation_NC: Tensor, landmarks_NK2: Tensor, diagonal: float, *, top_images: int = 100
) -> LocationInstability:
    """Location instability of C filters.

    peaks_NC2: centre of the receptive field of each map's peak. activation_NC: value at the peak.
    landmarks_NK2: position of each landmark, NaN where the image does not show it. diagonal: of the image, pixels.
    Per filter and landmark: of the images that show the landmark, the `top_images` with the strongest activation
    (ties: the earlier image); the standard deviation (N - 1) of the distance; then the mean over landmarks. A filter
    with a landmark seen on fewer than two images is dropped.

    Source: Zhang et al., CVPR 2018, section 5; released computeStability and getDistSqrtVar.
    Raises ValueError for shapes that do not fit, no landmark, and activations that are not finite.
    Deviations: none for one category.
    """
    N, C, K = peaks_NC2.shape[0], peaks_NC2.shape[1], landmarks_NK2.shape[1]
    for name, tensor, expected in (
        ("peaks_NC2", peaks_NC2, (N, C, 2)),
        ("activation_NC", activation_NC, (N, C)),
        ("landmarks_NK2", landmarks_NK2, (N, K, 2)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {list(expected)}")
    if not K:
        raise ValueError("landmarks_NK2 has no landmark: expected K >= 1")
    if not bool(activation_NC.isfinite().all()):
        raise ValueError("activation_NC has entries that are not finite: the strongest images cannot be ranked")
    if top_images < 2:
        raise ValueError(f"top_images = {top_images}: a deviation needs at least 2 images")
    if not diagonal > 0:
        raise ValueError(f"diagonal = {diagonal}: expected a positive number of pixels")
    columns = []
    for k in range(K):
        seen = ~landmarks_NK2[:, k].isnan().any(1)
        place_V12 = landmarks_NK2[seen, k].double()[:, None]
        if len(place_V12) < 2:
            columns.append(torch.full((C,), torch.nan, dtype=torch.float64, device=peaks_NC2.device))
            continue
        order_VC = activation_NC[seen].argsort(dim=0, descending=True, stable=True)[:top_images]
        distance_VC = (peaks_NC2[seen].double() - place_V12).norm(dim=2)
        columns.append(distance_VC.gather(0, order_VC).std(0, correction=1))
    deviation_CK = torch.stack(columns, 1) / diagonal
    per_filter_C = deviation_CK.mean(1)
    return LocationInstability(float(per_filter_C.nanmean()), per_filter_C, deviation_CK)
