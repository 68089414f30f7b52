"""The model section: which network, from which weights, and which of its layers are interpretable."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ipcnn_ray.spec.networks import NETWORKS, Network, NetworkName, row
from ipcnn_ray.spec.section import ErrorMessage, Flag, Integer, Number, OmitDefaultFromDigest, Section


def channels_of(file: str) -> Literal["rgb", "bgr"]:
    """Channel order of the weights in a file of this name, unless a spec states it: Caffe's bgr for arrays, rgb for
    MatConvNet (which converted its imagenet-* networks to RGB) and torchvision."""
    return "rgb" if file.endswith((".mat", ".pth", ".pt")) else "bgr"


def pixels_of(file: str) -> Literal["raw", "torchvision"]:
    """Scaling of the images that the weights in a file of this name were trained on, unless a spec states it."""
    return "torchvision" if file.endswith((".pth", ".pt")) else "raw"


class Weights(Section):
    """Pretrained weights: a file name, looked up in the folder that IPCNN_WEIGHTS names."""

    file: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(npz|safetensors|mat|pth|pt)$"),
        ErrorMessage(
            "must be the name of a .npz, .safetensors, .mat (MatConvNet) or .pth (state dict) file, without its "
            "folder; IPCNN_WEIGHTS names the folder"
        ),
    ]
    """Name of the file, without a folder. .npz or .safetensors: arrays `<layer>_w` (OIHW) and `<layer>_b`, or
    torchvision's names. .mat: MatConvNet's SimpleNN networks. .pth or .pt: a torchvision state dict."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The layers to load, in the network's names. Default: all of the original network. Runs in which a layer of the
    original network is not loaded are tagged as using partial weights."""
    channels: Literal["rgb", "bgr"] | None = None
    """Channel order of the images that the file's first layer was trained on. Networks here see RGB. Default: bgr
    (Caffe) for .npz and .safetensors, rgb for .mat (MatConvNet's imagenet-* networks) and .pth."""
    pixels: Annotated[Literal["raw", "torchvision"] | None, OmitDefaultFromDigest()] = None
    """What the file's first layer was trained on. `raw`: values 0 to 255 less a mean. `torchvision`: values 0 to 1
    less a mean, divided by (0.229, 0.224, 0.225). Default: torchvision for .pth and .pt, raw for the others."""


class Model(Section):
    """Which network, and which of its layers are interpretable."""

    network: NetworkName
    """compact (four small convolutions, 64 px), alexnet (Caffe's), vgg_m, vgg_s, vgg16, or a torchvision network such
    as squeezenet1_1, resnet50, convnext_tiny, with `cut`."""
    cut: Annotated[str | None, OmitDefaultFromDigest()] = None
    """Of a torchvision network, which needs it: the highest layer that is kept, in torchvision's names, such as
    features.12 or layer4.1. The appended convolution and a new head take the place of what lies above."""
    image_size: Annotated[Annotated[Integer, Field(ge=16, le=1024)] | None, OmitDefaultFromDigest()] = None
    """Side of a torchvision network's square input, pixels. Default: the network's own (SqueezeNet 227, Inception 299,
    others 224). The networks of the table have fixed sizes."""
    appended_layer: Flag = True
    """Append one more convolution behind the highest one, as the interpretable networks have it. It is 3 x 3 and puts
    out as many channels as it takes in; behind a torchvision network it is called `appended`."""
    interpretable_layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers whose maps the templates act on, lowest first. Default: the highest convolution (or the layer at the cut)
    and the appended one. With `template.shape: none` these are the layers that location instability is measured on."""
    appended_mask: Annotated[Literal["full", "pooled"], OmitDefaultFromDigest()] = "full"
    """Where the appended layer's template acts: on its map as it is (`full`, as the paper draws it), or behind the
    pooling that follows it (`pooled`, as the authors' code has it). Location instability is read from the full map."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Share of units dropped behind each hidden fully connected layer. Default: the network's own."""
    weights: Weights | None = None
    """Pretrained weights; without them every layer starts from random numbers."""

    @property
    def table(self) -> Network:
        found = row(self.network, self.cut, self.image_size)
        assert found is not None, self.network
        return found

    @property
    def backbone(self) -> bool:
        """Whether the network is torchvision's: then only `models/` knows its layers."""
        return self.network not in NETWORKS

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of all convolutions that this model has, lowest first; of a backbone the appended one alone."""
        return self.table.convs + ((self.table.appended.name,) if self.appended_layer else ())
