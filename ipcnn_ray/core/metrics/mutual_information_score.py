"""Mutual information score: how much a filter's mean activation says about the class.

Symbols: N images, C filters, L classes; the estimator is that of Ross for a continuous and a discrete variable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext, check_shape
from ipcnn_ray.core.seeds import generator

TIES = 1e-10
"""Standard deviation of the noise that separates equal activations, in units of the filter's mean."""


class MutualInformationScore(FilterMetric):
    """max over classes l of MI(mean activation; image is of class l), in nats.

    neighbors: of Ross's estimator. 0 <= MI <= log 2 but for the estimator's error. With fewer than two classes, or a
    single image in one of two, nothing can be measured.

    Source: Liang et al., "Training Interpretable Convolutional Neural Networks by Differentiating Class-specific
    Filters", ECCV 2020 (arXiv 2007.08194), section 4 (MIS = mean over filters of the max over classes); released
    VOCPart/mutualinfo/mutualinfo.py, which takes scikit-learn's mutual_info_classif: the estimator of B. C. Ross, PLoS
    ONE 9(2), 2014, with 3 neighbours.
    Deviations: the noise that separates equal values comes from another generator, the same in every call.
    """

    name = "mutual_information_score"
    unit = "nats"
    better = "higher"
    description = "mutual information of the filter's mean activation and the class (CSG, arXiv 2007.08194)"
    images = "validation"

    def __init__(self, layer: LayerContext, *, neighbors: int = 3) -> None:
        super().__init__(layer)
        if neighbors < 1:
            raise ValueError(f"neighbors = {neighbors}: expected at least 1")
        self.neighbors = neighbors

    def compute(self, pooled_NC: Tensor, label_N: Tensor) -> Tensor:
        N, C = pooled_NC.shape
        check_shape("label_N", label_N, (N,))
        if not bool(pooled_NC.isfinite().all()):
            raise ValueError("pooled_NC has entries that are not finite")
        x_CN = _without_ties(pooled_NC.double().cpu()).T.contiguous()
        labels = sorted(set(label_N.tolist()))
        by_label = [torch.full((C,), torch.nan, dtype=torch.float64)]
        for label in labels if len(labels) > 2 else labels[1:]:  # of two labels, both divide the images alike
            member_N = label_N.cpu() == label
            by_label.append(_information(x_CN[:, member_N], x_CN[:, ~member_N], self.neighbors))
        best_C = torch.stack(by_label).nan_to_num(-torch.inf).amax(0)
        return torch.where(best_C.isinf(), torch.nan, best_C)


def _without_ties(x_NC: Tensor) -> Tensor:
    """Each filter's values over their deviation, plus noise that is too small to matter except between equal values."""
    deviation_C = x_NC.std(0, correction=0)
    x_NC = x_NC / torch.where(deviation_C > 0, deviation_C, 1)
    noise_NC = torch.randn(x_NC.shape, generator=generator("ties"), dtype=torch.float64)
    return x_NC + TIES * x_NC.abs().mean(0).clamp(min=1) * noise_NC


def _information(in_CM: Tensor, out_CM: Tensor, neighbors: int) -> Tensor:
    """MI per filter between its values and the group they belong to, of two; NaN with a group of fewer than two."""
    if min(in_CM.shape[1], out_CM.shape[1]) < 2:
        return torch.full((len(in_CM),), torch.nan, dtype=torch.float64)
    N = in_CM.shape[1] + out_CM.shape[1]
    total_C = torch.full((len(in_CM),), float(N), dtype=torch.float64).digamma()
    for own_CM, other_CM in ((in_CM, out_CM), (out_CM, in_CM)):
        own_CM, other_CM = own_CM.sort(1).values, other_CM.sort(1).values
        M = own_CM.shape[1]
        k = min(neighbors, M - 1)
        radius_CM = _kth_distance(own_CM, k)
        below_CM = torch.searchsorted(other_CM, own_CM - radius_CM, right=True)
        within_CM = torch.searchsorted(other_CM, own_CM + radius_CM) - below_CM
        neighbors_CM = (k + within_CM).double()  # itself and k - 1 nearer values of its own group
        terms = torch.tensor([k, M], dtype=torch.float64).digamma()
        total_C += (terms[0] - terms[1] - neighbors_CM.digamma().mean(1)) * (M / N)
    return total_C.clamp(min=0)


def _kth_distance(sorted_CM: Tensor, k: int) -> Tensor:
    """Distance of every value to its k-th nearest: the minimum over the k + 1 windows of neighbours that contain it."""
    M = sorted_CM.shape[1]
    distance_CM = torch.full_like(sorted_CM, torch.inf)
    for left in range(k + 1):
        right = k - left
        middle = sorted_CM[:, left : M - right]
        window = torch.maximum(middle - sorted_CM[:, : M - k], sorted_CM[:, k:] - middle)
        distance_CM[:, left : M - right] = torch.minimum(distance_CM[:, left : M - right], window)
    return distance_CM
