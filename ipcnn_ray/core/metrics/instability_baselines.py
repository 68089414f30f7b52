"""Location instability of filters that do not look at the image: the baselines of `LocationInstability`.

Symbols: N images, K landmarks, P places of the peak; positions are (row, col) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, check_shape
from ipcnn_ray.core.receptive_field import centers

CHUNK = 1 << 22
"""Maximum number of distances that are held at once."""


class InstabilityBaseline(FilterMetric):
    """Base class of the baselines of location instability, one number per layer.

    The rule is that of `location_instability`, on the same images. A peak that does not depend on the image has no
    strongest images, so all images that show a landmark count. With several categories, `eval.instability` says which
    number is taken: `paper` the lowest of the categories, as for a filter; `released` the mean over the categories,
    because no category activates such a filter the most.
    """

    name = "instability_baseline"
    unit = "share of the image diagonal"
    better = "lower"
    description = "location instability of a filter that does not look at the image"
    images = "objects"
    best = 0.0
    one_per_layer = True

    def compute(self, landmarks_NK2: Tensor, label_N: Tensor) -> Tensor:
        value_P = mean_deviation(self.deviation, landmarks_NK2, label_N, variant=self.layer.instability)
        lowest = value_P.nan_to_num(torch.inf).amin(0, keepdim=True) / self.layer.diagonal
        return torch.where(lowest.isinf(), torch.nan, lowest)

    def deviation(self, landmarks_NK2: Tensor) -> Tensor:
        """Deviation of the distance to each landmark in some images, for each place of the peak, [P, K] pixels."""
        raise NotImplementedError

    @property
    def cells_P2(self) -> Tensor:
        """Centres of the receptive fields of the cells of the layer."""
        center_n = centers(self.layer.field, self.layer.map_side)
        return torch.cartesian_prod(center_n, center_n)


class InstabilityCenter(InstabilityBaseline):
    """Location instability of a filter whose peak is always at the centre of the image."""

    name = "instability_center"
    description = "location instability of a peak that is always at the centre of the image"

    def deviation(self, landmarks_NK2: Tensor) -> Tensor:
        middle_12 = torch.full((1, 2), (self.layer.image_size - 1) / 2, dtype=torch.float64)
        return constant_deviation(middle_12, landmarks_NK2)


class InstabilityBestConstant(InstabilityBaseline):
    """Location instability of a filter whose peak is always in the same cell, the best one for these images."""

    name = "instability_best_constant"
    description = "location instability of a peak that is always in the same cell of the layer, the best one"

    def deviation(self, landmarks_NK2: Tensor) -> Tensor:
        return constant_deviation(self.cells_P2, landmarks_NK2)


class InstabilityRandom(InstabilityBaseline):
    """Location instability of a filter whose peak is in a random cell of the layer in each image.

    The square root of the expected sample variance (N - 1) of the distance; nothing is drawn.
    """

    name = "instability_random"
    description = "location instability of a peak in a random cell of the layer, in expectation"

    def deviation(self, landmarks_NK2: Tensor) -> Tensor:
        return random_deviation(self.cells_P2, landmarks_NK2)


def mean_deviation(
    deviation: Callable[[Tensor], Tensor],
    landmarks_NK2: Tensor,
    label_N: Tensor,
    *,
    variant: Literal["paper", "released"],
) -> Tensor:
    """Mean over landmarks of a deviation, of each place of the peak, as [P] float64 pixels.

    deviation: from the landmarks of some images, [N, K, 2], to the deviation of each place and landmark, [P, K].
    label_N: category of each image. A landmark that no image of a category shows does not count for that category; a
    category with a landmark on a single image does not count. Of several categories, paper: the lowest number;
    released: the mean. NaN where no category counts.
    Raises ValueError for shapes that do not fit.
    """
    check_shape("landmarks_NK2", landmarks_NK2, (len(label_N), landmarks_NK2.shape[1], 2))
    values = []
    for category in sorted(set(label_N.tolist())):
        positions_NK2 = landmarks_NK2[label_N == category].double()
        has_K = ~positions_NK2.isnan().any(2).all(0)
        values.append(deviation(positions_NK2[:, has_K]).mean(1))
    value_LP = torch.stack(values)
    if variant == "released":
        return value_LP.nanmean(0)
    lowest_P = value_LP.nan_to_num(torch.inf).amin(0)
    return torch.where(lowest_P.isinf(), torch.nan, lowest_P)


def constant_deviation(places_P2: Tensor, landmarks_NK2: Tensor) -> Tensor:
    """Standard deviation (N - 1) of the distance from each place to each landmark, [P, K] float64 pixels.

    Over the images that show the landmark; NaN below two.
    """
    deviation_PK = torch.full((len(places_P2), landmarks_NK2.shape[1]), torch.nan, dtype=torch.float64)
    for k, shown_V2 in enumerate(_shown(landmarks_NK2)):
        if len(shown_V2) > 1:
            parts = torch.split(places_P2, max(1, CHUNK // len(shown_V2)))
            deviation_PK[:, k] = torch.cat([_distance(part_Q2, shown_V2).std(1, correction=1) for part_Q2 in parts])
    return deviation_PK


def random_deviation(places_P2: Tensor, landmarks_NK2: Tensor) -> Tensor:
    """Deviation of the distance to each landmark from a place drawn anew for each image, [1, K] float64 pixels.

    The square root of the expectation of the sample variance (N - 1): the mean over images of the variance over places,
    plus the sample variance over images of the mean over places. NaN below two images.
    """
    deviation_1K = torch.full((1, landmarks_NK2.shape[1]), torch.nan, dtype=torch.float64)
    for k, shown_V2 in enumerate(_shown(landmarks_NK2)):
        if len(shown_V2) > 1:
            parts = torch.split(shown_V2, max(1, CHUNK // len(places_P2)))
            moments_V2 = torch.cat([_mean_and_variance(_distance(part_U2, places_P2)) for part_U2 in parts])
            deviation_1K[0, k] = (moments_V2[:, 1].mean() + moments_V2[:, 0].var(correction=1)).sqrt()
    return deviation_1K


def _shown(landmarks_NK2: Tensor) -> list[Tensor]:
    """Positions of each landmark in the images that show it, [V, 2]."""
    return [positions_N2[~positions_N2.isnan().any(1)].double() for positions_N2 in landmarks_NK2.unbind(1)]


def _mean_and_variance(distance_UP: Tensor) -> Tensor:
    return torch.stack([distance_UP.mean(1), distance_UP.var(1, correction=0)], 1)


def _distance(first_A2: Tensor, second_B2: Tensor) -> Tensor:
    return torch.cdist(first_A2, second_B2, compute_mode="donot_use_mm_for_euclid_dist")
