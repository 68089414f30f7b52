"""Evaluation after an epoch: validation error and the metrics of interpretability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.core.classification import ClassificationCounts
from ipcnn_ray.core.metrics.filter_metric import MetricResult
from ipcnn_ray.core.receptive_field import Field
from ipcnn_ray.data.batches import Batch
from ipcnn_ray.train.distributed_inference import EvaluationPlan, infer
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.metric_inputs import Metrics, MetricsConfig
from ipcnn_ray.train.runtime import Runtime

ONLY_INSTABILITY = MetricsConfig()


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    counts: ClassificationCounts
    """Over the validation items, repeats counted."""
    metrics: Mapping[str, Mapping[str, MetricResult]]
    """By metric and interpretable layer."""


def evaluate(
    inputs: InputPipeline,
    plan: EvaluationPlan,
    fields: Mapping[str, Field],
    runtime: Runtime,
    *,
    epoch: int,
    batch_size: int,
    config: MetricsConfig = ONLY_INSTABILITY,
) -> Evaluation:
    """Evaluate the network of `inputs` in float32; every rank gets the same numbers.

    fields: receptive fields of the interpretable layers. batch_size: of one worker.
    Raises TrainingError when the network's outputs are not finite, or when a metric does not give one number per
    filter.
    """
    metrics = Metrics(config, inputs, plan, fields, runtime, epoch=epoch, batch_size=batch_size)

    def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
        output = inputs.net(inputs.net_input(batch), from_features=True, full=True)
        return {"logits": output.logits_NL, **metrics.rows(output)}

    rows = infer(inputs, plan.items, runtime, forward, epoch=epoch, batch_size=batch_size)
    label_I = torch.from_numpy(inputs.store.labels_N[plan.items[:, 0]])
    validation = plan.validation_positions
    counts = ClassificationCounts.of(
        rows["logits"][validation], label_I[validation], plan.weight_I[validation], config.classification
    )
    return Evaluation(counts, metrics.compute(rows))
