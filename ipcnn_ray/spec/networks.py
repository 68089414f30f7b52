"""The table of networks: their layers and geometry.

`models/` builds networks from this table, specs check layer names against it, and receptive fields are computed from
it, so the three agree. It has the spatial layers; the fully connected ones follow from `head`. `row` makes a row for a
network of torchvision or timm, whose layers only `models/` knows.

Sources: Caffe `bvlc_alexnet` deploy.prototxt; Chatfield et al., *Return of the Devil in the Details* (VGG-M,
VGG-S); Simonyan and Zisserman (VGG-16); the appended layer and its head: Zhang et al., CVPR 2018, released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

BackboneName = Literal[
    "squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "convnext_tiny", "convnext_small",
    "convnext_base", "convnext_large", "densenet121", "densenet161", "densenet169", "densenet201", "vgg11",
    "vgg11_bn", "vgg13", "vgg13_bn", "vgg16_bn", "vgg19", "vgg19_bn", "googlenet", "inception_v3", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
    "regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf",
    "regnet_x_32gf", "efficientnet_b0",
]  # fmt: skip


@dataclass(frozen=True)
class Trunk:
    """The part of a network of torchvision or timm from the image up to and including layer `cut`."""

    name: str
    """The network's name in torchvision, or `timm/` and its name in timm."""
    cut: str
    """Name of the layer in the network, such as `features.12` or `layer4.1`; empty if none is set."""


# SqueezeNet: the authors' own 227 (14 x 14 cells behind fire8 and fire9; torchvision's recipe has 224 and 13 x 13).
IMAGE_SIZES: dict[str, int] = dict.fromkeys(get_args(BackboneName), 224) | {
    "squeezenet1_0": 227,
    "squeezenet1_1": 227,
    "inception_v3": 299,
}
"""Default of `model.image_size`, pixels."""
TIMM = "timm/"
"""What the names of timm's networks begin with, such as `timm/resnet18`; only `models/` knows which there are."""
IN_TORCHVISION = ("vgg16",)
"""Networks of the table whose layers are those of torchvision's network of the same name."""
NetworkName = Literal["compact", "alexnet", "vgg_m", "vgg_s", "vgg16", BackboneName]


@dataclass(frozen=True)
class Conv:
    """A convolution followed by ReLU. `out` channels, square `kernel`, `stride` and `pad` in cells of its input."""

    name: str
    out: int | None
    """None: the number of its input channels (the layer appended to a network of torchvision or timm)."""
    kernel: int
    stride: int = 1
    pad: int = 0
    groups: int = 1


@dataclass(frozen=True)
class Pool:
    """Max pooling. `ceil`: also pool windows that extend over the right or bottom edge (Caffe's rule)."""

    name: str
    kernel: int
    stride: int
    ceil: bool = False
    pad: int = 0


@dataclass(frozen=True)
class LRN:
    """Local response normalisation over channels, as Caffe and torch define `alpha` (divided by the window size)."""

    name: str
    size: int
    alpha: float
    beta: float
    k: float


Layer = Conv | Pool | LRN


@dataclass(frozen=True)
class Network:
    """One row of the table."""

    image_size: int
    """Side of the square input, pixels."""
    layers: tuple[Layer, ...]
    """From the image to the ReLU of the highest convolution (no pooling after it)."""
    appended: Conv
    """The convolution appended behind the highest one, followed by ReLU."""
    head_pool: Pool
    """Max pooling between the last spatial layer and the head."""
    head: tuple[int, ...] = (4096, 4096)
    """Widths of the hidden fully connected layers; the last layer has one output per category."""
    dropout: float = 0.5
    """Share of units dropped behind each hidden fully connected layer when training."""
    input_scale: float = 1.0
    """The network sees (pixel in 0..255 - mean) * input_scale."""
    trunk: Trunk | None = None
    """The part of a network of torchvision or timm up to and including a named layer, in place of `layers`."""

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of the convolutions from the image up, without the appended one; empty for a trunk."""
        return tuple(layer.name for layer in self.layers if isinstance(layer, Conv))

    @property
    def last_conv(self) -> str:
        """Highest convolution of the original network, or the layer at the cut of a trunk."""
        return self.trunk.cut if self.trunk else self.convs[-1]


def row(name: str, cut: str | None = None, image_size: int | None = None) -> Network | None:
    """Return the row of a network of the table, or one for a network of torchvision or timm; None for an unknown name.

    cut: highest layer of such a network that is kept. image_size: side of its square input, pixels; None is the one in
    `IMAGE_SIZES`, or 224.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name not in IMAGE_SIZES and not name.startswith(TIMM):
        return None
    return Network(
        image_size=image_size or IMAGE_SIZES.get(name, 224),
        layers=(),
        appended=Conv("appended", None, 3, pad=1),
        head_pool=Pool("pool", 2, 2),
        head=(512,),
        input_scale=1 / 64,
        trunk=Trunk(name, cut or ""),
    )


def _vgg16() -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        layers += [Conv(f"conv{block}_{i}", width, 3, pad=1) for i in range(1, depth + 1)]
        if block < 5:
            layers.append(Pool(f"pool{block}", 2, 2))
    return tuple(layers)


NETWORKS: dict[str, Network] = {
    # A small network for CPUs and tests: 64 px images, 16 x 16 maps, stride 4.
    "compact": Network(
        image_size=64,
        layers=(
            Conv("conv1", 16, 5, stride=2, pad=2),
            Conv("conv2", 32, 3, pad=1),
            Pool("pool2", 2, 2),
            Conv("conv3", 32, 3, pad=1),
            Conv("conv4", 32, 3, pad=1),
        ),
        appended=Conv("conv5", 32, 3, pad=1),
        head_pool=Pool("pool5", 4, 4),
        head=(64,),
        dropout=0.0,
        input_scale=1 / 64,
    ),
    "alexnet": Network(
        image_size=227,
        layers=(
            Conv("conv1", 96, 11, stride=4),
            LRN("norm1", 5, 1e-4, 0.75, 1.0),
            Pool("pool1", 3, 2, ceil=True),
            Conv("conv2", 256, 5, pad=2, groups=2),
            LRN("norm2", 5, 1e-4, 0.75, 1.0),
            Pool("pool2", 3, 2, ceil=True),
            Conv("conv3", 384, 3, pad=1),
            Conv("conv4", 384, 3, pad=1, groups=2),
            Conv("conv5", 256, 3, pad=1, groups=2),
        ),
        appended=Conv("conv6", 256, 3, pad=1),
        head_pool=Pool("pool6", 3, 2, ceil=True),
    ),
    "vgg_m": Network(
        image_size=224,
        layers=(
            Conv("conv1", 96, 7, stride=2),
            LRN("norm1", 5, 5e-4, 0.75, 2.0),
            Pool("pool1", 3, 2),
            Conv("conv2", 256, 5, stride=2, pad=1),
            LRN("norm2", 5, 5e-4, 0.75, 2.0),
            Pool("pool2", 3, 2, ceil=True),
            Conv("conv3", 512, 3, pad=1),
            Conv("conv4", 512, 3, pad=1),
            Conv("conv5", 512, 3, pad=1),
        ),
        appended=Conv("conv6", 512, 3, pad=1),
        head_pool=Pool("pool6", 3, 2),
    ),
    "vgg_s": Network(
        image_size=224,
        layers=(
            Conv("conv1", 96, 7, stride=2),
            LRN("norm1", 5, 5e-4, 0.75, 2.0),
            Pool("pool1", 3, 3, ceil=True),
            Conv("conv2", 256, 5),
            Pool("pool2", 2, 2, ceil=True),
            Conv("conv3", 512, 3, pad=1),
            Conv("conv4", 512, 3, pad=1),
            Conv("conv5", 512, 3, pad=1),
        ),
        appended=Conv("conv6", 512, 3, pad=1),
        head_pool=Pool("pool6", 3, 3, ceil=True),
    ),
    "vgg16": Network(
        image_size=224,
        layers=_vgg16(),
        appended=Conv("conv6", 512, 3, pad=1),
        head_pool=Pool("pool6", 2, 2),
    ),
}
