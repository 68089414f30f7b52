"""The final model of a run: its trained network, with the input normalisation, as one module."""

from __future__ import annotations

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.build import assemble
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.train.run_dir import MEAN_KEY, WEIGHTS_FILE, read_file
from ipcnn_ray.train.run_request import RunRequest
from ipcnn_ray.train.tailored_template import trained_template


class Classifier(nn.Module):
    """Trained network with its input normalisation: RGB crops [N, 3, S, S] float, values 0..255 -> logits [N], or
    [N, L] for several categories. A positive logit means that the crop shows the category."""

    mean_3SS: Tensor

    def __init__(self, net: InterpretableNet, mean_3SS: Tensor, scale: float) -> None:
        super().__init__()
        self.net = net
        self.scale = scale
        self.register_buffer("mean_3SS", mean_3SS)

    def forward(self, crops_N3SS: Tensor) -> Tensor:
        logits: Tensor = self.net((crops_N3SS - self.mean_3SS) * self.scale)
        return logits


def final_model(request: RunRequest) -> tuple[Classifier, Tensor]:
    """Return the model of a run that has ended, in evaluation mode on the CPU, and an example batch of two crops.
    Raises TrainingError if the run has not ended."""
    weights = read_file(request.folder, WEIGHTS_FILE)
    if weights is None:
        raise TrainingError(f"run {request.run_id} has no {WEIGHTS_FILE} in {request.folder}: it has not ended yet")
    tensors = load(weights)
    mean_3SS = tensors.pop(MEAN_KEY)
    spec = request.spec
    net = assemble(spec.model, trained_template(request), len(spec.data.categories), spec.loss.filter)
    net.load_state_dict(tensors)
    model = Classifier(net, mean_3SS, request.spec.model.table.input_scale).eval()
    return model, torch.stack([mean_3SS, mean_3SS.flip(2)]).round()
