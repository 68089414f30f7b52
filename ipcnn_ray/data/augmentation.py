"""Random crops, mirror images and colours of training images, computed in batches on their device.

Each item of the training split has its own random numbers in each epoch, `draws`, so that an image does not depend on
the number of workers, on its batch, or on whether the run was resumed.

B images of side S, pixels 0..255; D = 7 numbers of an item: mirror, area, row, col, brightness, contrast, saturation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ipcnn_ray.core.seeds import generator

DRAWS = 7
GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in the lightness of a pixel, as in torchvision."""


def draws(items: int, seed: int, epoch: int) -> Tensor:
    """Return the random numbers of all training items in an epoch, [items, D] in [0, 1), on the CPU."""
    return torch.rand(items, DRAWS, generator=generator("augment", seed, epoch))


def mirrors(draws_BD: Tensor) -> Tensor:
    """Return which images to mirror: half of them, [B] bool."""
    return draws_BD[:, 0] < 0.5


def cropped(images_B3SS: Tensor, draws_BD: Tensor, crop: tuple[float, float]) -> Tensor:
    """Return a random square of each image, scaled to the image's size with bilinear interpolation.

    crop: smallest and largest share of the image's area; (1, 1) returns the images themselves.

    Source: `RandomResizedCrop` of torchvision.
    Deviations: the aspect ratio is kept, and the square is not rounded to whole pixels.
    """
    low, high = crop
    if low == high == 1:
        return images_B3SS
    side_B = (low + (high - low) * draws_BD[:, 1]).sqrt()
    # In coordinates from -1 to 1, the centre of a square of side 2 * side lies at most 1 - side from the image's.
    row_B, col_B = ((1 - side_B) * (2 * draws_BD[:, k] - 1) for k in (2, 3))
    zero_B = torch.zeros_like(side_B)
    theta_B23 = torch.stack([side_B, zero_B, col_B, zero_B, side_B, row_B], 1).reshape(-1, 2, 3)
    grid_BSS2 = F.affine_grid(theta_B23, list(images_B3SS.shape), align_corners=False)
    return F.grid_sample(images_B3SS, grid_BSS2, "bilinear", "border", align_corners=False)


def colored(images_B3SS: Tensor, draws_BD: Tensor, strength: float) -> Tensor:
    """Return the images with random brightness, contrast and saturation, each multiplied by 1 - strength to
    1 + strength, in this order. Values are kept in 0..255.

    Source: `ColorJitter` of torchvision, without its change of hue.
    Deviations: the order is fixed; torchvision draws it.
    """
    if strength == 0:
        return images_B3SS
    brightness, contrast, saturation = (
        (1 + strength * (2 * draws_BD[:, k] - 1))[:, None, None, None] for k in (4, 5, 6)
    )
    images = (images_B3SS * brightness).clamp(0, 255)
    mean_B111 = _grey(images).mean((1, 2, 3), keepdim=True)
    images = (mean_B111 + contrast * (images - mean_B111)).clamp(0, 255)
    grey_B1SS = _grey(images)
    return (grey_B1SS + saturation * (images - grey_B1SS)).clamp(0, 255)


def _grey(images_B3SS: Tensor) -> Tensor:
    """Return the lightness of each pixel, [B, 1, S, S]."""
    return sum(share * images_B3SS[:, k : k + 1] for k, share in enumerate(GREY))  # type: ignore[return-value]
