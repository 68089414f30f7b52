"""Validation error and location instability after an epoch, spread over the workers and merged exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ipcnn_ray.core.classification import BinaryCounts
from ipcnn_ray.core.location_instability import LocationInstability, location_instability
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.receptive_field import Field
from ipcnn_ray.data.batches import Batch, Read, batches
from ipcnn_ray.data.split import Items
from ipcnn_ray.data.store import CropStore
from ipcnn_ray.models.net import InterpretableNet, Output
from ipcnn_ray.train.runtime import Runtime


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    counts: BinaryCounts
    """Over the validation items, repeats counted."""
    instability: Mapping[str, LocationInstability]
    """By interpretable layer, over the object images."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Which items are looked at, and what each is for. Every (crop, mirrored) pair once."""

    items: Items
    weight_I: Tensor
    """How often the validation split holds the item."""
    measured: Tensor
    """Positions in `items` of the object images, not mirrored, that location instability is taken over."""

    @classmethod
    def of(cls, store: CropStore, images: str) -> EvaluationPlan:
        """`images`: all object images, or those of the validation split."""
        validation, counts = np.unique(store.val_items, axis=0, return_counts=True)
        objects = store.objects
        if images == "validation":
            objects = np.setdiff1d(objects, store.train_items[:, 0])
        objects = np.stack([objects, np.zeros_like(objects)], 1)
        items = np.unique(np.concatenate([validation, objects]), axis=0)
        position = {tuple(item): i for i, item in enumerate(items.tolist())}
        weight = torch.zeros(len(items), dtype=torch.float64)
        weight[[position[tuple(item)] for item in validation.tolist()]] = torch.from_numpy(counts).double()
        return cls(items, weight, torch.tensor([position[tuple(item)] for item in objects.tolist()]))


def evaluate(
    net: InterpretableNet,
    run: Callable[[Batch], Output],
    read: Read,
    plan: EvaluationPlan,
    store: CropStore,
    fields: Mapping[str, Field],
    runtime: Runtime,
    *,
    batch_size: int,
    top_images: int,
) -> Measured:
    """Evaluate `net`; `run` gives its full output for a batch that `read` filled. Every rank gets the same numbers."""
    count, world = len(plan.items), runtime.world_size
    padded = np.concatenate([plan.items, plan.items[: -count % world]])
    mine = padded[runtime.rank :: world]
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    logits: list[Tensor] = []
    peaks: dict[str, list[Tensor]] = {layer: [] for layer in net.interpretable}
    values: dict[str, list[Tensor]] = {layer: [] for layer in net.interpretable}
    net.eval()
    try:
        with torch.no_grad():
            for batch in batches(parts, store.labels_N, read):
                output = run(batch)
                logits.append(output.logits_N.float())
                for layer, score_NCHW in output.scores.items():
                    peaks[layer].append(peak_NC(score_NCHW))
                    values[layer].append(score_NCHW.float().amax((2, 3)))
    finally:
        net.train()

    def merged(parts: list[Tensor]) -> Tensor:
        return runtime.gather(torch.cat(parts)).transpose(0, 1).flatten(0, 1)[:count].cpu()

    labels = torch.from_numpy(store.labels_N[plan.items[:, 0]])
    counts = BinaryCounts.of(merged(logits), labels, plan.weight_I)
    landmarks = torch.from_numpy(store.landmarks_NK2[plan.items[plan.measured, 0]])
    instability = {}
    for layer in net.interpretable:
        field, n = fields[layer], net.side(layer)
        peak = merged(peaks[layer])[plan.measured]
        place = field.first_center + field.stride * torch.stack([peak // n, peak % n], 2).double()
        instability[layer] = location_instability(
            place,
            merged(values[layer])[plan.measured],
            landmarks,
            store.size * math.sqrt(2),
            top_images=top_images,
        )
    return Measured(counts, instability)
