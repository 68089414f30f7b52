"""One network, from a row of the table or a torchvision backbone; some of its layers may be interpretable.

N images, C filters, H W rows and columns, P = n^2 positions of an n x n map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ipcnn_ray.core.receptive_field import map_side
from ipcnn_ray.models.backbones import Block, backbone_modules
from ipcnn_ray.models.layer_geometry import body_layers, window
from ipcnn_ray.models.layers import GlobalPool, MaskOutput, SampleDropout
from ipcnn_ray.spec.model import Head
from ipcnn_ray.spec.networks import Conv, Layer, Network, Pool


class NetOutput(NamedTuple):
    """Output of the network for one batch. The dictionaries are by interpretable layer, lowest first."""

    logits_NL: Tensor
    """A score for each of the L categories; positive means that the category is present."""
    maps: dict[str, Tensor]
    """[N, C, n, n] after ReLU (and pooling, if the mask comes after it), before the mask: input of the filter loss."""
    scores: dict[str, Tensor]
    """[N, C, n, n] before ReLU, pooling and mask: input of location instability."""
    passed: dict[str, Tensor]
    """[N, C, n, n] after ReLU, pooling and mask: output of the layer."""
    masked: Mapping[str, MaskOutput] = MappingProxyType({})
    """Outputs of the masks, for layers that have one."""


MaskFactory = Callable[[int, int], nn.Module]
"""(number of filters, side of their maps in cells) -> the layer's mask, a module of models/layers.py."""


class InterpretableNet(nn.Module):
    """Convolutions with ReLU, pooling and normalisation as in the table, then pooling and linear layers.

    Args:
        network: Row of the table of networks.
        appended: Whether the row's appended convolution is included.
        interpretable: Names of the layers whose maps are returned: convolutions; of a backbone any layer that ends in
            a ReLU, and the one at the cut.
        mask_factory: Makes the mask of an interpretable layer; None for the plain network, which has no masks.
        pooled: Whether the mask of the appended layer comes after the pooling, as in the released code.
        head: Layers between the highest maps and the scores, as `model.head` of a spec.
        dropout: Share of units dropped after each hidden fully connected layer, or of the globally pooled features.
        categories: Number L of scores.

    Parameters are uninitialised: `build` fills them. Templates are buffers that are not in the state dict. A dot in the
    name of a backbone's layer is an underscore in the names of its parameters.

    The scores of an interpretable layer of a backbone are taken before its final ReLU: that ReLU (each of them, where
    they are concatenated) is moved from inside the layer to after it, which computes the same. A layer at the cut that
    does not end in a ReLU (ConvNeXt, DenseNet) gets one, which no other layer of the original network sees.

    The body is always in evaluation mode: batch normalisation uses the loaded statistics and does not update them, and
    stochastic depth is off. With statistics of each worker's share of the batch, the numbers would depend on the
    number of workers.

    Source: Zhang et al., CVPR 2018, section 3, and their released networks.
    """

    def __init__(
        self,
        network: Network,
        *,
        appended: bool,
        interpretable: Sequence[str],
        mask_factory: MaskFactory | None = None,
        pooled: bool = False,
        head: Head = "fully_connected",
        dropout: float = 0.0,
        categories: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        blocks = body_layers(network, appended)
        _check_interpretable(blocks, interpretable)
        self._blocks = {block.name: block for block in blocks}
        self.names = tuple(self._blocks)
        self.interpretable = tuple(name for name in self.names if name in interpretable)
        # Layers that this class applies a ReLU to; other layers of a backbone contain theirs.
        self._relu = {block.name for block in blocks if isinstance(block.row, Conv)} | set(self.interpretable)
        self._image_shape = (3, network.image_size, network.image_size)
        trunk: dict[str, nn.Module] = {}
        if network.trunk is not None:
            own = [block.name for block in blocks if block.row is None]
            trunk = backbone_modules(network.trunk, own, frozenset(self.interpretable))
        self.body = nn.ModuleDict()
        channels = 3
        for block in blocks:
            module = trunk[block.name] if block.row is None else _build_module(channels, block.channels, block.row)
            self.body[_key(block.name)] = module.to_empty(device=device)
            channels = block.channels
        self.body.eval()
        pooled_side = map_side(blocks[-1].side, [window(network.head_pool)])
        self.head = nn.ModuleDict()
        if head == "fully_connected" or pooled:
            self.head[network.head_pool.name] = _pool(network.head_pool)
        if head == "fully_connected":
            width, hidden = channels * pooled_side**2, network.head
        else:
            width, hidden = channels, ()
            self.head["global_pool"], self.head["drop"] = GlobalPool(head), SampleDropout(dropout, "global_pool")
        first = 1 if network.trunk else int(blocks[-1].name.removeprefix("conv").split("_")[0]) + 1
        for number, out in enumerate((*hidden, categories), start=first):
            self.head[f"fc{number}"] = nn.Linear(width, out, device="meta").to_empty(device=device)
            if number < first + len(hidden):
                self.head[f"drop{number}"] = SampleDropout(dropout, f"fc{number}")
            width = out
        self._pooled = network.appended.name if appended and pooled and mask_factory is not None else ""
        self.masks = nn.ModuleDict()
        if mask_factory is not None:
            for name in self.interpretable:
                side = pooled_side if name == self._pooled else self._blocks[name].side
                self.masks[_key(name)] = mask_factory(self._blocks[name].channels, side).to(device)
        self.cut = 0

    def forward(
        self, x: Tensor, *, from_features: bool = False, above: str | None = None, full: bool = False
    ) -> Tensor | NetOutput:
        """Return the logits of normalised images [N, 3, S, S]: [N, L], or [N] for one category.

        Args:
            from_features: x is the output of `frozen_features`.
            above: x is the output of this layer of the body.
            full: Return a `NetOutput`, with the maps of the interpretable layers, instead of the logits.
        """
        maps: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        passed: dict[str, Tensor] = {}
        masked: dict[str, MaskOutput] = {}
        start = self.names.index(above) + 1 if above is not None else self.cut if from_features else 0
        for name, module in self._layers()[start:]:
            x = module(x)
            if name not in self._relu:
                continue
            if name in self.interpretable:
                scores[name] = x
                x = torch.relu(x)
                if name == self._pooled:
                    x = next(iter(self.head.values()))(x)
                maps[name] = x
                if _key(name) in self.masks:
                    masked[name] = self.masks[_key(name)](x)
                    x = masked[name].maps_NCHW
                passed[name] = x
            else:
                x = torch.relu(x)
        for name, module in list(self.head.items())[1 if self._pooled else 0 :]:
            if isinstance(module, nn.Linear) and x.ndim > 2:
                x = x.flatten(1)
            x = module(x)
            if isinstance(module, nn.Linear) and name != list(self.head)[-1]:
                x = torch.relu(x)
        return NetOutput(x, maps, scores, passed, masked) if full else x.squeeze(1)

    @torch.no_grad()
    def frozen_features(self, x: Tensor) -> Tensor:
        """Return the output of the layers below the cut, [N, *feature_shape()]; `x` itself if nothing is frozen."""
        for name, module in self._layers()[: self.cut]:
            x = module(x)
            if name in self._relu:
                x = torch.relu(x)
        return x

    def freeze_through(self, name: str) -> None:
        """Freeze the layers up to and including `name`, so that their outputs may be cached.

        The cut is after the normalisation and pooling that follow `name`, which have no parameters, but never above the
        lowest interpretable layer, whose maps are always computed.
        """
        layers = self._layers()
        if name not in self.convs:
            raise ValueError(f"freeze_through {name!r}: expected one of {', '.join(self.convs)}")
        end = self.names.index(name) + 1
        for _, frozen in layers[:end]:
            frozen.requires_grad_(False)
        while end < len(layers) and not _has_parameters(layers[end][1]):
            end += 1
        self.cut = min([end, *(self.names.index(layer) for layer in self.interpretable)])

    def feature_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of one image's `frozen_features`."""
        return self.shape(self.names[self.cut - 1]) if self.cut else self._image_shape

    def parameter_groups(
        self,
        weight_decay: float,
        *,
        loaded: Collection[str] = (),
        new_weight_rate: float = 1.0,
        new_bias_rate: float = 1.0,
        last_bias_rate: float = 1.0,
        decay_loaded_biases: bool = False,
        beta_rate: float = 1.0,
    ) -> list[dict[str, Any]]:
        """Return the trainable parameters in groups for an optimizer, each with `weight_decay` and `rate`.

        `rate` is a factor on the learning rate. Weights of convolutions and fully connected layers decay; biases and
        the scales of a backbone's normalisation do not. The parameters of masks have the rate `beta_rate`.

        `loaded` are the layers that start from pretrained weights; `decay_loaded_biases`: whether their biases decay.
        The bias of the highest of them has the rate `last_bias_rate`, those of all other layers `new_bias_rate`, and
        the weights of all other layers that decay `new_weight_rate`.
        """
        highest = next((name for name in reversed(self.names) if name in loaded), None)
        keys = {_key(name): name for name in self.names}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {(weight_decay, 1.0): [], (0.0, 1.0): []}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = keys.get(name.split(".")[1], "")
            rate, decay = 1.0, 0.0
            if name.endswith("weight") and parameter.ndim > 1:
                rate, decay = 1.0 if layer in loaded else new_weight_rate, weight_decay
            if name.endswith("bias"):
                rate = last_bias_rate if layer == highest else 1.0 if layer in loaded else new_bias_rate
                decay = weight_decay if decay_loaded_biases and layer in loaded else 0.0
            groups.setdefault((decay, rate), []).append(parameter)
        groups[0.0, beta_rate] = groups.get((0.0, beta_rate), []) + list(self.masks.parameters())
        return [
            {"params": params, "weight_decay": decay, "rate": rate}
            for (decay, rate), params in groups.items()
            if params
        ]

    def train(self, mode: bool = True) -> InterpretableNet:
        """Set the mode of the head and the masks; the body stays in evaluation mode."""
        super().train(mode)
        self.body.eval()
        return self

    def set_step(self, seed: int, epoch: int, step: int, first_row: int, rows_total: int) -> None:
        """Set the next training step: see `SampleDropout.set_step`."""
        for module in self.head.values():
            if isinstance(module, SampleDropout):
                module.set_step(seed, epoch, step, first_row, rows_total)

    def draw_ahead(self, ahead: bool) -> None:
        """Draw the numbers of dropout in `set_step`, or no longer: see `SampleDropout.draw_ahead`."""
        for module in self.head.values():
            if isinstance(module, SampleDropout):
                module.draw_ahead(ahead)

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of the layers of the body that have weights, lowest first."""
        return tuple(name for name, module in self._layers() if _has_parameters(module))

    def layer(self, name: str) -> nn.Module:
        return self.body[_key(name)]

    def mask(self, name: str) -> nn.Module:
        """Return the mask of the interpretable layer with this name. Raises KeyError for a plain network."""
        return self.masks[_key(name)]

    def kind(self, name: str) -> str:
        """Return the name of a layer's class: see `Block.kind`."""
        return self._blocks[name].kind

    def shape(self, name: str) -> tuple[int, int, int]:
        """Return (C, H, W) of the output map of layer `name` of the body."""
        block = self._blocks[name]
        return block.channels, block.side, block.side

    def _layers(self) -> list[tuple[str, nn.Module]]:
        return list(zip(self.names, self.body.values(), strict=True))


def _check_interpretable(blocks: Sequence[Block], interpretable: Sequence[str]) -> None:
    """A layer of a backbone that does not end in a ReLU would change the network with one, unless it is the highest."""
    cut = next((block for block in reversed(blocks) if block.row is None), None)
    able = [block.name for block in blocks if block.ends_in_relu or block is cut]
    if not set(interpretable) <= set(able):
        reason = ", which end in a ReLU or lie at the cut" if cut else ""
        raise ValueError(f"interpretable = {tuple(interpretable)}: expected some of {', '.join(able)}{reason}")


def _key(name: str) -> str:
    """Return a layer's name as a module name, which must not contain dots."""
    return name.replace(".", "_")


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _build_module(channels: int, out: int, row: Layer) -> nn.Module:
    """Build a layer on the meta device, where its initialisation takes no time and draws no random numbers."""
    if isinstance(row, Conv):
        return nn.Conv2d(channels, out, row.kernel, row.stride, row.pad, groups=row.groups, device="meta")
    if isinstance(row, Pool):
        return _pool(row)
    return nn.LocalResponseNorm(row.size, row.alpha, row.beta, row.k)


def _pool(layer: Pool) -> nn.MaxPool2d:
    return nn.MaxPool2d(layer.kernel, layer.stride, layer.pad, ceil_mode=layer.ceil)
