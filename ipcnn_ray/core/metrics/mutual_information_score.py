"""Mutual information score: how much a filter's mean activation tells of the class.

Symbols: N images, C filters, L classes; the estimator is that of Ross for a continuous and a discrete variable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import FilterMeasure, expect
from ipcnn_ray.core.seeds import generator

TIES = 1e-10
"""Deviation of the noise that parts equal activations, in units of the filter's mean."""


def mutual_information_score(pooled_NC: Tensor, label_N: Tensor, *, neighbors: int = 3) -> FilterMeasure:
    """max over classes l of MI(mean activation; image is of class l), in nats; higher is better.

    pooled_NC: mean over the cells of each map after ReLU. label_N: the image's class, any integers. 0 <= MI <= log 2
    but for the estimator's error. With fewer than two classes, or a single image in one of two, nothing can be
    measured.

    Source: Liang et al., "Training Interpretable Convolutional Neural Networks by Differentiating Class-specific
    Filters", ECCV 2020 (arXiv 2007.08194), section 4 (MIS = mean over filters of the max over classes); released
    VOCPart/mutualinfo/mutualinfo.py, which takes scikit-learn's mutual_info_classif: the estimator of B. C. Ross, PLoS
    ONE 9(2), 2014, with 3 neighbours.
    Deviations: the noise that parts ties comes from another generator, the same in every call.
    """
    N, C = pooled_NC.shape
    expect("label_N", label_N, (N,))
    if neighbors < 1:
        raise ValueError(f"neighbors = {neighbors}: expected at least 1")
    if not bool(pooled_NC.isfinite().all()):
        raise ValueError("pooled_NC has entries that are not finite")
    x_CN = _parted(pooled_NC.double().cpu()).T.contiguous()
    labels = sorted(set(label_N.tolist()))
    found = [torch.full((C,), torch.nan, dtype=torch.float64)]
    for one in labels if len(labels) > 2 else labels[1:]:  # one of two parts the images as the other does
        member_N = label_N.cpu() == one
        found.append(_information(x_CN[:, member_N], x_CN[:, ~member_N], neighbors))
    best_C = torch.stack(found).nan_to_num(-torch.inf).amax(0)
    return FilterMeasure(torch.where(best_C.isinf(), torch.nan, best_C))


def _parted(x_NC: Tensor) -> Tensor:
    """Each filter's values over their deviation, plus noise too small to matter but between equal values."""
    deviation_C = x_NC.std(0, correction=0)
    x_NC = x_NC / torch.where(deviation_C > 0, deviation_C, 1)
    noise_NC = torch.randn(x_NC.shape, generator=generator("ties"), dtype=torch.float64)
    return x_NC + TIES * x_NC.abs().mean(0).clamp(min=1) * noise_NC


def _information(in_CM: Tensor, out_CM: Tensor, neighbors: int) -> Tensor:
    """MI per filter of its values and which of two groups they are in; NaN with a group of fewer than two."""
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
        around_CM = (k + within_CM).double()  # itself and k - 1 nearer ones of its own group
        terms = torch.tensor([k, M], dtype=torch.float64).digamma()
        total_C += (terms[0] - terms[1] - around_CM.digamma().mean(1)) * (M / N)
    return total_C.clamp(min=0)


def _kth_distance(sorted_CM: Tensor, k: int) -> Tensor:
    """Distance of every value to its k-th nearest: the least over the k + 1 runs of neighbours that hold it."""
    M = sorted_CM.shape[1]
    found_CM = torch.full_like(sorted_CM, torch.inf)
    for left in range(k + 1):
        right = k - left
        middle = sorted_CM[:, left : M - right]
        reach = torch.maximum(middle - sorted_CM[:, : M - k], sorted_CM[:, k:] - middle)
        found_CM[:, left : M - right] = torch.minimum(found_CM[:, left : M - right], reach)
    return found_CM
