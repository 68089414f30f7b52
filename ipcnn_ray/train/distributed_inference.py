"""Forward passes over a list of items, spread over the workers and merged exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.data.batches import Batch
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.runtime import Runtime

Forward = Callable[[Batch, NDArray[np.int64]], dict[str, Tensor]]
"""From a batch and the positions of its rows among the items to tensors [b, ...] by name. Positions at or beyond the
number of items are padding; their rows are dropped after the merge."""
MAY_BE_NAN = "state "
"""Prefix of names whose tensors may hold NaN."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The items of an evaluation, each (crop, mirrored) pair once, and what each is for."""

    items: Items
    weight_I: Tensor
    """How often the validation split holds the item, float64."""
    object_positions: Tensor
    """Positions in `items` of the object images, not mirrored."""

    @classmethod
    def of(cls, store: CropStore, images: str) -> EvaluationPlan:
        """images: `all` object images, or those of the `validation` split (mirrored there or not)."""
        objects = store.objects
        if images == "validation":
            objects = np.intersect1d(objects, store.val_items[:, 0])
        upright = np.stack([objects, np.zeros_like(objects)], 1)
        items = distinct_items(store.val_items, upright)
        position = {(index, mirrored): i for i, (index, mirrored) in enumerate(items.tolist())}
        weight_I = torch.zeros(len(items), dtype=torch.float64)
        for index, mirrored in store.val_items.tolist():
            weight_I[position[index, mirrored]] += 1
        return cls(items, weight_I, torch.tensor([position[index, 0] for index in objects.tolist()]))

    @property
    def validation_positions(self) -> Tensor:
        """Positions in `items` of the validation items."""
        return (self.weight_I > 0).nonzero()[:, 0]


@torch.no_grad()
def infer(
    inputs: InputPipeline,
    items: Items,
    runtime: Runtime,
    forward: Forward,
    *,
    epoch: int,
    batch_size: int,
    crops: bool = False,
) -> dict[str, Tensor]:
    """Results of `forward` for all items, in their order, as [I, ...] tensors on the CPU of every rank.

    The network of `inputs` is in evaluation mode while `forward` is called. Worker r of W takes the items r, r + W, ...
    batch_size: of one worker. crops: see `InputPipeline.loader`.
    Raises TrainingError when a result is infinite or NaN, unless its name begins with `MAY_BE_NAN`.
    """
    count = len(items)
    numbers = np.arange(runtime.rank, count + -count % runtime.world_size, runtime.world_size)
    parts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    results: dict[str, list[Tensor]] = {}
    inputs.net.eval()
    try:
        with inputs.loader([items[part % count] for part in parts], crops=crops) as loader:
            for batch, part in zip(loader, parts, strict=True):
                runtime.report_progress(f"evaluating epoch {epoch}", int(part[0]), count, "images")
                for name, rows in forward(batch, part).items():
                    results.setdefault(name, []).append(rows)
    finally:
        inputs.net.train()
    merged = {
        name: runtime.gather(torch.cat(tensors)).transpose(0, 1).flatten(0, 1)[:count].cpu()
        for name, tensors in results.items()
    }
    if not all(bool(rows.isfinite().all()) for name, rows in merged.items() if not name.startswith(MAY_BE_NAN)):
        advice = "lower train.learning_rate, or loss.filter.weight if there is a filter loss"
        if not epoch:
            advice = "nothing is trained yet, so check the file of model.weights"
        raise TrainingError(f"the network's outputs are not finite after epoch {epoch}: {advice}")
    return merged
