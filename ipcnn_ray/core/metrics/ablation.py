"""Ablation: how much the classification of a filter's own category, and of the others, rests on the filter."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, check_shape


class AblationOwn(FilterMetric):
    """Mean rise of the classification loss on images of the filter's category when the filter's map is set to zero.

    The map is set to zero after ReLU and mask. A filter without an image of its category is dropped.

    Source: the protocol of Zhou et al., "Revisiting the Importance of Individual Units in CNNs via Ablation", arXiv
    1806.02891 (also Morcos et al., ICLR 2018): set one unit to zero, look at each class by itself.
    Deviations: the source measures the loss of accuracy; without one filter among hundreds an image seldom changes
    sides, so here it is the classification loss.
    """

    name = "ablation_own"
    unit = "nats per image"
    better = "higher"
    description = (
        "rise of the classification loss on images of the filter's class without the filter (after arXiv 1806.02891)"
    )
    images = "validation"

    def compute(self, loss_change_NC: Tensor, own_NC: Tensor) -> Tensor:
        check_shape("own_NC", own_NC, tuple(loss_change_NC.shape))
        return torch.where(own_NC, loss_change_NC, torch.nan).nanmean(0)


class AblationOthers(FilterMetric):
    """Mean absolute change of the classification loss on all other images when the filter's map is set to zero.

    A filter whose category all images show is dropped. Source and deviations: see `AblationOwn`.
    """

    name = "ablation_others"
    unit = "nats per image"
    better = "lower"
    best = 0.0
    description = (
        "change of the classification loss on images of other classes without the filter (after arXiv 1806.02891)"
    )
    images = "validation"

    def compute(self, loss_change_NC: Tensor, own_NC: Tensor) -> Tensor:
        check_shape("own_NC", own_NC, tuple(loss_change_NC.shape))
        return torch.where(own_NC, torch.nan, loss_change_NC.abs()).nanmean(0)
