"""Ablation, other categories: how much a filter affects the classification of categories that are not its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, check_shape


class AblationOthers(FilterMetric):
    """Mean absolute change of the classification loss on all other images when the filter's map is set to zero.

    A filter whose category all images show is dropped. Source and deviations: see `AblationOwn`.
    """

    name = "ablation_others"
    unit = "nats per image"
    better = "lower"
    description = (
        "change of the classification loss on images of other classes without the filter (after arXiv 1806.02891)"
    )
    images = "validation"

    def compute(self, loss_change_NC: Tensor, own_NC: Tensor) -> Tensor:
        check_shape("own_NC", own_NC, tuple(loss_change_NC.shape))
        return torch.where(own_NC, torch.nan, loss_change_NC.abs()).nanmean(0)
