"""Map sides and receptive fields of a spec's layers, from the same table that builds the network."""

from __future__ import annotations

from ipcnn_ray.core import receptive_field as core
from ipcnn_ray.core.receptive_field import Field, Window
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.networks import LRN, Conv, Layer, Network, Pool


def spatial_layers(network: Network, appended: bool) -> tuple[Layer, ...]:
    """From the image to the ReLU of the highest convolution, the appended one included if there is one."""
    return (*network.layers, network.appended) if appended else network.layers


def window(layer: Conv | Pool) -> Window:
    """The layer as geometry."""
    return Window(layer.kernel, layer.stride, layer.pad, isinstance(layer, Pool) and layer.ceil)


def windows(network: Network, layer: str, appended: bool = True) -> list[Window]:
    """The windows from the image up to and including `layer`; normalisation has none.

    Errors: IpcnnError for a layer that the network does not have.
    """
    found: list[Window] = []
    layers = spatial_layers(network, appended)
    for part in layers:
        if not isinstance(part, LRN):
            found.append(window(part))
        if part.name == layer:
            return found
    raise IpcnnError(f"no layer {layer!r}: the network has {', '.join(part.name for part in layers)}")


def field(model: Model, layer: str) -> Field:
    """Receptive fields of the cells of `layer`, in pixels of the network's square input, 0-based."""
    return core.receptive_field(windows(model.table, layer, model.appended_layer))


def map_side(model: Model, layer: str) -> int:
    """n, the side of the map of `layer` in cells."""
    return core.map_side(model.table.image_size, windows(model.table, layer, model.appended_layer))
