"""The layers of a torchvision network up to a cut, in the order in which they run.

A layer is a module that the network calls in a chain, each on the last one's output alone: `features.3` (a Fire
module), `layer2.0` (a residual block), `conv1`. Plain `nn.Sequential`s are opened, everything else is one layer.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache

import torch
from torch import fx, nn

from ipcnn_ray.core.receptive_field import Window
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.models.fx_receptive_field import NoField, before_relu, window_of
from ipcnn_ray.spec.networks import Trunk


class BackboneError(IpcnnError):
    """The network cannot be cut at this layer; the text goes behind the layer's name."""


@dataclass(frozen=True)
class Block:
    """One layer of a torchvision network."""

    name: str
    """Its name in torchvision."""
    kind: str
    """Its class, such as Fire, BasicBlock, Conv2d."""
    channels: int
    """Channels that it puts out."""
    side: int
    """Side of the map that it puts out, cells."""
    window: Window
    """What a cell of its map sees of the map below; `pad` may leave a map smaller than its windows would."""
    learns: bool
    """It has parameters."""
    relu: bool
    """Its output is that of a ReLU."""


class _Chain(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential


def _network(name: str) -> nn.Module:
    """The network on the meta device: neither memory nor random numbers."""
    from torchvision.models import get_model  # takes as long as torch itself, and most runs do without

    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("regnet"):  # lays out its widths with tensors, which meta tensors have no numbers for
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = get_model(name, weights=None).to("meta")
    else:
        with torch.device("meta"):
            network = get_model(name, weights=None, **settings)
    return network.eval()


def _chain(network: nn.Module) -> list[str]:
    """Names of the modules that run one after the other, from the image up, as far as they do."""
    nodes = iter(_Chain().trace(network).nodes)
    last, names = next(nodes), []
    for node in nodes:
        if node.op != "call_module" or node.args != (last,) or node.kwargs or len(last.users) > 1:
            break
        names.append(str(node.target))
        last = node
    return names


@cache
def blocks(trunk: Trunk, image_size: int) -> tuple[Block, ...]:
    """The layers of the trunk for a square image of `image_size` pixels, from the image up to the cut.

    Errors: BackboneError where there is no such layer, or where its cells have no receptive field.
    """
    network = _network(trunk.name)
    names = _chain(network)
    if trunk.cut not in names:
        close = difflib.get_close_matches(trunk.cut, names, n=1)
        inside = next((name for name in names if trunk.cut.startswith(f"{name}.")), None)
        groups = [name for name in names if name.startswith(f"{trunk.cut}.")]
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if inside:
            hint = f" It lies inside {inside}, which is one layer."
        elif groups:
            hint = f" It is a group of layers; its last is {groups[-1]}."
        raise BackboneError(f"{trunk.name} has no such layer; it has {', '.join(_cuttable(network, names))}.{hint}")
    found: list[Block] = []
    x = torch.empty(1, 3, image_size, image_size, device="meta")
    for name in names[: names.index(trunk.cut) + 1]:
        module = network.get_submodule(name)
        try:
            window = window_of(module)
        except NoField as error:
            below = found[-1].name if found else "nothing"
            raise BackboneError(
                f"has no receptive field that parts could be located by: in {name}, {error}. "
                f"Cut {trunk.name} lower: {below} is the highest layer that can be kept"
            ) from error
        try:
            x = module(x)
        except RuntimeError as error:
            raise BackboneError(
                f"cannot be reached with images of {image_size} x {image_size} pixels: at {name} the map is too small. "
                "Cut lower, or take a larger model.image_size"
            ) from error
        learns = any(True for _ in module.parameters())
        found.append(
            Block(name, type(module).__name__, x.shape[1], x.shape[2], window, learns, before_relu(module) is not None)
        )
    if found[-1].side < 2:
        raise BackboneError(
            f"has a map of one cell for images of {image_size} x {image_size} pixels, in which nothing can be "
            "located. Cut lower, or take a larger model.image_size"
        )
    return tuple(found)


def _cuttable(network: nn.Module, names: list[str]) -> list[str]:
    """The names below the first layer without a receptive field."""
    kept: list[str] = []
    for name in names:
        try:
            window_of(network.get_submodule(name))
        except NoField:
            break
        kept.append(name)
    return kept


def modules(trunk: Trunk, names: list[str], bare: frozenset[str]) -> dict[str, nn.Module]:
    """The modules of these layers on the meta device, without numbers. bare: those without their last ReLU.

    Nothing in them works in place, since maps are kept; torchvision's numbers stay the same.
    """
    network = _network(trunk.name)
    found: dict[str, nn.Module] = {}
    for name in names:
        module = network.get_submodule(name)
        for part in module.modules():
            if hasattr(part, "inplace"):
                setattr(part, "inplace", False)  # noqa: B010
        stripped = before_relu(module) if name in bare else None
        found[name] = stripped if stripped is not None else module
    return found
