"""One network, built from a row of the table; some of its layers may be interpretable.

N images, C filters, H W rows and columns, P = n^2 positions of an n x n map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ipcnn_ray.core.mask import mask_maps
from ipcnn_ray.core.receptive_field import map_side
from ipcnn_ray.models.dropout import SampleDropout
from ipcnn_ray.models.geometry import spatial_layers, window
from ipcnn_ray.spec.networks import LRN, Conv, Network, Pool


class Output(NamedTuple):
    """What training and evaluation need of one batch. The dictionaries go by interpretable layer, lowest first."""

    logits_NL: Tensor
    """A score for each of the L categories: positive means that it is there."""
    maps: dict[str, Tensor]
    """[N, C, n, n] after ReLU and before the mask: what the filter loss acts on."""
    scores: dict[str, Tensor]
    """[N, C, n, n] before ReLU and mask: what location instability is measured on."""


class InterpretableNet(nn.Module):
    """Convolutions with ReLU, pooling and normalisation as in the table, then pooling and fully connected layers.

    network, appended: the row of the table, and whether its appended convolution is there.
    interpretable: names of the convolutions whose maps are looked at.
    units: per interpretable layer its positive templates divided by tau, [P, n, n], by which its maps are masked;
    without any, nothing is masked (the plain network).
    dropout: share of units dropped behind each hidden fully connected layer.
    categories: number L of scores.

    Parameters hold no numbers yet: `build` fills them. Templates are buffers that a state dict leaves out.
    Source: Zhang et al., CVPR 2018, section 3, and their released networks.
    Deviations: the mask of the appended layer acts on its map before pooling, as the paper draws it (the released
    code masks the pooled map).
    """

    def __init__(
        self,
        network: Network,
        *,
        appended: bool,
        interpretable: Sequence[str],
        units: Mapping[str, Tensor] | None = None,
        dropout: float = 0.0,
        categories: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        layers = spatial_layers(network, appended)
        self.interpretable = tuple(la.name for la in layers if isinstance(la, Conv) and la.name in interpretable)
        if set(self.interpretable) != set(interpretable):
            names = ", ".join(layer.name for layer in layers if isinstance(layer, Conv))
            raise ValueError(f"interpretable = {tuple(interpretable)}: expected some of {names}")
        self.body = nn.ModuleDict()
        # Shape of what enters each layer of the body, and at the end of what enters the head's pooling.
        self._shapes: list[tuple[int, int, int]] = [(3, network.image_size, network.image_size)]
        for layer in layers:
            channels, side, _ = self._shapes[-1]
            if isinstance(layer, Conv):
                self.body[layer.name] = _conv(channels, layer).to_empty(device=device)
                channels = layer.out
            elif isinstance(layer, Pool):
                self.body[layer.name] = _pool(layer)
            else:
                self.body[layer.name] = nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
            if not isinstance(layer, LRN):
                side = map_side(side, [window(layer)])
            self._shapes.append((channels, side, side))
        channels, side, _ = self._shapes[-1]
        self.head = nn.ModuleDict({network.head_pool.name: _pool(network.head_pool)})
        width = channels * map_side(side, [window(network.head_pool)]) ** 2
        first = int(layers[-1].name.removeprefix("conv").split("_")[0]) + 1
        for number, out in enumerate((*network.head, categories), start=first):
            self.head[f"fc{number}"] = nn.Linear(width, out, device="meta").to_empty(device=device)
            if number < first + len(network.head):
                self.head[f"drop{number}"] = SampleDropout(dropout, f"fc{number}")
            width = out
        for name, unit_Pnn in (units or {}).items():
            if name not in self.interpretable:
                raise ValueError(f"units of {name!r}: expected interpretable layers, {self.interpretable}")
            self.register_buffer(f"unit_{name}", unit_Pnn.to(device), persistent=False)
        self.masked = frozenset(units or {})
        self.cut = 0

    def forward(self, x: Tensor, *, from_features: bool = False, full: bool = False) -> Tensor | Output:
        """Logits of normalised images [N, 3, S, S], or of `frozen_features` with `from_features`.

        They are [N, L], and [N] for one category. full: an `Output` in their place, with the maps of the interpretable
        layers.
        """
        maps: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        for name, module in list(self.body.items())[self.cut if from_features else 0 :]:
            x = module(x)
            if not isinstance(module, nn.Conv2d):
                continue
            if name in self.interpretable:
                scores[name] = x
                maps[name] = x = torch.relu(x)
                if name in self.masked:
                    x = mask_maps(x, self.get_buffer(f"unit_{name}"))
            else:
                x = torch.relu(x)
        for name, module in self.head.items():
            if isinstance(module, nn.Linear) and x.ndim > 2:
                x = x.flatten(1)
            x = module(x)
            if isinstance(module, nn.Linear) and name != self._last:
                x = torch.relu(x)
        return Output(x, maps, scores) if full else x.squeeze(1)

    @torch.no_grad()
    def frozen_features(self, x: Tensor) -> Tensor:
        """What enters the first layer behind the cut, as [N, *feature_shape()]; `x` itself when nothing is frozen."""
        for module in list(self.body.values())[: self.cut]:
            x = module(x)
            if isinstance(module, nn.Conv2d):
                x = torch.relu(x)
        return x

    def freeze_through(self, name: str) -> None:
        """Convolutions up to and including `name` stay as they are, and what they compute may be cached.

        The cut lies behind the normalisation and pooling that follow `name`, which have no parameters, but never
        above the lowest interpretable layer, whose maps are always computed.
        """
        names = list(self.body)
        if name not in self.convs:
            raise ValueError(f"freeze_through {name!r}: expected one of {', '.join(self.convs)}")
        end = names.index(name) + 1
        for frozen in names[:end]:
            self.body[frozen].requires_grad_(False)
        while end < len(names) and not isinstance(self.body[names[end]], nn.Conv2d):
            end += 1
        self.cut = min([end, *(names.index(layer) for layer in self.interpretable)])

    def feature_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's `frozen_features`."""
        return self._shapes[self.cut]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Trainable parameters for an optimiser: weights with `weight_decay`, biases without."""
        trainable = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [
            {"params": [p for name, p in trainable if name.endswith("weight")], "weight_decay": weight_decay},
            {"params": [p for name, p in trainable if name.endswith("bias")], "weight_decay": 0.0},
        ]

    def set_step(self, seed: int, epoch: int, step: int, first_row: int, rows_total: int) -> None:
        """Names the training step that comes next: see `SampleDropout.set_step`."""
        for module in self.head.values():
            if isinstance(module, SampleDropout):
                module.set_step(seed, epoch, step, first_row, rows_total)

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of the convolutions, lowest first."""
        return tuple(name for name, module in self.body.items() if isinstance(module, nn.Conv2d))

    def conv(self, name: str) -> nn.Conv2d:
        """The convolution of this name."""
        return cast(nn.Conv2d, self.body[name])

    def shape(self, name: str) -> tuple[int, int, int]:
        """(C, H, W) of the map that layer `name` of the body puts out."""
        return self._shapes[list(self.body).index(name) + 1]

    @property
    def _last(self) -> str:
        return list(self.head)[-1]


def _conv(channels: int, layer: Conv) -> nn.Conv2d:
    """Without numbers: on the meta device, torch's own initialisation neither takes time nor moves its generator."""
    return nn.Conv2d(channels, layer.out, layer.kernel, layer.stride, layer.pad, groups=layer.groups, device="meta")


def _pool(layer: Pool) -> nn.MaxPool2d:
    return nn.MaxPool2d(layer.kernel, layer.stride, layer.pad, ceil_mode=layer.ceil)
