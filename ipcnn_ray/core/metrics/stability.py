"""Stability: whether a filter's peak stays at its parts, or in its cell, when the image gets a little noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext, check_shape
from ipcnn_ray.core.metrics.part_positions import landmarks_shown, parts_at_peaks
from ipcnn_ray.core.seeds import generator

IMAGENET_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Standard deviation of the red, green and blue of ImageNet's pixels, 0..255: the unit of the source's noise."""
NOISE, LIMIT = 0.2, 0.25
"""Standard deviation of the noise, and the value at which it is cut off."""


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
    best = 1.0
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


class PeakStability(FilterMetric):
    """Share of the images in which the peak stays in its cell when the image gets noise. Needs no landmarks.

    1, the best value, is also that of a filter that never moves.

    Source: none; it is `Stability` with the cell of the peak in place of the parts around it.
    """

    name = "peak_stability"
    unit = "share of images"
    better = "higher"
    best = 1.0
    description = "images in which noise leaves the peak in its cell; needs no landmarks"

    def compute(self, peaks_NC2: Tensor, noisy_peaks_NC2: Tensor) -> Tensor:
        check_shape("noisy_peaks_NC2", noisy_peaks_NC2, tuple(peaks_NC2.shape))
        return (peaks_NC2 == noisy_peaks_NC2).all(2).double().mean(0)


def pixel_noise(seed: int, image: int, size: int) -> Tensor:
    """Noise for an image of a store, in units of a pixel's 0..255, as [3, size, size] RGB on the CPU.

    Normal with a standard deviation of 0.2, cut off at 0.25 on either side, both times the deviation of ImageNet's
    pixels. It depends on (seed, image) only: it is the same in every epoch, and for any number of workers.

    Source: Huang et al., ICCV 2023 (arXiv 2212.05946), section 3.2; released util/eval_interpretability.py.
    """
    normal = torch.randn(3, size, size, generator=generator("noise", seed, image))
    return (NOISE * normal).clamp_(-LIMIT, LIMIT) * torch.tensor(IMAGENET_DEVIATION)[:, None, None]
