"""Layers of a network of torchvision or timm up to a cut, in the order in which they run.

A layer is a module in the network's leading chain, in which each module takes the output of the previous one alone:
`features.3` (a Fire module), `layer2.0` (a residual block), `conv1`. `nn.Sequential`s are expanded; any other module is
one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import fx, nn

from ipcnn_ray.core.receptive_field import Window
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.models.fx_receptive_field import NoReceptiveField, strip_final_relu
from ipcnn_ray.models.measured_receptive_field import find_window
from ipcnn_ray.models.timm_networks import timm_network
from ipcnn_ray.spec.networks import TIMM, Layer, Trunk
from ipcnn_ray.utils.text import did_you_mean


class BackboneCutError(IpcnnError):
    """The network cannot be cut at this layer; the message follows the layer's name in a sentence."""


@dataclass(frozen=True)
class Block:
    """One layer between the image and the head."""

    name: str
    kind: str
    """Its class: Fire, BasicBlock, Conv2d and so on; in the table of networks Conv, Pool, LRN."""
    channels: int
    """Output channels."""
    side: int
    """Side of the output map, cells."""
    window: Window | None
    """Receptive field in the input map; None for normalisation. The map may be smaller than `pad` implies."""
    has_parameters: bool
    ends_in_relu: bool
    row: Layer | None = None
    """What it is built from in the table of networks; None for a layer of torchvision or timm."""


class _Chain(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential


def _network(name: str) -> nn.Module:
    """Build the network on the meta device, which takes no memory and draws no random numbers. Raises
    UnknownNetworkError if timm or its network is not there."""
    if name.startswith(TIMM):
        return timm_network(name).eval()
    from torchvision.models import get_model  # as slow to import as torch, and most runs do not need it

    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("regnet"):  # computes its widths with tensors, which must have values
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = get_model(name, weights=None).to("meta")
    else:
        with torch.device("meta"):
            network = get_model(name, weights=None, **settings)
    return network.eval()


def _chain(network: nn.Module) -> list[str]:
    """Return the names of the modules in the network's leading chain, from the image up."""
    try:
        nodes = iter(_Chain().trace(network).nodes)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise BackboneCutError(f"cannot be found: torch.fx cannot follow this network ({error})") from error
    last, names = next(nodes), []
    for node in nodes:
        if node.op != "call_module" or node.args != (last,) or node.kwargs or len(last.users) > 1:
            break
        names.append(str(node.target))
        last = node
    return names


@cache
def backbone_blocks(trunk: Trunk, image_size: int) -> tuple[Block, ...]:
    """Return the layers of the trunk up to the cut, for a square image of `image_size` pixels. Raises
    BackboneCutError if there is no such layer, or it has no receptive field."""
    network = _network(trunk.name)
    names = _chain(network)
    if trunk.cut not in names:
        inside = next((name for name in names if trunk.cut.startswith(f"{name}.")), None)
        groups = [name for name in names if name.startswith(f"{trunk.cut}.")]
        hint = did_you_mean(trunk.cut, names)
        if inside:
            hint = f" It lies inside {inside}, which is one layer."
        elif groups:
            hint = f" It is a group of layers; its last is {groups[-1]}."
        kept = ", ".join(_cuttable(network, names, image_size))
        raise BackboneCutError(f"{trunk.name} has no such layer; it has {kept or 'none that can be kept'}.{hint}")
    layers: list[Block] = []
    x = torch.empty(1, 3, image_size, image_size, device="meta")
    for name in names[: names.index(trunk.cut) + 1]:
        module = network.get_submodule(name)
        if any(part._non_persistent_buffers_set for part in module.modules()):
            raise BackboneCutError(f"cannot be reached: {name} has constants that are in no file of weights. Cut lower")
        try:
            window = find_window(module, (x.shape[1], x.shape[2], x.shape[3]))
        except NoReceptiveField as error:
            below = layers[-1].name if layers else "nothing"
            raise BackboneCutError(
                f"has no receptive field that parts could be located by: in {name}, {error}. "
                f"Cut {trunk.name} lower: {below} is the highest layer that can be kept"
            ) from error
        try:
            x = module(x)
        except RuntimeError as error:
            raise BackboneCutError(
                f"cannot be reached with images of {image_size} x {image_size} pixels: at {name} the map is too small. "
                "Cut lower, or take a larger model.image_size"
            ) from error
        if x.ndim != 4:
            raise BackboneCutError(
                f"cannot be reached: {name} does not put out a map, [N, C, rows, columns]. Cut lower"
            )
        has_parameters = next(module.parameters(), None) is not None
        ends_in_relu = strip_final_relu(module) is not None
        kind, (_, channels, side, _) = type(module).__name__, x.shape
        layers.append(Block(name, kind, channels, side, window, has_parameters, ends_in_relu))
    if layers[-1].side < 2:
        raise BackboneCutError(
            f"has a map of one cell for images of {image_size} x {image_size} pixels, in which nothing can be "
            "located. Cut lower, or take a larger model.image_size"
        )
    return tuple(layers)


def _cuttable(network: nn.Module, names: list[str], image_size: int) -> list[str]:
    """Return the names below the first layer that does not put out a map of several cells."""
    kept: list[str] = []
    x = torch.empty(1, 3, image_size, image_size, device="meta")
    for name in names:
        try:
            x = network.get_submodule(name)(x)
        except RuntimeError:
            break
        if x.ndim != 4 or x.shape[2] < 2:
            break
        kept.append(name)
    return kept


def backbone_modules(trunk: Trunk, names: list[str], bare: frozenset[str]) -> dict[str, nn.Module]:
    """Return the modules of these layers on the meta device. bare: names of those to return without their final ReLU.

    In-place operations are turned off, since the maps are kept; this does not change the output.
    """
    network = _network(trunk.name)
    by_name: dict[str, nn.Module] = {}
    for name in names:
        module = network.get_submodule(name)
        for part in module.modules():
            if hasattr(part, "inplace"):
                setattr(part, "inplace", False)  # noqa: B010
        stripped = strip_final_relu(module) if name in bare else None
        by_name[name] = stripped if stripped is not None else module
    return by_name
