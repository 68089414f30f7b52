"""The numbers of an epoch and of a run, by the names that they have in the record.

epoch (from 1), train_loss, val_loss (nats per image), filter_loss (nats, all filters), train_error, val_error,
instability, instability_<layer> (shares of the image diagonal), combined, learning_rate, images_per_second, seconds;
of each measure in `eval.measures` (units: `spec/measures.py`) <measure>, <measure>_<layer>, and <measure>_dropped, the
filters of `eval.layer` that could not be measured;
at the end best_val_error, epochs_to_converge, area_under_error, cpu_hours or gpu_hours
"""

from __future__ import annotations

from collections.abc import Mapping

from ipcnn_ray.core.classification import area_under_error, epochs_to_converge
from ipcnn_ray.core.multi_objective import combined
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.evaluate import Measured
from ipcnn_ray.train.run_request import ControlReference, RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.train_epoch import EpochMetrics


def training_metrics(epoch: int, rate: float, sums: EpochMetrics, seconds: float) -> dict[str, float]:
    """Of one epoch of training that took so many seconds."""
    filter_loss = {} if sums.filter_loss is None else {"filter_loss": sums.filter_loss}
    return {
        "epoch": float(epoch),
        "train_loss": sums.train_loss,
        **filter_loss,
        "train_error": sums.train_error,
        "learning_rate": rate,
        "images_per_second": sums.images / seconds,
    }


def evaluation_metrics(request: RunRequest, measured: Measured) -> dict[str, float]:
    """Of one evaluation."""
    layer = request.spec.eval.layer or list(measured.instability)[-1]
    metrics = {
        "val_error": measured.counts.error,
        "val_loss": measured.counts.loss,
        "val_images": measured.counts.seen,
        "instability": measured.instability[layer].mean,
        **{f"instability_{name}": found.mean for name, found in measured.instability.items()},
    }
    for name, by_layer in measured.measures.items():
        metrics |= {name: by_layer[layer].mean, f"{name}_dropped": by_layer[layer].dropped}
        metrics |= {f"{name}_{one}": found.mean for one, found in by_layer.items()}
    if request.references is not None:
        metrics["combined"] = objective(metrics, request.references)
    return metrics


def objective(metrics: Mapping[str, float], control: ControlReference) -> float:
    """The combined objective of an evaluated epoch; no error counts as less than one validation item."""
    return combined(
        metrics["instability"],
        metrics["val_error"],
        control_instability=control.instability,
        control_error=control.error,
        instability_weight=control.instability_weight,
        error_floor=1 / metrics["val_images"],
    )


def summary(spec: ExperimentSpec, history: list[dict[str, float]], runtime: Runtime) -> dict[str, float]:
    """Numbers of the whole run; those of the validation error only if there was an evaluation."""
    hours = sum(metrics["seconds"] for metrics in history) * runtime.world_size / 3600
    if runtime.device.type == "cuda":
        found = {"gpu_hours": hours * (spec.compute.gpus_per_worker or 1)}
    else:
        found = {"cpu_hours": hours * spec.compute.cpus_per_worker}
    errors = [(int(metrics["epoch"]), metrics["val_error"]) for metrics in history if "val_error" in metrics]
    converged, area = epochs_to_converge(errors, spec.eval.convergence_share), area_under_error(errors)
    if converged is not None and area is not None:
        found |= {
            "best_val_error": min(error for _, error in errors),
            "epochs_to_converge": float(converged),
            "area_under_error": area,
        }
    return found
