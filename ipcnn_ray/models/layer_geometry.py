"""Map sides and receptive fields of the layers of a spec, from the table that the network is built from."""

from __future__ import annotations

from ipcnn_ray.core import receptive_field as core
from ipcnn_ray.core.receptive_field import Field, Window
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.models.backbones import Block, backbone_blocks
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.networks import LRN, Conv, Network, Pool


def body_layers(network: Network, appended: bool) -> list[Block]:
    """Return the layers from the image to the highest convolution, including the appended one if there is one.
    Raises IpcnnError if a torchvision network cannot be cut where the row says."""
    blocks = list(backbone_blocks(network.trunk, network.image_size)) if network.trunk else []
    channels, side = (blocks[-1].channels, blocks[-1].side) if blocks else (3, network.image_size)
    for row in (*network.layers, *([network.appended] if appended else [])):
        is_conv, field = isinstance(row, Conv), None if isinstance(row, LRN) else window(row)
        if isinstance(row, Conv):
            channels = row.out or channels
        if field is not None:
            side = core.map_side(side, [field])
        blocks.append(Block(row.name, type(row).__name__, channels, side, field, is_conv, is_conv, row))
    return blocks


def window(row: Conv | Pool) -> Window:
    return Window(row.kernel, row.stride, row.pad, isinstance(row, Pool) and row.ceil)


def _up_to(model: Model, name: str) -> list[Block]:
    blocks = body_layers(model.table, model.appended_layer)
    names = [block.name for block in blocks]
    if name not in names:
        raise IpcnnError(f"no layer {name!r}: the network has {', '.join(names)}")
    return blocks[: names.index(name) + 1]


def layer_receptive_field(model: Model, layer: str) -> Field:
    """Return the receptive fields of the cells of `layer`, in pixels of the network's square input, 0-based. Raises
    IpcnnError if the network has no such layer."""
    return core.receptive_field([block.window for block in _up_to(model, layer) if block.window])


def map_side(model: Model, layer: str) -> int:
    """Return n, the side of the map of `layer` in cells. Raises IpcnnError if the network has no such layer."""
    return _up_to(model, layer)[-1].side
