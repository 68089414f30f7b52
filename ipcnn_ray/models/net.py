"""The networks, plain and interpretable, as one loop over the table of `spec/networks.py`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import local_response_norm, max_pool2d, relu

from ipcnn_ray.core.mask import mask_maps
from ipcnn_ray.models.dropout import SampleDropout, Step
from ipcnn_ray.models.geometry import side
from ipcnn_ray.spec.networks import Conv, Network, Pool


class Output(NamedTuple):
    """What a training step or an evaluation needs of a forward pass."""

    logits_N: Tensor
    """Score of the category per image."""
    maps: dict[str, Tensor]
    """Interpretable layer -> maps after ReLU and before the mask, [N, C, n, n]."""
    scores: dict[str, Tensor]
    """Interpretable layer -> the convolution's output before ReLU and mask, [N, C, n, n]."""


class InterpretableNet(nn.Module):
    """A network of the table with one logit. In an interpretable layer each map is multiplied, behind ReLU, by the
    template centred on its peak; `unit_templates` maps those layers to [P, n, n] in [-1, 1], and a layer that is
    listed with None is measured but not masked (the plain network)."""

    def __init__(
        self, network: Network, *, appended: bool, unit_templates: Mapping[str, Tensor | None], dropout: float
    ) -> None:
        super().__init__()
        self.network = network
        self.steps = (*network.layers, network.appended, network.head_pool) if appended else (
            *network.layers,
            network.head_pool,
        )
        self.interpretable = tuple(unit_templates)
        self.convs = nn.ModuleDict()
        channels = 3
        for step in self.steps:
            if isinstance(step, Conv):
                self.convs[step.name] = nn.Conv2d(
                    channels, step.out, step.kernel, step.stride, step.pad, groups=step.groups
                )
                channels = step.out
        for layer, unit in unit_templates.items():
            self.register_buffer(f"template_{layer}", unit, persistent=False)
        last = network.appended.name if appended else network.last_conv
        widths = [channels * self._pooled(side(network, last)) ** 2, *network.head]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.dropouts = nn.ModuleList(SampleDropout(dropout, i) for i in range(len(self.hidden)))
        self.classifier = nn.Linear(widths[-1], 1)
        self.frozen_steps = 0

    def _pooled(self, n: int) -> int:
        pool = self.network.head_pool
        with torch.device("cpu"):
            return int(max_pool2d(torch.zeros(1, 1, n, n), pool.kernel, pool.stride, pool.pad, ceil_mode=pool.ceil).shape[-1])

    def freeze_through(self, name: str) -> None:
        """Convolutions up to and including `name` are not trained. Their outputs, behind the ReLU, normalisation and
        pooling that follow, can be computed once: see `frozen_features`."""
        index = next(i for i, step in enumerate(self.steps) if step.name == name)
        for step in self.steps[: index + 1]:
            if isinstance(step, Conv):
                self.convs[step.name].requires_grad_(False)
        index += 1
        while not isinstance(self.steps[index], Conv):
            index += 1
        self.frozen_steps = index

    def set_step(self, now: Step) -> None:
        """Say which rows of which global batch come next (dropout is drawn for the whole batch)."""
        for dropout in self.dropouts:
            dropout.now = now

    def frozen_features(self, x_N3HW: Tensor) -> Tensor:
        """Output of the frozen layers for normalised images."""
        x = x_N3HW
        with torch.no_grad():
            for step in self.steps[: self.frozen_steps]:
                x = self._apply_step(step, x)[0]
        return x

    def _apply_step(self, step: Any, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The step's output; for a convolution also its output before ReLU and its maps before the mask."""
        if isinstance(step, Conv):
            score = self.convs[step.name](x)
            maps = relu(score)
            unit = getattr(self, f"template_{step.name}", None)
            return (maps if unit is None else mask_maps(maps, unit)), score, maps
        if isinstance(step, Pool):
            return max_pool2d(x, step.kernel, step.stride, step.pad, ceil_mode=step.ceil), None, None
        return local_response_norm(x, step.size, step.alpha, step.beta, step.k), None, None

    def forward(self, x: Tensor, *, from_features: bool = False, full: bool = False) -> Any:
        """Logits [N] of normalised RGB images [N, 3, S, S], or of `frozen_features`; `full` gives an Output."""
        maps: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        for step in self.steps[self.frozen_steps if from_features else 0 :]:
            x, score, map_ = self._apply_step(step, x)
            if full and step.name in self.interpretable and score is not None and map_ is not None:
                maps[step.name], scores[step.name] = map_, score
        x = x.flatten(1)
        for hidden, dropout in zip(self.hidden, self.dropouts, strict=True):
            x = dropout(relu(hidden(x)))
        logits = self.classifier(x).squeeze(1)
        return Output(logits, maps, scores) if full else logits

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Trained parameters for an optimiser: decay on weights, none on biases."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [
            {"params": [p for name, p in trained if name.endswith("weight")], "weight_decay": weight_decay},
            {"params": [p for name, p in trained if not name.endswith("weight")], "weight_decay": 0.0},
        ]

    def initialise(self, seed: int) -> None:
        """Random weights from `seed` alone; a layer's numbers depend on its name and shape, not on the template.

        Weights N(0, 2 / fan_in) and the classifier N(0, 0.01^2); biases 0.
        Deviations: the released code draws new layers from N(0, 0.01^2), which does not train a network whose
        lower layers are random too.
        """
        with torch.no_grad():
            for name, module in self.named_modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    generator = torch.Generator().manual_seed(_mix(seed, name))
                    fan_in = module.weight[0].numel()
                    std = 0.01 if module is self.classifier else math.sqrt(2 / fan_in)
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
                    module.bias.zero_()


def _mix(seed: int, name: str) -> int:
    """A seed from a number and a name, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
