"""Stability: whether a filter's peak stays at its parts when the image gets a little noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import FilterMeasure, expect
from ipcnn_ray.core.metrics.parts_at_peaks import parts_at_peaks, seen_NK
from ipcnn_ray.core.seeds import generator

IMAGENET_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Of the red, green and blue of ImageNet's pixels, 0..255: the unit of the source's noise."""
NOISE, LIMIT = 0.2, 0.25
"""Standard deviation of the noise, and where it is cut off."""


def pixel_noise(seed: int, image: int, size: int) -> Tensor:
    """Noise for an image of a store, in units of a pixel's 0..255, as [3, size, size] RGB on the CPU.

    Normal with a standard deviation of 0.2, cut off at 0.25 on either side, both times the deviation of ImageNet's
    pixels. It follows from (seed, image) alone: the same in every epoch, and for any number of workers.
    """
    normal = torch.randn(3, size, size, generator=generator("noise", seed, image))
    return (NOISE * normal).clamp_(-LIMIT, LIMIT) * torch.tensor(IMAGENET_DEVIATION)[:, None, None]


def stability(peaks_NC2: Tensor, noisy_peaks_NC2: Tensor, landmarks_NK2: Tensor, half_side: float) -> FilterMeasure:
    """Share of the images in which the landmarks in the square around the peak are the same with noise and without.

    Higher is better. noisy_peaks_NC2: peaks of the same images with noise. Others: see `parts_at_peaks`. No filter can
    be measured where no image shows any landmark.

    Source: Huang et al., ICCV 2023 (arXiv 2212.05946), section 3.2; released util/eval_interpretability.py.
    Deviations: those of `consistency`; and images that show no landmark are left out (source: they count as stable).
    """
    expect("noisy_peaks_NC2", noisy_peaks_NC2, tuple(peaks_NC2.shape))
    at_NCK = parts_at_peaks(peaks_NC2, landmarks_NK2, half_side)
    noisy_at_NCK = parts_at_peaks(noisy_peaks_NC2, landmarks_NK2, half_side)
    same_NC = (at_NCK == noisy_at_NCK).all(2)
    return FilterMeasure(same_NC[seen_NK(landmarks_NK2).any(1)].double().mean(0))
