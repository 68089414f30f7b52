"""Noise on the pixels of an image, as the metric `stability` uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.seeds import generator

IMAGENET_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Standard deviation of the red, green and blue of ImageNet's pixels, 0..255: the unit of the source's noise."""
NOISE, LIMIT = 0.2, 0.25
"""Standard deviation of the noise, and the value at which it is cut off."""


def pixel_noise(seed: int, image: int, size: int) -> Tensor:
    """Noise for an image of a store, in units of a pixel's 0..255, as [3, size, size] RGB on the CPU.

    Normal with a standard deviation of 0.2, cut off at 0.25 on either side, both times the deviation of ImageNet's
    pixels. It depends on (seed, image) only: it is the same in every epoch, and for any number of workers.

    Source: Huang et al., ICCV 2023 (arXiv 2212.05946), section 3.2; released util/eval_interpretability.py.
    """
    normal = torch.randn(3, size, size, generator=generator("noise", seed, image))
    return (NOISE * normal).clamp_(-LIMIT, LIMIT) * torch.tensor(IMAGENET_DEVIATION)[:, None, None]
