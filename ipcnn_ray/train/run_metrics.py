"""The metrics of an epoch and of a run, by their names in the record.

Each epoch: epoch (from 1), train_loss (nats per image), filter_loss (nats, summed over filters and layers, mean over
steps, unweighted; not of a form that has no value), train_error (logistic: mean share of wrong categories per image,
softmax: share of wrong images), learning_rate, images_per_second, seconds; with loss.diversity
diversity_loss (mean over steps, unweighted); with template.narrowing template_widening, the factor on the lengths of
the template.
Each evaluation: val_loss, val_error, val_images, combined; and of each metric that every run records and each of
`eval.measures` (units: `core/metrics/`) <metric> of `eval.layer`, <metric>_<layer>, and, unless it is one number per
layer, <metric>_dropped, the number of filters of `eval.layer` that could not be measured; following_<landmark>, the
number of filters of `eval.layer` that follow this landmark more than the others.
At the end: best_val_error, epochs_to_converge, area_under_error, cpu_hours or gpu_hours.

A run of 0 epochs has one evaluation, recorded as epoch 0, and neither metrics of training nor epochs_to_converge.
"""

from __future__ import annotations

from ipcnn_ray.core.classification import area_under_error, epochs_to_converge
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.extensions import FOLLOWING, METRICS
from ipcnn_ray.train.evaluate import Evaluation
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime


def evaluation_metrics(request: RunRequest, evaluation: Evaluation) -> dict[str, float]:
    metrics: dict[str, float] = {
        "val_error": evaluation.counts.error,
        "val_loss": evaluation.counts.loss,
        "val_images": evaluation.counts.seen,
    }
    layer = request.spec.eval.layer or list(evaluation.filters)[-1]
    for name, by_layer in evaluation.metrics.items():
        result = by_layer[layer]
        metrics[name] = result.mean
        if not METRICS.load(name).one_per_layer:
            metrics[f"{name}_dropped"] = result.dropped
        metrics |= {f"{name}_{layer}": result.mean for layer, result in by_layer.items()}
    metrics |= {f"{FOLLOWING}{name}": count for name, count in evaluation.following(layer).items()}
    if request.references is not None:
        metrics["combined"] = request.references.objective(metrics)
    return metrics


def summary(spec: ExperimentSpec, history: list[dict[str, float]], runtime: Runtime) -> dict[str, float]:
    """Return the metrics of the whole run; those of the validation error only if there was an evaluation."""
    hours = sum(epoch["seconds"] for epoch in history) * runtime.world_size / 3600
    if runtime.device.type == "cuda":
        metrics = {"gpu_hours": hours * runtime.gpus}
    else:
        metrics = {"cpu_hours": hours * spec.compute.cpus_per_worker}
    errors = [(int(epoch["epoch"]), epoch["val_error"]) for epoch in history if "val_error" in epoch]
    converged, area = epochs_to_converge(errors, spec.eval.convergence_share), area_under_error(errors)
    if converged is not None and area is not None:
        metrics |= {"best_val_error": min(error for _, error in errors), "area_under_error": area}
        if spec.train.epochs:
            metrics["epochs_to_converge"] = float(converged)
    return metrics
