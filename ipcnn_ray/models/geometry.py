"""Receptive fields and map sizes of a network's layers, from the table that also builds it."""

from __future__ import annotations

from ipcnn_ray.core.receptive_field import Field, Window, map_side, receptive_field
from ipcnn_ray.spec.networks import LRN, Conv, Network, Pool


def windows(network: Network, layer: str) -> list[Window]:
    """Everything between the image and the output of convolution `layer` (the appended one included) as geometry."""
    found: list[Window] = []
    for step in (*network.layers, network.appended):
        if isinstance(step, LRN):
            continue
        found.append(Window(step.kernel, step.stride, step.pad, isinstance(step, Pool) and step.ceil))
        if isinstance(step, Conv) and step.name == layer:
            return found
    raise ValueError(f"layer = {layer!r}: the network has {[*network.convs, network.appended.name]}")


def field(network: Network, layer: str) -> Field:
    """Receptive fields of the cells of convolution `layer`, 0-based pixels."""
    return receptive_field(windows(network, layer))


def side(network: Network, layer: str) -> int:
    """Side in cells of the map of convolution `layer`."""
    return map_side(network.image_size, windows(network, layer))
