"""Landmark tracking: whether a filter's peak moves with a landmark, which a peak that never moves cannot do.

T(f, k) = 1 - tr Cov(l - p) / tr Cov(l) for filter f with peak p and landmark k at l, over the filter's strongest images
that show the landmark. 1: the peak is at a fixed offset from the landmark in every image. 0: it is no better than a
peak that never moves. Below 0: it is worse. The value of a filter is its largest T over the landmarks.

Symbols: N images, C filters, K landmarks, R shuffles; positions are (row, col) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, check_shape
from ipcnn_ray.core.metrics.part_positions import landmarks_shown
from ipcnn_ray.core.seeds import generator

FOLLOWS = 0.3
"""A filter follows a landmark when its tracking is above this."""
SHUFFLES = 10
"""Number of shuffles that the values of shuffled images are means over."""


@dataclass(frozen=True)
class Tracking:
    """T of the filters of a layer and the landmarks, each filter on the images of its own category.

    float64; NaN where fewer than two of the images show the landmark, and where it never moves.
    """

    strongest_CK: Tensor
    few_CK: Tensor
    """Over fewer of the strongest images."""
    shuffled_CRK: Tensor
    """With the peaks and activations of one image and the landmarks of another of the same category."""
    offset_CK2: Tensor
    """Mean of landmark - peak over the strongest images, (row, col) in pixels; NaN for fewer than two."""
    offset_deviation_CK2: Tensor
    """Standard deviation of landmark - peak over the strongest images, by axis."""


class LandmarkTracking(FilterMetric):
    """Largest T of a filter over the landmarks, over its `eval.top_images` strongest images that show the landmark.

    See the module. A filter is dropped if T is defined for no landmark.

    Source: none; it is the share of the landmark's variance that the peak explains at a fixed offset, taken on the
    images of location instability. A constant has 0, whereas location instability ranks constants high.
    """

    name = "landmark_tracking"
    unit = "share of the landmark's variance"
    better = "higher"
    description = "how well the peak moves with its best landmark: 1 at a fixed offset, 0 as a constant"
    best = 1.0

    def compute(self, tracking_CK: Tensor) -> Tensor:
        return best_tracking(tracking_CK)


class LandmarkTrackingFew(FilterMetric):
    """`LandmarkTracking` over the filter's `eval.few_images` strongest images.

    Where a category has few images, the strongest `eval.top_images` of them hold many that the filter does not answer
    to.
    """

    name = "landmark_tracking_few"
    unit = "share of the landmark's variance"
    better = "higher"
    description = "landmark_tracking over the eval.few_images strongest images"
    best = 1.0

    def compute(self, tracking_few_CK: Tensor) -> Tensor:
        return best_tracking(tracking_few_CK)


class LandmarkTrackingShuffled(FilterMetric):
    """`LandmarkTracking` where each image has the landmarks of another one of the same category: what chance gives.

    Mean over 10 fixed shuffles.
    """

    name = "landmark_tracking_shuffled"
    unit = "share of the landmark's variance"
    better = "higher"
    description = "landmark_tracking with the landmarks of other images: what chance gives"
    best = 1.0

    def compute(self, tracking_shuffled_CRK: Tensor) -> Tensor:
        return best_tracking(tracking_shuffled_CRK).mean(1)


class FollowingShare(FilterMetric):
    """1 for a filter that follows a landmark, else 0; the mean is the share of such filters.

    A filter follows a landmark when its `LandmarkTracking` is above 0.3.
    """

    name = "following_share"
    unit = "share of filters"
    better = "higher"
    description = "filters that follow a landmark: landmark_tracking above 0.3"
    best = 1.0

    def compute(self, tracking_CK: Tensor) -> Tensor:
        return follows(tracking_CK)


class FollowingShareFew(FilterMetric):
    """`FollowingShare` over the filter's `eval.few_images` strongest images."""

    name = "following_share_few"
    unit = "share of filters"
    better = "higher"
    description = "filters that follow a landmark over their eval.few_images strongest images"
    best = 1.0

    def compute(self, tracking_few_CK: Tensor) -> Tensor:
        return follows(tracking_few_CK)


class FollowingShareShuffled(FilterMetric):
    """`FollowingShare` where each image has the landmarks of another one: what chance gives. See
    `LandmarkTrackingShuffled`."""

    name = "following_share_shuffled"
    unit = "share of filters"
    better = "higher"
    description = "filters that follow a landmark with the landmarks of other images: what chance gives"
    best = 1.0

    def compute(self, tracking_shuffled_CRK: Tensor) -> Tensor:
        return follows(tracking_shuffled_CRK).mean(1)


class LandmarksFollowed(FilterMetric):
    """Number of landmarks that at least one filter follows more than any other landmark."""

    name = "landmarks_followed"
    unit = "landmarks"
    better = "higher"
    description = "landmarks that at least one filter follows more than the others"
    one_per_layer = True

    def compute(self, tracking_CK: Tensor) -> Tensor:
        return _of_measured(tracking_CK, (following_counts(tracking_CK) > 0).sum())


class LandmarkCoverage(FilterMetric):
    """Effective number of landmarks that the filters follow: exp of the entropy of the shares of the filters.

    Of the filters that follow a landmark, the share that follows each. 0: no filter follows any; 1: all follow the same
    one; K: they are spread evenly over K landmarks.

    Source: the effective number of kinds, exp of Shannon's entropy; Hill, Ecology 54, 1973.
    """

    name = "landmark_coverage"
    unit = "landmarks"
    better = "higher"
    description = "effective number of landmarks that filters follow: 1 if all follow one, K if evenly K"
    one_per_layer = True

    def compute(self, tracking_CK: Tensor) -> Tensor:
        count_K = following_counts(tracking_CK).double()
        total = count_K.sum()
        effective = torch.special.entr(count_K / total).sum().exp() if total > 0 else total
        return _of_measured(tracking_CK, effective)


def best_tracking(tracking_CK: Tensor) -> Tensor:
    """Largest value over the last dimension, [C] (or [C, R]); NaN where all are NaN."""
    best_C = tracking_CK.nan_to_num(-torch.inf, neginf=-torch.inf).amax(-1)
    return torch.where(best_C.isinf(), torch.nan, best_C)


def follows(tracking_CK: Tensor) -> Tensor:
    """1 where a landmark is followed, else 0; NaN where no tracking is defined. Shapes: see `best_tracking`."""
    best_C = best_tracking(tracking_CK)
    return torch.where(best_C.isnan(), torch.nan, (best_C > FOLLOWS).double())


def followed_landmark(tracking_CK: Tensor) -> Tensor:
    """Index of the landmark that each filter follows the most, [C] int64; -1 for a filter that follows none."""
    landmark_C = tracking_CK.nan_to_num(-torch.inf, neginf=-torch.inf).argmax(1)
    return torch.where(follows(tracking_CK) == 1, landmark_C, -1)


def following_counts(tracking_CK: Tensor) -> Tensor:
    """Number of filters that follow each landmark, [K] int64; a filter counts for the one that it follows the most."""
    landmark_C = followed_landmark(tracking_CK)
    return torch.bincount(landmark_C[landmark_C >= 0], minlength=tracking_CK.shape[1])


def _of_measured(tracking_CK: Tensor, number: Tensor) -> Tensor:
    """A number of the layer as [1]; NaN when no filter could be measured."""
    return number.double()[None] if bool(tracking_CK.isfinite().any()) else torch.full((1,), torch.nan).double()


def tracking_of_categories(
    peaks_NC2: Tensor,
    activation_NC: Tensor,
    landmarks_NK2: Tensor,
    label_N: Tensor,
    category_C: Tensor,
    *,
    top_images: int,
    few_images: int,
) -> Tracking:
    """T of every filter and landmark, on the images of the filter's own category.

    peaks_NC2: centre of the receptive field of each map's peak. activation_NC: value at the peak. landmarks_NK2: NaN
    where the image does not show the landmark. label_N: category of each image. category_C: category of each filter.
    Of the images that show a landmark, the `top_images` (`few_images`) with the strongest activation count (ties: the
    earlier image). The shuffles depend on the number of images of the category alone.
    Raises ValueError for shapes that do not fit, and activations that are not finite.
    """
    N, C, K = *peaks_NC2.shape[:2], landmarks_NK2.shape[1]
    check_shape("activation_NC", activation_NC, (N, C))
    check_shape("label_N", label_N, (N,))
    check_shape("category_C", category_C, (C,))
    landmarks_shown(landmarks_NK2)  # checks its shape
    if not bool(activation_NC.isfinite().all()):
        raise ValueError("activation_NC has entries that are not finite: the strongest images cannot be ranked")
    shapes = ((C, K), (C, K), (C, SHUFFLES, K), (C, K, 2), (C, K, 2))
    result = Tracking(*(torch.full(shape, torch.nan).double() for shape in shapes))
    for category in sorted(set(category_C.tolist())):
        image_N, filter_C = label_N == category, category_C == category
        positions_NK2 = landmarks_NK2[image_N].double()
        peaks_CN2 = peaks_NC2[image_N][:, filter_C].double().transpose(0, 1).contiguous()
        order_CN = activation_NC[image_N][:, filter_C].T.contiguous().argsort(dim=1, descending=True, stable=True)
        result.strongest_CK[filter_C] = tracking(peaks_CN2, order_CN, positions_NK2, top_images)
        result.few_CK[filter_C] = tracking(peaks_CN2, order_CN, positions_NK2, few_images)
        mean_CK2, deviation_CK2 = offsets(peaks_CN2, order_CN, positions_NK2, top_images)
        result.offset_CK2[filter_C], result.offset_deviation_CK2[filter_C] = mean_CK2, deviation_CK2
        shuffled = [
            tracking(peaks_CN2, order_CN, positions_NK2[shuffle_N], top_images)
            for shuffle_N in shuffles(len(positions_NK2))
        ]
        result.shuffled_CRK[filter_C] = torch.stack(shuffled, 1)
    return result


def tracking(peaks_CN2: Tensor, order_CN: Tensor, landmarks_NK2: Tensor, count: int) -> Tensor:
    """T of each filter and landmark, [C, K] float64.

    order_CN: the images of each filter from the strongest to the weakest. count: number of the strongest images that
    show the landmark which count.
    """
    C, columns = len(order_CN), []
    for positions_N2, shown_N in zip(landmarks_NK2.unbind(1), landmarks_shown(landmarks_NK2).unbind(1), strict=True):
        if int(shown_N.sum()) < 2:
            columns.append(torch.full((C,), torch.nan).double())
            continue
        strongest_CV = first_shown(order_CN, shown_N, count)
        landmark_CV2 = positions_N2[strongest_CV]
        peak_CV2 = peaks_CN2.gather(1, strongest_CV[:, :, None].expand(-1, -1, 2))
        columns.append(1 - _variance(landmark_CV2 - peak_CV2) / _variance(landmark_CV2))
    tracking_CK = torch.stack(columns, 1)
    return torch.where(tracking_CK.isfinite(), tracking_CK, torch.nan)


def offsets(peaks_CN2: Tensor, order_CN: Tensor, landmarks_NK2: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (divisor V) of landmark - peak over the images of `tracking`, each [C, K, 2].

    order_CN, count: see `tracking`. NaN where fewer than two images show the landmark.
    """
    C, K = len(order_CN), landmarks_NK2.shape[1]
    mean_CK2, deviation_CK2 = torch.full((2, C, K, 2), torch.nan, dtype=torch.float64)
    for k, shown_N in enumerate(landmarks_shown(landmarks_NK2).unbind(1)):
        if int(shown_N.sum()) >= 2:
            strongest_CV = first_shown(order_CN, shown_N, count)
            peak_CV2 = peaks_CN2.gather(1, strongest_CV[:, :, None].expand(-1, -1, 2))
            offset_CV2 = landmarks_NK2[strongest_CV, k] - peak_CV2
            mean_CK2[:, k], deviation_CK2[:, k] = offset_CV2.mean(1), offset_CV2.std(1, correction=0)
    return mean_CK2, deviation_CK2


def first_shown(order_CN: Tensor, shown_N: Tensor, count: int) -> Tensor:
    """The first `count` of the images that are shown, or all if they are fewer, in each row of `order_CN`, [C, V].

    Looks at twice as many columns at a time until every row has enough.
    """
    count = reach = min(count, int(shown_N.sum()))
    shown_CR = shown_N[order_CN[:, :reach]]
    while int(shown_CR.sum(1).min()) < count:
        reach *= 2
        shown_CR = shown_N[order_CN[:, :reach]]
    first_CR = shown_CR & (shown_CR.cumsum(1) <= count)
    return order_CN[:, :reach][first_CR].view(-1, count)


def shuffles(images: int) -> list[Tensor]:
    """Permutations of the numbers of images, the same in every run and on every machine."""
    return [torch.randperm(images, generator=generator("shuffled landmarks", images, r)) for r in range(SHUFFLES)]


def _variance(x_CV2: Tensor) -> Tensor:
    """Trace of the covariance (divisor V) of positions, [C]; exactly 0 for positions that are all the same."""
    from_first_CV2 = x_CV2 - x_CV2[:, :1]
    return (from_first_CV2 - from_first_CV2.mean(1, keepdim=True)).square().mean(1).sum(1)
