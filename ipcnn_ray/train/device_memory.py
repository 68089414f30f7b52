"""The GPU memory that a run takes, estimated from its spec: an upper bound, found without training.

The network's own step runs on the meta device, whose tensors have a shape and no memory, and the bytes that exist at
the same time are counted. What lies around the network (masks, losses, metrics) is counted in arrays of the size of a
layer's maps. Everything counts as float32, which is more than bfloat16 autocast takes.

N images of a batch, C filters, P = n^2 cells, T = P + 1 templates, S x S pixels.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ipcnn_ray.core.receptive_field import cells_above
from ipcnn_ray.models.build import assemble, template_side
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import NoTemplate, PartTemplate
from ipcnn_ray.train.feature_cache import CHUNK

GIB = 1 << 30
FLOAT = 4
CONTEXT = 3 * GIB // 2
"""What a process takes beside its tensors: CUDA's context, loaded kernels, workspaces of cuBLAS."""
FRAGMENTATION = 1.25
"""Memory that torch reserves, as a multiple of the tensors in it."""
WORKSPACES = 4
"""Workspaces of cuDNN, and changes of layout, in arrays of the size of the largest one of a convolution."""
BENCHMARK = 2 * GIB
"""Workspaces of the kernels that cuDNN tries for `compute.speed: fast`."""
INPUTS = 4
"""Batches of images as float32: read ahead, as pixels, augmented."""
UNITS = 6
"""Arrays of the size of the head's hidden units in dropout."""
MAPS = 6
"""Arrays [N, C, n, n] of a layer in its mask, filter loss and diversity loss."""
EVALUATED_MAPS, MEASURED_MAPS = 2, 6
"""The same in an evaluation, and in metrics of `eval.measures`, some of which are float64."""
SCORES = 3
"""Arrays [N, C, T] of the filter loss."""
BANKS = 3
"""Arrays [T, n, n]: the templates of the mask and of the filter loss, and new ones (`template.narrowing`)."""
LEARNED_BANKS = 4
"""Arrays [C, T, n, n] in the filter loss with a beta for each filter, and in its gradient."""
ROWS = 64
"""Bytes for each filter and image until the end of an evaluation: peak, activation, pooled map, states of metrics."""


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made in a `with` block, while they exist.

    besides: Tensors that exist before and are not counted.
    """

    def __init__(self, besides: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in besides}
        self._now = 0
        self.peak = 0
        """Most bytes at the same time."""
        self.largest = 0
        """Bytes of the largest tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._now += size
            self.peak, self.largest = max(self.peak, self._now), max(self.largest, size)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


@dataclass(frozen=True)
class RunBytes:
    """Memory of a run's tensors, but for crops and features that are kept on the device."""

    weights: int
    """Weights, state of the optimizer, templates."""
    training: int
    """Most in a training step besides: activations, gradients, what the optimizer computes with."""
    evaluation: int
    """Most besides the weights in an evaluation, or while frozen layers compute their features."""
    replayed: int = 0
    """What a CUDA graph of the step keeps, and its comparison with the step; with `compute.speed: fast`."""
    workspaces: int = 0
    """Workspaces of cuDNN."""

    @property
    def of_process(self) -> int:
        """Memory of the run's process on a GPU. What a step has freed may be kept for the next one, beside what an
        evaluation takes, so all counts."""
        tensors = self.weights + self.training + self.evaluation + self.replayed
        return round(CONTEXT + FRAGMENTATION * tensors) + self.workspaces


def run_bytes(spec: ExperimentSpec, images: int) -> RunBytes:
    """Return the memory of a run of one worker. Metrics of other packages count as much as those of this one.

    images: of an evaluation, at most.
    Raises RuntimeError for a network that torch cannot run on the meta device.
    """
    model, train = spec.model, spec.train
    net = _network_bytes(model, train.freeze_through, len(spec.data.categories), train.batch_size)
    layers = [_layer_bytes(spec, layer, filters, side, images) for (layer, filters, side) in net.layers]
    inputs = INPUTS * FLOAT * train.batch_size * 3 * model.table.image_size**2
    dropout = UNITS * FLOAT * train.batch_size * net.units
    moments = 2 if train.optimizer == "adamw" else 1
    copies = net.trained // 2  # of the weights, in bfloat16
    optimizer = 2 * net.trained  # gradients, and what the step computes from them
    training = max(net.step, optimizer) + copies + inputs + dropout + sum(layer.training for layer in layers)
    fast = spec.compute.speed == "fast"
    return RunBytes(
        weights=net.fixed + (1 + moments) * net.trained + sum(layer.templates for layer in layers),
        training=training,
        evaluation=net.forward + net.largest + inputs // 2 + sum(layer.evaluation for layer in layers),
        replayed=training + (4 + moments) * net.trained if fast else 0,
        workspaces=WORKSPACES * net.largest + (BENCHMARK if fast else 0),
    )


@dataclass(frozen=True)
class _NetworkBytes:
    """Memory of a network without masks and losses."""

    trained: int
    """Trained weights."""
    fixed: int
    """Frozen weights and buffers."""
    step: int
    """Most in a training step: activations and gradients."""
    forward: int
    """Most in a forward pass from the image on."""
    largest: int
    """The largest input, output or weight of a convolution."""
    units: int
    """Number of units in the head."""
    layers: tuple[tuple[str, int, int], ...]
    """Name, filters and side of the maps of each interpretable layer."""


@cache
def _network_bytes(model: Model, freeze_through: str | None, categories: int, batch: int) -> _NetworkBytes:
    net = assemble(model, NoTemplate(shape="none"), categories, device="meta").eval()
    if freeze_through:
        net.freeze_through(freeze_through)
    tensors = [*net.parameters(), *net.buffers()]
    trained = sum(parameter.nbytes for parameter in net.parameters() if parameter.requires_grad)
    size, images = model.table.image_size, max(batch, CHUNK if net.cut else 0)
    with PeakBytes(tensors) as forward, torch.no_grad():
        net(torch.empty(images, 3, size, size, device="meta"), full=True)
    with PeakBytes(tensors) as step:
        features = torch.empty(batch, *net.feature_shape(), device="meta")
        torch.autograd.backward(net(features, from_features=True).sum())
    return _NetworkBytes(
        trained=trained,
        fixed=sum(tensor.nbytes for tensor in tensors) - trained,
        step=step.peak,
        forward=forward.peak,
        largest=max(forward.largest, *(tensor.nbytes for tensor in tensors if tensor.ndim == 4)),
        units=sum(module.out_features for module in net.head.values() if isinstance(module, nn.Linear)),
        layers=tuple((name, net.shape(name)[0], net.shape(name)[1]) for name in net.interpretable),
    )


@dataclass(frozen=True)
class _LayerBytes:
    """Memory of an interpretable layer beside its maps in the network."""

    templates: int
    training: int
    evaluation: int


def _layer_bytes(spec: ExperimentSpec, layer: str, filters: int, side: int, images: int) -> _LayerBytes:
    N, C, n, S = spec.train.batch_size, filters, template_side(spec.model, layer), spec.model.table.image_size
    loss, map_NCHW = spec.loss.filter, N * C * side**2
    scores = learned = 0
    if loss and loss.form != "released":
        scores = SCORES * N * C * (n**2 + 1)
        learned = LEARNED_BANKS * C * (n**2 + 1) * n**2 if loss.learn_beta else 0
    evaluated = EVALUATED_MAPS + (MEASURED_MAPS if spec.eval.measures else 0)
    regions = thresholds = 0
    if "part_interpretability" in spec.eval.measures:
        regions = (side**2 + 3 * C) * S**2
        thresholds = 6 * C * cells_above(images, side)
    return _LayerBytes(
        templates=FLOAT * (BANKS * (n**2 + 1) * n**2 if isinstance(spec.template, PartTemplate) else 0),
        training=FLOAT * (MAPS * map_NCHW + scores + learned),
        evaluation=FLOAT * (evaluated * map_NCHW + regions + thresholds) + ROWS * C * images,
    )
