"""Validation error and location instability after an epoch, spread over the workers and merged exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ipcnn_ray.core.classification import ClassificationCounts, Form
from ipcnn_ray.core.location_instability import LocationInstability, location_instability_of_categories
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.receptive_field import Field, centers
from ipcnn_ray.data.split import Items
from ipcnn_ray.data.store import CropStore
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.train.inputs import Inputs, distinct
from ipcnn_ray.train.runtime import Runtime


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    counts: ClassificationCounts
    """Over the validation items, repeats counted."""
    instability: Mapping[str, LocationInstability]
    """By interpretable layer, over the object images."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Which items are looked at, each (crop, mirrored) pair once, and what each is for."""

    items: Items
    weight_I: Tensor
    """How often the validation split holds the item, float64."""
    measured: Tensor
    """Positions in `items` of the object images, not mirrored, that location instability is taken over."""

    @classmethod
    def of(cls, store: CropStore, images: str) -> EvaluationPlan:
        """images: `all` object images, or those of the `validation` split (mirrored there or not)."""
        objects = store.objects
        if images == "validation":
            objects = np.intersect1d(objects, store.val_items[:, 0])
        upright = np.stack([objects, np.zeros_like(objects)], 1)
        items = distinct(store.val_items, upright)
        position = {(index, mirrored): i for i, (index, mirrored) in enumerate(items.tolist())}
        weight_I = torch.zeros(len(items), dtype=torch.float64)
        for index, mirrored in store.val_items.tolist():
            weight_I[position[index, mirrored]] += 1
        return cls(items, weight_I, torch.tensor([position[index, 0] for index in objects.tolist()]))


@torch.no_grad()
def evaluate(
    inputs: Inputs,
    plan: EvaluationPlan,
    fields: Mapping[str, Field],
    runtime: Runtime,
    *,
    epoch: int,
    batch_size: int,
    top_images: int,
    form: Form = "logistic",
    instability: Literal["paper", "released"] = "paper",
) -> Measured:
    """Evaluate the network of `inputs` in float32; every rank gets the same numbers.

    fields: receptive fields of the interpretable layers. batch_size: of one worker. The items are dealt out to the
    workers in turn; what pads the last deal is dropped after the merge. form: of the classification loss.
    instability: its variant for several categories.
    Raises TrainingError when the network's outputs are not finite.
    """
    net, store = inputs.net, inputs.store
    count = len(plan.items)
    mine = plan.items[np.arange(runtime.rank, count + -count % runtime.world_size, runtime.world_size) % count]
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    found: dict[str, list[Tensor]] = {}
    net.eval()
    try:
        with inputs.loader(parts) as loader:
            for batch in loader:
                output = net(inputs.rows(batch), from_features=True, full=True)
                found.setdefault("logits", []).append(output.logits_NL)
                for layer, score_NCHW in output.scores.items():
                    found.setdefault(f"peak {layer}", []).append(peak_NC(score_NCHW))
                    found.setdefault(f"activation {layer}", []).append(score_NCHW.amax((2, 3)))
    finally:
        net.train()
    merged = {
        name: runtime.gather(torch.cat(tensors)).transpose(0, 1).flatten(0, 1)[:count].cpu()
        for name, tensors in found.items()
    }
    if not all(bool(tensor.isfinite().all()) for tensor in merged.values()):
        raise TrainingError(
            f"the network's outputs are not finite after epoch {epoch}: lower train.learning_rate, "
            "or loss.filter.weight if there is a filter loss"
        )
    label_I = torch.from_numpy(store.labels_N[plan.items[:, 0]])
    seen = plan.weight_I > 0
    counts = ClassificationCounts.of(merged["logits"][seen], label_I[seen], plan.weight_I[seen], form)
    landmarks_NK2 = torch.from_numpy(store.landmarks_NK2[plan.items[plan.measured, 0]])
    measured = {}
    for layer in net.interpretable:
        n = net.shape(layer)[1]
        center_n = centers(fields[layer], n)
        peaks_NC = merged[f"peak {layer}"][plan.measured]
        measured[layer] = location_instability_of_categories(
            torch.stack([center_n[peaks_NC // n], center_n[peaks_NC % n]], 2),
            merged[f"activation {layer}"][plan.measured],
            landmarks_NK2,
            label_I[plan.measured],
            store.size * math.sqrt(2),
            variant=instability,
            top_images=top_images,
        )
    return Measured(counts, measured)
