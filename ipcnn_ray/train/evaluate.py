"""Validation error, location instability and other measures after an epoch, spread over the workers and merged
exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.core.classification import ClassificationCounts, Form
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.metrics import FilterMeasure
from ipcnn_ray.core.metrics.location_instability import LocationInstability, location_instability_of_categories
from ipcnn_ray.core.receptive_field import Field
from ipcnn_ray.data.batches import Batch
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.split import Items
from ipcnn_ray.spec.metric_info import MeasureName
from ipcnn_ray.train.distributed_inference import item_rows
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.metric_inputs import MetricsConfig, peak_places, take
from ipcnn_ray.train.runtime import Runtime

NOTHING = MetricsConfig()


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    counts: ClassificationCounts
    """Over the validation items, repeats counted."""
    instability: Mapping[str, LocationInstability]
    """By interpretable layer, over the object images."""
    measures: Mapping[MeasureName, Mapping[str, FilterMeasure]]
    """By measure and interpretable layer."""


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
        items = distinct_items(store.val_items, upright)
        position = {(index, mirrored): i for i, (index, mirrored) in enumerate(items.tolist())}
        weight_I = torch.zeros(len(items), dtype=torch.float64)
        for index, mirrored in store.val_items.tolist():
            weight_I[position[index, mirrored]] += 1
        return cls(items, weight_I, torch.tensor([position[index, 0] for index in objects.tolist()]))


def evaluate(
    inputs: InputPipeline,
    plan: EvaluationPlan,
    fields: Mapping[str, Field],
    runtime: Runtime,
    *,
    epoch: int,
    batch_size: int,
    top_images: int,
    form: Form = "logistic",
    instability: Literal["paper", "released"] = "paper",
    wanted: MetricsConfig = NOTHING,
) -> Measured:
    """Evaluate the network of `inputs` in float32; every rank gets the same numbers.

    fields: receptive fields of the interpretable layers. batch_size: of one worker. form: of the classification loss.
    instability: its variant for several categories. wanted: measures beside location instability.
    Raises TrainingError when the network's outputs are not finite.
    """
    net, store = inputs.net, inputs.store

    def look(batch: Batch, number_b: NDArray[np.int64]) -> dict[str, Tensor]:
        output = net(inputs.rows(batch), from_features=True, full=True)
        found = {"logits": output.logits_NL, **wanted.rows(output)}
        for layer, score_NCHW in output.scores.items():
            found[f"peak {layer}"] = peak_NC(score_NCHW)
            found[f"activation {layer}"] = score_NCHW.amax((2, 3))
        return found

    merged = item_rows(inputs, plan.items, runtime, look, epoch=epoch, batch_size=batch_size)
    label_I = torch.from_numpy(store.labels_N[plan.items[:, 0]])
    seen = plan.weight_I > 0
    counts = ClassificationCounts.of(merged["logits"][seen], label_I[seen], plan.weight_I[seen], form)
    landmarks_NK2 = torch.from_numpy(store.landmarks_of(plan.items[plan.measured]))
    measured = {}
    for layer in net.interpretable:
        measured[layer] = location_instability_of_categories(
            peak_places(merged[f"peak {layer}"][plan.measured], fields[layer], net.shape(layer)[1]),
            merged[f"activation {layer}"][plan.measured],
            landmarks_NK2,
            label_I[plan.measured],
            store.size * math.sqrt(2),
            variant=instability,
            top_images=top_images,
        )
    measures = take(wanted, merged, inputs, plan, fields, runtime, epoch=epoch, batch_size=batch_size)
    return Measured(counts, measured, measures)
