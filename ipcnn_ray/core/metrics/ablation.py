"""Ablation: what becomes of the classification of a filter's own class, and of others, without the filter."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import FilterMeasure, expect


def ablation(loss_N: Tensor, ablated_loss_NC: Tensor, own_NC: Tensor) -> tuple[FilterMeasure, FilterMeasure]:
    """Effect of each filter on images of its own class, and on images of others, in nats per image.

    loss_N: classification loss of each image. ablated_loss_NC: with one filter's map set to zero (after ReLU and
    mask). own_NC: bool, the image is of the filter's class.
    own: mean of (ablated - intact) over own images; higher is better: the class rests on the filter.
    others: mean of |ablated - intact| over the other images; lower is better: the filter is for its class alone.
    A filter with no image on one side is dropped on that side.

    Source: the protocol of Zhou et al., "Revisiting the Importance of Individual Units in CNNs via Ablation", arXiv
    1806.02891 (also Morcos et al., ICLR 2018): set one unit to zero, look at each class by itself.
    Deviations: the source measures the loss of accuracy; without one filter among hundreds an image seldom changes
    sides, so here it is the classification loss.
    """
    N, C = len(loss_N), ablated_loss_NC.shape[-1]
    expect("loss_N", loss_N, (N,))
    expect("ablated_loss_NC", ablated_loss_NC, (N, C))
    expect("own_NC", own_NC, (N, C))
    change_NC = ablated_loss_NC.double() - loss_N.double()[:, None]
    own_C = torch.where(own_NC, change_NC, torch.nan).nanmean(0)
    others_C = torch.where(own_NC, torch.nan, change_NC.abs()).nanmean(0)
    return FilterMeasure(own_C), FilterMeasure(others_C)


def spread(C: int, most: int | None) -> Tensor:
    """Indices of the filters to ablate: all C, or `most` of them at equal distances, the first among them."""
    if most is None or most >= C:
        return torch.arange(C)
    return torch.arange(most) * C // most


def own_category(pooled_NC: Tensor, label_N: Tensor, categories: Tensor) -> Tensor:
    """The category of each filter, one of `categories`: that whose images activate it the most on average, as [C].

    pooled_NC: mean (or sum) over the cells of each map after ReLU. label_N: an image's category, or another number.
    Among equals the first category. Source: Zhang et al., CVPR 2018, section 3.2 (category of a filter).
    """
    mean_LC = torch.stack([pooled_NC[label_N == one].double().mean(0) for one in categories])
    return categories[mean_LC.nan_to_num(-torch.inf).argmax(0)]
