"""Map sides and receptive fields of the layers of a spec, from the table that the network is built from."""

from __future__ import annotations

from dataclasses import replace

from ipcnn_ray.core import receptive_field as core
from ipcnn_ray.core.receptive_field import Field, Window
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.models.backbones import Block, backbone_blocks
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.networks import LRN, Conv, Layer, Network, Pool


def spatial_layers(network: Network, appended: bool) -> tuple[Layer | Block, ...]:
    """Return the layers from the image to the highest convolution, including the appended one if there is one.
    Raises IpcnnError if a torchvision network cannot be cut where the row says."""
    layers: tuple[Layer | Block, ...] = network.layers
    last = network.appended
    if network.trunk is not None:
        layers = trunk = backbone_blocks(network.trunk, network.image_size)
        last = replace(last, out=trunk[-1].channels)
    return (*layers, last) if appended else layers


def window(layer: Conv | Pool) -> Window:
    return Window(layer.kernel, layer.stride, layer.pad, isinstance(layer, Pool) and layer.ceil)


def output_side(layer: Layer | Block, side: int) -> int:
    """Return the side of a layer's output map for an input map of `side` cells."""
    if isinstance(layer, Block):
        return layer.side
    return side if isinstance(layer, LRN) else core.map_side(side, [window(layer)])


def _up_to(network: Network, name: str, appended: bool) -> list[Layer | Block]:
    layers = spatial_layers(network, appended)
    names = [layer.name for layer in layers]
    if name not in names:
        raise IpcnnError(f"no layer {name!r}: the network has {', '.join(names)}")
    return list(layers[: names.index(name) + 1])


def windows(network: Network, layer: str, appended: bool = True) -> list[Window]:
    """Return the windows from the image up to and including `layer`; normalisation has none. Raises IpcnnError if
    the network has no such layer."""
    parts = _up_to(network, layer, appended)
    return [part.window if isinstance(part, Block) else window(part) for part in parts if not isinstance(part, LRN)]


def layer_receptive_field(model: Model, layer: str) -> Field:
    """Return the receptive fields of the cells of `layer`, in pixels of the network's square input, 0-based."""
    return core.receptive_field(windows(model.table, layer, model.appended_layer))


def map_side(model: Model, layer: str) -> int:
    """Return n, the side of the map of `layer` in cells."""
    side = model.table.image_size
    for part in _up_to(model.table, layer, model.appended_layer):
        side = output_side(part, side)
    return side
