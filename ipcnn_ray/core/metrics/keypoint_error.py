"""Keypoint regression: how well the peaks of all filters of a layer together tell where the landmarks are.

Symbols: N images, M training images, D features, K landmarks; positions are (row, col) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, check_shape
from ipcnn_ray.core.metrics.part_positions import landmarks_shown

STRENGTHS = tuple(10.0 ** (j / 2) for j in range(-12, 5))
"""Ridge strengths, as shares of the features' sum of squares: 1e-6 to 1e2 in half decades."""
LEAST = 3
"""Minimum number of training images of a landmark."""

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the features [M, D] and positions [M, 2] of training images and the features [V, D] of others to [V, 2]."""


class KeypointError(FilterMetric):
    """Mean distance from a landmark to its position predicted from the peaks of all filters, one number per layer.

    For each landmark, a ridge regression from the peaks of all filters (2 C numbers, standardised on the training
    images) to the position of the landmark, fitted on the training images that show it, with the strength that has the
    lowest leave-one-out error on them. The error is the mean distance in the other images that show it, and its mean
    over the landmarks. All categories have one regression. A landmark with fewer than 3 training images or no other
    image is left out; NaN when none is left, and so for `eval.images: validation`.

    Source: the landmark regression of part discovery; Hung et al., "SCOPS: Self-Supervised Co-Part Segmentation", CVPR
    2019; van der Klis et al., "PDiscoNet: Semantically consistent part discovery for fine-grained recognition", ICCV
    2023.
    Deviations: the sources regress from the centres of mass of a few part maps, by least squares without a penalty, and
    divide by the size of the object or the distance of the eyes. Here there are more numbers than images, so there is a
    penalty, and the unit is the side of the crop, which is cut around the object.
    """

    name = "keypoint_error"
    unit = "share of the image's side"
    better = "lower"
    description = "error of the landmarks predicted from all peaks by ridge regression, on validation images"
    images = "objects"
    best = 0.0
    one_per_layer = True

    def compute(self, peaks_NC2: Tensor, landmarks_NK2: Tensor, in_training_N: Tensor) -> Tensor:
        feature_ND = standardized(peaks_NC2.double().flatten(1), in_training_N)
        return regression_error(feature_ND, landmarks_NK2, in_training_N, ridge) / self.layer.image_size


class KeypointErrorMean(FilterMetric):
    """`KeypointError` where each landmark is predicted at its mean position in the training images."""

    name = "keypoint_error_mean"
    unit = "share of the image's side"
    better = "lower"
    description = "error of the landmarks predicted at their mean position, on validation images"
    images = "objects"
    best = 0.0
    one_per_layer = True

    def compute(self, landmarks_NK2: Tensor, in_training_N: Tensor) -> Tensor:
        none_N0 = torch.empty(len(landmarks_NK2), 0, dtype=torch.float64)
        return regression_error(none_N0, landmarks_NK2, in_training_N, mean_position) / self.layer.image_size


def regression_error(feature_ND: Tensor, landmarks_NK2: Tensor, in_training_N: Tensor, predict: Predict) -> Tensor:
    """Mean over landmarks of the mean distance between prediction and landmark, as [1] float64 pixels.

    Fitted on the training images that show a landmark, measured on the other images that show it.
    Raises ValueError for shapes that do not fit.
    """
    shown_NK = landmarks_shown(landmarks_NK2)
    check_shape("in_training_N", in_training_N, (len(shown_NK),))
    errors = []
    for position_N2, shown_N in zip(landmarks_NK2.double().unbind(1), shown_NK.unbind(1), strict=True):
        train_N, other_N = shown_N & in_training_N, shown_N & ~in_training_N
        if int(train_N.sum()) < LEAST or not bool(other_N.any()):
            continue
        predicted_V2 = predict(feature_ND[train_N], position_N2[train_N], feature_ND[other_N])
        errors.append((predicted_V2 - position_N2[other_N]).norm(dim=1).mean())
    return torch.stack(errors).mean(0, keepdim=True) if errors else torch.full((1,), torch.nan).double()


def standardized(x_ND: Tensor, in_training_N: Tensor) -> Tensor:
    """Columns minus their mean and divided by their deviation in the training images; those that do not vary there are
    left out."""
    train_MD = x_ND[in_training_N]
    varies_D = (train_MD != train_MD[:1]).any(0)
    if not bool(varies_D.any()):
        return x_ND[:, :0]
    train_MD, x_ND = train_MD[:, varies_D], x_ND[:, varies_D]
    return (x_ND - train_MD.mean(0)) / train_MD.std(0, correction=0)


def mean_position(feature_MD: Tensor, position_M2: Tensor, other_VD: Tensor) -> Tensor:
    return position_M2.mean(0).expand(len(other_VD), 2)


def ridge(feature_MD: Tensor, position_M2: Tensor, other_VD: Tensor) -> Tensor:
    """Predict by ridge regression with an intercept that is not penalised, [V, 2] float64.

    The strength is the one of `STRENGTHS` with the lowest leave-one-out error (sum of squared distances), computed in
    closed form from one eigendecomposition, of the D x D or the M x M matrix, whichever is smaller.
    """
    mean_D, mean_2 = feature_MD.mean(0), position_M2.mean(0)
    x_MD, y_M2 = feature_MD - mean_D, position_M2 - mean_2
    M, D = x_MD.shape
    total = x_MD.square().sum()
    if not total > 0:
        return mean_position(feature_MD, position_M2, other_VD)
    # x = u diag(s)^(1/2) v': the left vectors u [M, r] and the squares s [r] of the singular values
    s_r, vector = torch.linalg.eigh(x_MD.T @ x_MD if D <= M else x_MD @ x_MD.T)
    kept_r = s_r > s_r[-1] * max(M, D) * torch.finfo(torch.float64).eps
    s_r, vector = s_r[kept_r], vector[:, kept_r]
    u_Mr = x_MD @ vector / s_r.sqrt() if D <= M else vector
    target_r2, best = u_Mr.T @ y_M2, (torch.inf, 0.0)
    for strength in STRENGTHS:
        shrink_r = s_r / (s_r + strength * total)
        residual_M2 = y_M2 - u_Mr @ (shrink_r[:, None] * target_r2)
        leverage_M = 1 / M + u_Mr.square() @ shrink_r
        error = float((residual_M2 / (1 - leverage_M)[:, None]).square().sum())
        best = min(best, (error, strength))
    # v' = diag(s)^(-1/2) u' x, so the weights are x' u diag(1 / (s + strength)) u' y
    weight_r2 = target_r2 / (s_r + best[1] * total)[:, None]
    weight_D2 = x_MD.T @ (u_Mr @ weight_r2)
    predicted_V2: Tensor = (other_VD - mean_D) @ weight_D2 + mean_2
    return predicted_V2
