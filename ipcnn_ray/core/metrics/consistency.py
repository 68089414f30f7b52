"""Consistency: whether a filter's peak lies at the same part in most images."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import FilterMeasure
from ipcnn_ray.core.metrics.parts_at_peaks import parts_at_peaks, seen_NK

HALF_SIDE = 36 / 224
"""Half a side of the square around the peak, as a share of the image's side (source: 72 of 224 pixels)."""


def consistency(
    peaks_NC2: Tensor, landmarks_NK2: Tensor, half_side: float, *, needed_share: float = 0.8
) -> FilterMeasure:
    """1 for a filter that is consistent, else 0; the mean is the share of consistent filters. Higher is better.

    A filter is consistent when one landmark lies in the square around its peak in at least `needed_share` of the
    images that show this landmark. `peaks_NC2`, `landmarks_NK2`, `half_side`: see `parts_at_peaks`. No filter can be
    measured where no image shows any landmark.

    Source: Huang et al., "Evaluation and Improvement of Interpretability for Self-Explainable Part-Prototype
    Networks", ICCV 2023 (arXiv 2212.05946), section 3.1; released util/eval_interpretability.py.
    Deviations: a share, where the source gives per cent. The peak is the centre of the receptive field of the map's
    strongest cell, as for location instability; the source takes the strongest pixel of the map resized bicubically.
    """
    at_NCK, known_NK = parts_at_peaks(peaks_NC2, landmarks_NK2, half_side), seen_NK(landmarks_NK2)
    rate_CK = at_NCK.sum(0) / known_NK.sum(0).double()
    per_filter_C = (rate_CK >= needed_share).any(1).double()
    if not bool(known_NK.any()):
        per_filter_C = torch.full_like(per_filter_C, torch.nan)
    return FilterMeasure(per_filter_C)
