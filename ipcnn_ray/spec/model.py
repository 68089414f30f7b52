"""The model section: which network, from which weights, and which of its layers are interpretable."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ipcnn_ray.spec.base import Flag, Number, Says, Section
from ipcnn_ray.spec.networks import NETWORKS, Network, NetworkName


class Weights(Section):
    """Pretrained weights: a file name, looked up in the folder that IPCNN_WEIGHTS names."""

    file: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(npz|safetensors)$"),
        Says("must be the name of a .npz or .safetensors file, without its folder; IPCNN_WEIGHTS names the folder"),
    ]
    """Name of the file, without a folder: .npz or .safetensors, arrays `<layer>_w` (OIHW) and `<layer>_b`."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    """The layers to load, in the network's names. Runs in which a convolution of the original network is not
    loaded are tagged as using partial weights."""
    channels: Literal["rgb", "bgr"] = "bgr"
    """Channel order of the images that the file's first layer was trained on (Caffe: bgr). Networks here see RGB."""


class Model(Section):
    """Which network, and which of its layers are interpretable."""

    network: NetworkName
    """compact (four small convolutions, 64 px), alexnet (Caffe's), vgg_m, vgg_s or vgg16."""
    appended_layer: Flag = True
    """Append one more convolution behind the highest one, as the interpretable networks have it."""
    interpretable_layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers whose maps the templates act on, lowest first. Default: the highest convolution and the appended one.
    With `template.shape: none` these are the layers that location instability is measured on."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Share of units dropped behind each hidden fully connected layer. Default: the network's own."""
    weights: Weights | None = None
    """Pretrained weights; without them every layer starts from random numbers."""

    @property
    def table(self) -> Network:
        return NETWORKS[self.network]

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of all convolutions that this model has, lowest first."""
        return self.table.convs + ((self.table.appended.name,) if self.appended_layer else ())
