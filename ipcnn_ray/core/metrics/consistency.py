"""Consistency: whether a filter's peak lies at the same part in most images."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext
from ipcnn_ray.core.metrics.part_positions import landmarks_shown, parts_at_peaks


class Consistency(FilterMetric):
    """1 for a filter that is consistent, else 0; the mean is the share of consistent filters.

    A filter is consistent when one landmark lies in the square around its peak in at least `needed_share` of the
    images that show this landmark. half_side: half the side of the square, as a share of the image's side (source: 72
    of 224 pixels). No filter can be measured where no image shows any landmark.

    Source: Huang et al., "Evaluation and Improvement of Interpretability for Self-Explainable Part-Prototype
    Networks", ICCV 2023 (arXiv 2212.05946), section 3.1; released util/eval_interpretability.py.
    Deviations: a share, where the source gives per cent. The peak is the centre of the receptive field of the map's
    strongest cell, as for location instability; the source takes the strongest pixel of the map resized bicubically.
    """

    name = "consistency"
    unit = "share of filters"
    better = "higher"
    best = 1.0
    description = (
        "filters whose peak lies at the same part in at least 80 % of the images (EvalProtoPNet, arXiv 2212.05946)"
    )

    def __init__(self, layer: LayerContext, *, half_side: float = 36 / 224, needed_share: float = 0.8) -> None:
        super().__init__(layer)
        self.half_side = half_side
        self.needed_share = needed_share

    def compute(self, peaks_NC2: Tensor, landmarks_NK2: Tensor) -> Tensor:
        at_NCK = parts_at_peaks(peaks_NC2, landmarks_NK2, self.half_side * self.layer.image_size)
        shown_NK = landmarks_shown(landmarks_NK2)
        rate_CK = at_NCK.sum(0) / shown_NK.sum(0).double()
        consistent_C = (rate_CK >= self.needed_share).any(1).double()
        return consistent_C if bool(shown_NK.any()) else torch.full_like(consistent_C, torch.nan)
