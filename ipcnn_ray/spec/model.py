"""The model section: the network, its pretrained weights, and its interpretable layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.spec.networks import NETWORKS, Network, NetworkName, row
from ipcnn_ray.spec.section import ErrorMessage, Flag, Integer, Number, OmitDefaultFromDigest, Section

Head = Literal["fully_connected", "average_pool", "max_pool"]


def channels_of(file: str) -> Literal["rgb", "bgr"]:
    """Return the default channel order of a weight file: Caffe's bgr for arrays, rgb for MatConvNet (which converted
    its imagenet-* networks to RGB) and torchvision."""
    return "rgb" if file.endswith((".mat", ".pth", ".pt")) else "bgr"


def pixels_of(file: str) -> Literal["raw", "torchvision"]:
    """Return the default scaling of the images that a weight file was trained on."""
    return "torchvision" if file.endswith((".pth", ".pt")) else "raw"


class Weights(Section):
    """Pretrained weights: a file in the folder IPCNN_WEIGHTS."""

    location: ClassVar = ("model", "weights")
    file: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(npz|safetensors|mat|pth|pt)$"),
        ErrorMessage(
            "must be the name of a .npz, .safetensors, .mat (MatConvNet) or .pth (state dict) file, without its "
            "folder; IPCNN_WEIGHTS names the folder"
        ),
    ]
    """Name of the file, without a folder. .npz or .safetensors: arrays `<layer>_w` (OIHW) and `<layer>_b`, or
    torchvision's names. .mat: a MatConvNet SimpleNN network. .pth or .pt: a torchvision state dict."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers to load, by their names in the network. Default: all of the original network. Runs that do not load all of
    them are tagged as using partial weights."""
    channels: Literal["rgb", "bgr"] | None = None
    """Channel order of the images that the file was trained on; our images are RGB. Default: bgr (Caffe) for .npz and
    .safetensors, rgb for .mat (MatConvNet's imagenet-* networks) and .pth."""
    pixels: Annotated[Literal["raw", "torchvision"] | None, OmitDefaultFromDigest()] = None
    """Scaling of the images that the file was trained on. `raw`: values 0 to 255 minus a mean. `torchvision`: values 0
    to 1 minus a mean, divided by (0.229, 0.224, 0.225). Default: torchvision for .pth and .pt, raw for the others."""


class Model(Section):
    """The network, and its interpretable layers."""

    location: ClassVar = ("model",)
    network: NetworkName
    """compact (four small convolutions, 64 px), alexnet (Caffe's), vgg_m, vgg_s, vgg16, or a torchvision network such
    as squeezenet1_1, resnet50, convnext_tiny, with `cut`."""
    cut: Annotated[str | None, OmitDefaultFromDigest()] = None
    """Highest layer of a torchvision network that is kept, by its torchvision name, such as features.12 or layer4.1.
    The appended convolution and a new head replace the layers above. Required for torchvision networks."""
    image_size: Annotated[Annotated[Integer, Field(ge=16, le=1024)] | None, OmitDefaultFromDigest()] = None
    """Side of a torchvision network's square input, pixels. Default: the network's own (SqueezeNet 227, Inception 299,
    others 224). Not for other networks, whose size is fixed."""
    appended_layer: Flag = True
    """Append a 3 x 3 convolution to the highest one, with as many output as input channels, as in the paper's
    interpretable networks. Its name in a torchvision network is `appended`."""
    appended_kernel: Annotated[Literal[1, 3], OmitDefaultFromDigest()] = 3
    """Side of the appended convolution's kernel, cells. With 1, its receptive fields are those of the layer below."""
    appended_filters: Annotated[Annotated[Integer, Field(ge=1, le=4096)] | None, OmitDefaultFromDigest()] = None
    """Number of filters of the appended convolution. Default: as many as it has input channels."""
    interpretable_layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers whose maps the templates act on, lowest first. Default: the highest convolution (or the layer at the cut)
    and the appended one. Location instability is measured on them, also with `template.shape: none`."""
    appended_mask: Annotated[Literal["full", "pooled"], OmitDefaultFromDigest()] = "full"
    """Position of the appended layer's template: before the pooling that follows the layer (`full`, as in the paper's
    figure) or after it (`pooled`, as in the authors' code). Location instability is measured on the full map."""
    head: Annotated[Head, OmitDefaultFromDigest()] = "fully_connected"
    """Layers between the highest maps and the scores. `fully_connected`: max pooling and the network's own fully
    connected layers. `average_pool`, `max_pool`: global average or max pooling over the maps, one number per filter,
    and a single linear layer, whose few parameters cannot memorise the images. With `appended_mask: pooled` the
    network's own max pooling comes first."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Share of units dropped after each hidden fully connected layer, or of the filters after global pooling. Default:
    the network's own."""
    weights: Weights | None = None
    """Pretrained weights. Default: every layer is initialised at random."""
    new_weights: Annotated[Literal["released", "he", "lsuv"] | None, OmitDefaultFromDigest()] = None
    """Initial weights of the layers without pretrained ones. `released`: N(0, 0.01^2). `he`: He-normal, but for the
    last layer, which is N(0, 0.01^2). `lsuv`: He-normal, then scaled layer by layer so that the outputs have mean
    square 1 on training images, through the masks of the first epoch (Mishkin & Matas, ICLR 2016), for layers behind
    narrow masks. Default: `released` with pretrained weights, else `he`."""

    @property
    def table(self) -> Network:
        """Row of the table of networks, with the appended convolution of this section."""
        table = row(self.network, self.cut, self.image_size)
        assert table is not None, self.network
        filters = self.appended_filters or table.appended.out
        kernel = self.appended_kernel
        return replace(table, appended=replace(table.appended, out=filters, kernel=kernel, pad=kernel // 2))

    @property
    def backbone(self) -> bool:
        """Whether the network is torchvision's; only `models/` knows its layers then."""
        return self.network not in NETWORKS

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of all convolutions, lowest first; of a torchvision network only the appended one."""
        return self.table.convs + ((self.table.appended.name,) if self.appended_layer else ())
