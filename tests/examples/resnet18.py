"""A ResNet-18 of one's own with an interpretable layer, and small pictures to try it on."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from ipcnn_ray import InterpretableLayer


class InterpretableResNet(nn.Module):
    """A ResNet-18 up to its third stage, a convolution, and the interpretable layer; [N, 3, S, S] -> [N, classes].

    weights: as of torchvision, such as `DEFAULT`. image_size: S, pixels.
    """

    def __init__(self, classes: int, image_size: int = 224, weights: str | None = None) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18(weights=weights)
        self.body = nn.Sequential(*list(resnet.children())[:-3])  # [N, 256, S / 16, S / 16]
        self.conv = nn.Conv2d(256, 64, 3, padding=1)
        self.layer = InterpretableLayer(n=image_size // 16, shape="gradient", norm="l2", beta=10)
        self.head = nn.Linear(64, classes)

    def maps(self, images: Tensor) -> Tensor:
        """Return the maps before ReLU and mask, which the metrics measure, [N, 64, n, n]."""
        maps: Tensor = self.conv(self.body(images))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layer(torch.relu(self.maps(images))).amax((2, 3)))
        return scores


class Pictures(NamedTuple):
    """Pictures of a square of a colour on noise."""

    images: Tensor
    """[N, 3, S, S]"""
    labels: Tensor
    """The colour, [N]."""
    landmarks: Tensor
    """(row, col) of the middle of the square, pixels, [N, 1, 2]."""


def pictures(count: int, classes: int = 3, image_size: int = 96, seed: int = 0) -> Pictures:
    """Draw `count` pictures."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 3, image_size, image_size, generator=generator)
    side = image_size // 5
    corners = torch.randint(image_size - side, (count, 2), generator=generator)
    labels = torch.arange(count) % classes
    for image, label, (row, col) in zip(images, labels.tolist(), corners.tolist(), strict=True):
        image[label, row : row + side, col : col + side] += 2
    return Pictures(images, labels, corners[:, None].double() + (side - 1) / 2)
