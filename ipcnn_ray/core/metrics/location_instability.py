"""Location instability: how much the distance from a filter's peak to the landmarks varies over images.

Symbols: N images, C filters, K landmarks; positions are (row, col) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, MetricResult, check_shape


class LocationInstability(FilterMetric):
    """Mean over landmarks of the standard deviation of the distance from the peak, as a share of the image diagonal.

    Every run is measured by it. See `location_instability_of_categories`.
    """

    name = "instability"
    unit = "share of the image diagonal"
    better = "lower"
    best = 0.0
    description = "location instability (Zhang et al., CVPR 2018)"
    images = "objects"

    def compute(self, peaks_NC2: Tensor, activation_NC: Tensor, landmarks_NK2: Tensor, label_N: Tensor) -> Tensor:
        return location_instability_of_categories(
            peaks_NC2,
            activation_NC,
            landmarks_NK2,
            label_N,
            self.layer.diagonal,
            variant=self.layer.instability,
            top_images=self.layer.top_images,
        ).per_filter_C


@dataclass(frozen=True)
class InstabilityResult(MetricResult):
    """Location instability of the filters of a layer, as shares of the image diagonal."""

    deviation_CK: Tensor
    """One deviation per filter and landmark; NaN below two images."""
    category_C: Tensor
    """Index of the category that each filter was measured on."""


def location_instability(
    peaks_NC2: Tensor, activation_NC: Tensor, landmarks_NK2: Tensor, diagonal: float, *, top_images: int = 100
) -> InstabilityResult:
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
    check_shape("peaks_NC2", peaks_NC2, (N, C, 2))
    check_shape("activation_NC", activation_NC, (N, C))
    check_shape("landmarks_NK2", landmarks_NK2, (N, K, 2))
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
        shown = ~landmarks_NK2[:, k].isnan().any(1)
        landmark_V12 = landmarks_NK2[shown, k].double()[:, None]
        if len(landmark_V12) < 2:
            columns.append(torch.full((C,), torch.nan, dtype=torch.float64, device=peaks_NC2.device))
            continue
        order_VC = activation_NC[shown].argsort(dim=0, descending=True, stable=True)[:top_images]
        distance_VC = (peaks_NC2[shown].double() - landmark_V12).norm(dim=2)
        columns.append(distance_VC.gather(0, order_VC).std(0, correction=1))
    deviation_CK = torch.stack(columns, 1) / diagonal
    per_filter_C = deviation_CK.mean(1)
    category_C = torch.zeros(C, dtype=torch.int64, device=deviation_CK.device)
    return InstabilityResult(per_filter_C, deviation_CK, category_C)


def location_instability_of_categories(
    peaks_NC2: Tensor,
    activation_NC: Tensor,
    landmarks_NK2: Tensor,
    label_N: Tensor,
    diagonal: float,
    *,
    variant: Literal["paper", "released"] = "paper",
    top_images: int = 100,
) -> InstabilityResult:
    """Location instability where the images show several categories.

    `location_instability` is taken within each category; then one category is chosen per filter. label_N: category of
    each image, from 0; the other arguments as there. A landmark that no image of a category shows does not count for
    that category, and its mean is over the others.
    paper: a filter's category is the one in which it is the most stable. released: the one on whose images its mean
    activation at the peak is the highest, and a filter that cannot be measured there is dropped.
    For one category both are `location_instability`.

    Source: Zhang et al., CVPR 2018, section 5 (the minimum over categories); released
    `step_computeStability_multiClass` (the highest mean score).
    Raises ValueError as `location_instability` does, and for labels that do not fit.
    Deviations: the released code, having met category n01443537, which has one landmark, measures all categories that
    follow it by their first landmark alone; and it takes the mean score over images without any landmark too, as 0.
    """
    if label_N.shape != peaks_NC2.shape[:1] or not len(label_N) or bool((label_N < 0).any()):
        raise ValueError(f"label_N has shape {tuple(label_N.shape)}: expected a category for each of the images")
    categories = sorted(set(label_N.tolist()))
    if len(categories) == 1:
        result = location_instability(peaks_NC2, activation_NC, landmarks_NK2, diagonal, top_images=top_images)
        return replace(result, category_C=result.category_C + categories[0])
    per_filter, deviations, scores = [], [], []
    for category in categories:
        member_N = label_N == category
        positions_NK2 = landmarks_NK2[member_N]
        has_K = ~positions_NK2.isnan().any(2).all(0)
        if not bool(has_K.any()):
            has_K[:] = True  # nothing to measure: NaN for every filter, by the rule for one category
        result = location_instability(
            peaks_NC2[member_N], activation_NC[member_N], positions_NK2[:, has_K], diagonal, top_images=top_images
        )
        deviation_CK = torch.full((len(result.per_filter_C), len(has_K)), torch.nan, dtype=torch.float64)
        deviation_CK[:, has_K] = result.deviation_CK.cpu()
        per_filter.append(result.per_filter_C.cpu())
        deviations.append(deviation_CK)
        scores.append(activation_NC[member_N].double().mean(0).cpu())
    per_filter_LC = torch.stack(per_filter)
    most_active_C, most_stable_C = torch.stack(scores).argmax(0), per_filter_LC.nan_to_num(torch.inf).argmin(0)
    chosen_C = most_active_C if variant == "released" else most_stable_C
    filters_C = torch.arange(per_filter_LC.shape[1])
    deviation_CK = torch.stack(deviations)[chosen_C, filters_C]
    return InstabilityResult(per_filter_LC[chosen_C, filters_C], deviation_CK, torch.tensor(categories)[chosen_C])


@dataclass(frozen=True)
class LandmarkDistances:
    """Distances from a filter's peak to the landmarks, as shares of the image diagonal."""

    distance_NK: Tensor
    """float64; NaN where the image does not show the landmark."""
    counted_NK: Tensor
    """bool: the image is one of the strongest, so its distance counts in the deviation."""
    mean_K: Tensor
    """Mean of the counted distances; NaN when none is counted."""
    deviation_K: Tensor
    """Standard deviation (N - 1) of the counted distances; NaN below two. Their mean over the landmarks is the
    filter's location instability."""


def landmark_distances(
    peaks_N2: Tensor, activation_N: Tensor, landmarks_NK2: Tensor, diagonal: float, *, top_images: int = 100
) -> LandmarkDistances:
    """Return the distances of one filter that `location_instability` reduces to a number.

    peaks_N2: centre of the receptive field of the map's peak, (row, col) in pixels. activation_N: value at the peak.
    landmarks_NK2: NaN where the image does not show the landmark. diagonal: of the image, pixels. Of the images that
    show a landmark the `top_images` with the strongest activation count (ties: the earlier image).
    With several categories, give the images of the filter's own category.

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
