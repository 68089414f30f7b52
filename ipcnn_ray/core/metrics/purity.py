"""Purity: how often a filter's strongest images have their peak at the same part."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext, check_shape
from ipcnn_ray.core.metrics.part_positions import landmarks_shown, parts_at_peaks


class Purity(FilterMetric):
    """Of a filter's strongest images, the largest share whose peak is at one and the same landmark.

    Of the `top_images` images with the strongest activation (ties: the earlier image), per landmark the share, among
    those that show it, in which it lies in the square around the peak; then the maximum over landmarks. half_side:
    half the side of the square, as a share of the image's side (source: a patch of 32 of 224 pixels). A filter whose
    strongest images show no landmark is dropped.

    Source: Nauta et al., "PIP-Net: Patch-Based Intuitive Prototypes for Interpretable Image Classification", CVPR
    2023, section 5 (purity); released util/eval_cub_csv.py.
    Deviations: the patch is centred on the receptive field of the strongest cell, not on a grid of patches; landmarks
    that come in pairs (left eye, right eye) are not merged; filters that no class uses are not left out.
    """

    name = "purity"
    unit = "share of images"
    better = "higher"
    best = 1.0
    description = "of the filter's 10 strongest images, those whose peak lies at its best part (PIP-Net, CVPR 2023)"

    def __init__(self, layer: LayerContext, *, half_side: float = 16 / 224, top_images: int = 10) -> None:
        super().__init__(layer)
        if top_images < 1:
            raise ValueError(f"top_images = {top_images}: expected at least 1")
        self.half_side = half_side
        self.top_images = top_images

    def compute(self, peaks_NC2: Tensor, activation_NC: Tensor, landmarks_NK2: Tensor) -> Tensor:
        N, C = peaks_NC2.shape[:2]
        check_shape("activation_NC", activation_NC, (N, C))
        if not bool(activation_NC.isfinite().all()):
            raise ValueError("activation_NC has entries that are not finite: the strongest images cannot be ranked")
        at_NCK = parts_at_peaks(peaks_NC2, landmarks_NK2, self.half_side * self.layer.image_size)
        best_TC = activation_NC.argsort(dim=0, descending=True, stable=True)[: self.top_images]
        hits_CK = at_NCK[best_TC, torch.arange(C, device=best_TC.device)].sum(0)
        shown_CK = landmarks_shown(landmarks_NK2)[best_TC].sum(0)
        best_C = torch.where(shown_CK > 0, hits_CK / shown_CK.double(), -1.0).amax(1)
        return torch.where(best_C < 0, torch.nan, best_C)
