"""Stability: whether a filter's peak stays at its parts when the image gets a little noise."""

from __future__ import annotations

from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext, check_shape
from ipcnn_ray.core.metrics.part_positions import landmarks_shown, parts_at_peaks


class Stability(FilterMetric):
    """Share of the images in which the landmarks in the square around the peak are the same with noise and without.

    half_side: half the side of the square, as a share of the image's side. No filter can be measured where no image
    shows any landmark.

    Source: Huang et al., ICCV 2023 (arXiv 2212.05946), section 3.2; released util/eval_interpretability.py.
    Deviations: those of `Consistency`; and images that show no landmark are left out (source: they count as stable).
    """

    name = "stability"
    unit = "share of images"
    better = "higher"
    description = "images in which noise does not move the peak to other parts (EvalProtoPNet, arXiv 2212.05946)"

    def __init__(self, layer: LayerContext, *, half_side: float = 36 / 224) -> None:
        super().__init__(layer)
        self.half_side = half_side

    def compute(self, peaks_NC2: Tensor, noisy_peaks_NC2: Tensor, landmarks_NK2: Tensor) -> Tensor:
        check_shape("noisy_peaks_NC2", noisy_peaks_NC2, tuple(peaks_NC2.shape))
        half_side = self.half_side * self.layer.image_size
        at_NCK = parts_at_peaks(peaks_NC2, landmarks_NK2, half_side)
        noisy_at_NCK = parts_at_peaks(noisy_peaks_NC2, landmarks_NK2, half_side)
        same_NC = (at_NCK == noisy_at_NCK).all(2)
        return same_NC[landmarks_shown(landmarks_NK2).any(1)].double().mean(0)
