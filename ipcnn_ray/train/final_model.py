"""A finished run as a network that takes photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from ipcnn_ray.models.build import build, interpretable_layers, unit_templates
from ipcnn_ray.models.geometry import map_side
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.run import MEAN, WEIGHTS, RunRequest


class Classifier(nn.Module):
    """The trained network with its normalisation: RGB crops [N, 3, S, S] with values 0..255 -> logits [N].

    A positive logit says that the crop shows the category.
    """

    mean: Tensor

    def __init__(self, net: InterpretableNet, mean_3SS: Tensor, scale: float) -> None:
        super().__init__()
        self.net = net
        self.scale = scale
        self.register_buffer("mean", mean_3SS)

    def forward(self, crops: Tensor) -> Tensor:
        logits: Tensor = self.net((crops - self.mean) * self.scale)
        return logits


def final_model(request: RunRequest) -> tuple[Classifier, Tensor]:
    """The network of a finished run, in evaluation mode on the CPU, and an example batch of two crops."""
    tensors = load_file(Path(request.folder) / WEIGHTS)
    mean = tensors.pop(MEAN)
    net = build(request.spec.model, request.spec.template, request.spec.seed)
    net.load_state_dict(tensors)
    model = Classifier(net, mean, request.spec.model.table.input_scale).eval()
    return model, torch.stack([mean, mean.flip(2)])


def templates_of(spec: ExperimentSpec) -> NDArray[np.floating] | None:
    """The positive templates of the run's measured layer divided by tau, [P, n, n]; None for the plain network."""
    layer = spec.eval.layer or interpretable_layers(spec.model)[-1]
    units = unit_templates(spec.template, {layer: map_side(spec.model, layer)})
    return units[layer].numpy() if layer in units else None
