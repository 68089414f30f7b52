"""The model section: the network, its pretrained weights, and its interpretable layers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidatorFunctionWrapHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ipcnn_ray.spec.networks import NETWORKS, TIMM, Network, NetworkName, row
from ipcnn_ray.spec.section import ErrorMessage, Flag, Integer, Number, OmitDefaultFromDigest, Section

Head = Literal["fully_connected", "average_pool", "max_pool"]


def channels_of(file: str, network: str) -> Literal["rgb", "bgr"]:
    """Return the default channel order of a weight file: Caffe's bgr for arrays, rgb for MatConvNet (which converted
    its imagenet-* networks to RGB), torchvision and timm."""
    return "rgb" if file.endswith((".mat", ".pth", ".pt")) or network.startswith(TIMM) else "bgr"


def pixels_of(file: str, network: str) -> Literal["raw", "torchvision"]:
    """Return the default scaling of the images that a weight file was trained on."""
    return "torchvision" if file.endswith((".pth", ".pt")) or network.startswith(TIMM) else "raw"


@dataclass(frozen=True)
class OrOfTimm:
    """Allows `timm/` and a name, besides the names of a Literal; `models/` checks that timm has such a network."""

    def _check(self, value: object, listed: ValidatorFunctionWrapHandler) -> object:
        if not isinstance(value, str) or not value.startswith(TIMM):
            return listed(value)
        name, dot, tag = value.removeprefix(TIMM).partition(".")
        if dot:
            advice = f"has a tag, which is a name of weights: network: {TIMM}{name}, weights: {{timm: {tag}}}"
        elif not re.fullmatch("[a-z0-9_]+", name):
            advice = f"must be {TIMM} and a name of timm, such as {TIMM}resnet18"
        else:
            return value
        raise PydanticCustomError("error_message", "{text}", {"text": advice})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": f"^{TIMM}[a-z0-9_]+$"}]}


class Weights(Section):
    """Pretrained weights: a file in the folder IPCNN_WEIGHTS, or weights that torchvision or timm publish."""

    location: ClassVar = ("model", "weights")
    file: Annotated[
        Annotated[
            str,
            Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(npz|safetensors|mat|pth|pt)$"),
            ErrorMessage(
                "must be the name of a .npz, .safetensors, .mat (MatConvNet) or .pth (state dict) file, without its "
                "folder; IPCNN_WEIGHTS names the folder"
            ),
        ]
        | None,
        OmitDefaultFromDigest(),
    ] = None
    """Name of the file, without a folder. .npz or .safetensors: arrays `<layer>_w` (OIHW) and `<layer>_b`, or
    torchvision's names. .mat: a MatConvNet SimpleNN network. .pth or .pt: a torchvision state dict."""
    torchvision: Annotated[Annotated[str, Field(min_length=1)] | None, OmitDefaultFromDigest()] = None
    """In place of `file`: name of weights that torchvision publishes for this network, such as DEFAULT, IMAGENET1K_V1,
    or IMAGENET1K_FEATURES (vgg16: Simonyan and Zisserman's own, which the papers start from). Downloaded once, by the
    process that submits, into IPCNN_WEIGHTS (if it is not a folder: into IPCNN_HOME/weights), and checked by its hash.
    Images are centred and scaled as in the preprocessing of these weights."""
    timm: Annotated[Annotated[str, Field(min_length=1)] | None, OmitDefaultFromDigest()] = None
    """In place of `file`, for networks of timm: tag of the weights, such as a1_in1k, or DEFAULT. Downloaded as those of
    torchvision, from Hugging Face's hub (or HF_ENDPOINT), whose files have no hash in their names."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers to load, by their names in the network. Default: all of the original network. Runs that do not load all of
    them are tagged as using partial weights."""
    channels: Literal["rgb", "bgr"] | None = None
    """Channel order of the images that the file was trained on; our images are RGB. Default: bgr (Caffe) for .npz and
    .safetensors, rgb for .mat (MatConvNet's imagenet-* networks), .pth, weights by name, and all of timm."""
    pixels: Annotated[Literal["raw", "torchvision"] | None, OmitDefaultFromDigest()] = None
    """Scaling of the images that the file was trained on. `raw`: values 0 to 255 minus a mean. `torchvision`: values 0
    to 1 minus a mean, divided by (0.229, 0.224, 0.225). Default: torchvision for .pth and .pt and for networks
    of timm, raw for the others. Not for weights by name, whose preprocessing is known."""

    @property
    def published(self) -> bool:
        """Whether the weights are named, not a file; only `models/` knows the names then."""
        return self.file is None


class Model(Section):
    """The network, and its interpretable layers."""

    location: ClassVar = ("model",)
    network: Annotated[NetworkName, OrOfTimm()]
    """compact (four small convolutions, 64 px), alexnet (Caffe's), vgg_m, vgg_s, vgg16, or a torchvision network such
    as squeezenet1_1, resnet50, convnext_tiny, with `cut`. With the extra timm (`pip install ipcnn-ray[timm]`) also
    `timm/` and a name of timm, such as timm/resnet18, with `cut`."""
    cut: Annotated[str | None, OmitDefaultFromDigest()] = None
    """Highest layer of a network of torchvision or timm that is kept, by its name there, such as features.12 or
    layer4.1. The appended convolution and a new head replace the layers above. Required for these networks."""
    image_size: Annotated[Annotated[Integer, Field(ge=16, le=1024)] | None, OmitDefaultFromDigest()] = None
    """Side of the square input of a network of torchvision or timm, pixels. Default: the network's own in torchvision
    (SqueezeNet 227, Inception 299, others 224), 224 in timm. Not for other networks, whose size is fixed."""
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
        """Whether the network is torchvision's or timm's; only `models/` knows its layers then."""
        return self.network not in NETWORKS

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of all convolutions, lowest first; of a network of torchvision or timm only the appended one."""
        return self.table.convs + ((self.table.appended.name,) if self.appended_layer else ())
