"""Purity: how often a filter's strongest images have their peak at the same part."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import FilterMeasure, expect
from ipcnn_ray.core.metrics.parts_at_peaks import parts_at_peaks, seen_NK

HALF_SIDE = 16 / 224
"""Half a side of the square around the peak, as a share of the image's side (source: a patch of 32 of 224 pixels)."""


def purity(
    peaks_NC2: Tensor, activation_NC: Tensor, landmarks_NK2: Tensor, half_side: float, *, top_images: int = 10
) -> FilterMeasure:
    """Of a filter's strongest images, the largest share whose peak is at one and the same landmark.

    Higher is better. activation_NC: value at the peak. Of the `top_images` images with the strongest activation (ties:
    the earlier image), per landmark the share, among those that show it, in which it lies in the square around the
    peak; then the maximum over landmarks. `half_side`: see `parts_at_peaks`. A filter whose strongest images show no
    landmark is dropped.

    Source: Nauta et al., "PIP-Net: Patch-Based Intuitive Prototypes for Interpretable Image Classification", CVPR
    2023, section 5 (purity); released util/eval_cub_csv.py.
    Deviations: the patch is centred on the receptive field of the strongest cell, not on a grid of patches; landmarks
    that come in pairs (left eye, right eye) are not taken for one; filters that no class uses are not left out.
    """
    N, C = peaks_NC2.shape[:2]
    expect("activation_NC", activation_NC, (N, C))
    if not bool(activation_NC.isfinite().all()):
        raise ValueError("activation_NC has entries that are not finite: the strongest images cannot be ranked")
    if top_images < 1:
        raise ValueError(f"top_images = {top_images}: expected at least 1")
    at_NCK, known_NK = parts_at_peaks(peaks_NC2, landmarks_NK2, half_side), seen_NK(landmarks_NK2)
    best_TC = activation_NC.argsort(dim=0, descending=True, stable=True)[:top_images]
    hits_CK = at_NCK[best_TC, torch.arange(C, device=best_TC.device)].sum(0)
    shown_CK = known_NK[best_TC].sum(0)
    rate_CK = torch.where(shown_CK > 0, hits_CK / shown_CK.double(), -1.0)
    per_filter_C = rate_CK.amax(1)
    return FilterMeasure(torch.where(per_filter_C < 0, torch.nan, per_filter_C))
