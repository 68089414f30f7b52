"""The torchvision networks that can be a backbone: their names and image sizes. `models/` knows their layers.

A backbone is cut behind one of its layers; what lies above the cut is replaced by the appended convolution and a new
head. torchvision's `alexnet` is another network than Caffe's, and `vgg16` is in the table of networks already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

BackboneName = Literal[
    "squeezenet1_0",
    "squeezenet1_1",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_1_6gf",
    "regnet_x_3_2gf",
    "regnet_x_8gf",
    "regnet_x_16gf",
    "regnet_x_32gf",
    "efficientnet_b0",
]


@dataclass(frozen=True)
class Trunk:
    """The part of a torchvision network from the image up to and including layer `cut`."""

    name: str
    """The network's name in torchvision."""
    cut: str
    """The layer's name in the network, such as `features.12` or `layer4.1`; empty while none is chosen."""


# SqueezeNet: the authors' own 227 (14 x 14 cells behind fire8 and fire9; torchvision's recipe has 224 and 13 x 13).
IMAGE_SIZES: dict[str, int] = dict.fromkeys(get_args(BackboneName), 224) | {
    "squeezenet1_0": 227,
    "squeezenet1_1": 227,
    "inception_v3": 299,
}
"""Side of the square input, pixels, unless `model.image_size` says otherwise."""
