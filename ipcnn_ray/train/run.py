"""One run, from its spec to its result; the same in a test, in a one-worker trial and in a worker of many."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ipcnn_ray.core.convergence import area_under_error, epochs_to_converge
from ipcnn_ray.core.objective import combined
from ipcnn_ray.core.templates import log_prior, template_bank
from ipcnn_ray.data.batches import Batch, Read, crops_reader, to_input
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.data.store import CropStore
from ipcnn_ray.models.build import build, shape_arguments
from ipcnn_ray.models.geometry import field
from ipcnn_ray.models.net import InterpretableNet, Output
from ipcnn_ray.models.weights import LoadReport, load_weights
from ipcnn_ray.spec.experiment import ExperimentSpec, NoTemplate, Train
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.protocol import RunRecord, Tracker
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train.checkpoint import Attempts, RunResult
from ipcnn_ray.train.evaluate import EvaluationPlan, evaluate
from ipcnn_ray.train.frozen_cache import feature_key, features_reader
from ipcnn_ray.train.loop import LayerLoss, train_epoch
from ipcnn_ray.train.runtime import Runtime, StopRun

WEIGHTS = "weights.safetensors"
MEAN = "input_mean"


@dataclass(frozen=True)
class ControlReference:
    """What a run of a search is measured against."""

    instability: float
    error: float
    instability_weight: float

    def combined(self, instability: float, error: float, val_images: float) -> float:
        """The objective of a run with these measures; no error counts as less than one validation image."""
        return combined(
            instability,
            error,
            control_instability=self.instability,
            control_error=self.error,
            instability_weight=self.instability_weight,
            error_floor=1 / val_images,
        )


@dataclass(frozen=True)
class RunRequest:
    """Everything that a worker must know to train one run; small, and it pickles."""

    run_id: str
    digest: str
    """Digest of this run's own resolved spec: what its checkpoints belong to."""
    spec: ExperimentSpec
    places: Places
    handle: str
    """The tracker's id of the run."""
    folder: str
    """Where the run keeps its checkpoints and result."""
    reference: ControlReference | None = None


def execute(request: RunRequest, runtime: Runtime, tracker: Tracker) -> RunResult:
    """Train a run to its end, from its newest checkpoint if it has one; a run that has ended is not trained again.

    Every rank calls it; rank 0 writes the record, the checkpoints and the result. An error is recorded with its
    cause and raised.
    """
    folder = Path(request.folder)
    if (done := checkpoint.read_result(folder)) is not None:
        return done
    first = runtime.rank == 0
    record = tracker.attach(request.handle) if first else None
    attempts = Attempts.begin(folder) if first else None
    state, why = "succeeded", ""
    history: list[dict[str, float]] = []
    try:
        _train(request, runtime, record, history)
    except StopRun as stop:
        state, why = "stopped", stop.why
    except Exception as error:
        if record and attempts:
            why = f"{type(error).__name__}: {error}"
            attempts.close(folder, why)
            record.state("failed", why)
        raise
    metrics = history[-1] if history else {}
    result = RunResult(request.run_id, state, why, len(history), metrics)  # type: ignore[arg-type]
    if record and attempts:
        checkpoint.write_result(folder, result)
        attempts.close(folder)
        record.tags({"ipcnn.attempts_lost": str(attempts.lost), "ipcnn.attempts_error": str(attempts.error)})
        record.state(result.state, why)
    return result


def _train(request: RunRequest, runtime: Runtime, record: RunRecord | None, history: list[dict[str, float]]) -> None:
    spec, folder = request.spec, Path(request.folder)
    torch.set_num_threads(spec.compute.cpus_per_worker)
    store = prepare(spec.data, spec.model.table.image_size, request.places)
    net = build(spec.model, spec.template, spec.seed)
    loaded = None
    if spec.model.weights:
        loaded = load_weights(net, spec.model.table, spec.model.weights, request.places.weights)
    if spec.train.freeze_through:
        net.freeze_through(spec.train.freeze_through)
    net.to(runtime.device)
    inputs = _Inputs(spec, store, net, loaded, runtime, request.places)
    optimizer = torch.optim.SGD(
        net.parameter_groups(spec.train.weight_decay), lr=spec.train.learning_rate, momentum=spec.train.momentum
    )
    restored = checkpoint.newest(folder, request.digest, runtime.device)
    if restored.state:
        net.load_state_dict(restored.state["model"])
        optimizer.load_state_dict(restored.state["optimizer"])
        torch.set_rng_state(restored.state["rng"].cpu())
        history.extend(restored.state["history"])
    if record:
        record.state("running")
        record.params(dict(_flat(spec.model_dump(mode="json", exclude={"compute", "search"}))))
        record.tags(_tags(request, store, loaded, inputs, runtime, restored.damaged))
        record.metrics(history)
    model = runtime.wrap(net)
    losses = _losses(spec, net, runtime.device)
    plan = EvaluationPlan.of(store, spec.eval.images)
    fields = {layer: field(spec.model, layer) for layer in net.interpretable}
    for epoch in range(len(history) + 1, spec.train.epochs + 1):
        began = time.perf_counter()
        rate = learning_rate(spec.train, epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        sums = train_epoch(
            net,
            model,
            inputs.output,
            inputs.read,
            store,
            optimizer,
            losses,
            runtime,
            seed=spec.seed,
            epoch=epoch,
            batch_size=spec.train.batch_size,
        )
        trained = time.perf_counter() - began
        metrics = {
            "epoch": float(epoch),
            "train_loss": sums.train_loss,
            "filter_loss": sums.filter_loss,
            "train_error": sums.train_error,
            "learning_rate": rate,
            "images_per_second": sums.images / trained,
        }
        if epoch % spec.eval.every == 0 or epoch == spec.train.epochs:
            measured = evaluate(
                net,
                functools.partial(inputs.output, net),
                inputs.read,
                plan,
                store,
                fields,
                runtime,
                batch_size=max(1, spec.train.batch_size // runtime.world_size),
                top_images=spec.eval.top_images,
            )
            layer = spec.eval.layer or net.interpretable[-1]
            metrics |= {
                "val_error": measured.counts.error,
                "val_loss": measured.counts.loss,
                "val_images": measured.counts.seen,
                "instability": measured.instability[layer].mean,
            }
            metrics |= {f"instability_{name}": found.mean for name, found in measured.instability.items()}
            if request.reference:
                metrics["combined"] = request.reference.combined(
                    metrics["instability"], metrics["val_error"], metrics["val_images"]
                )
        metrics["seconds"] = time.perf_counter() - began
        history.append(metrics)
        if epoch == spec.train.epochs:
            metrics |= _summary(spec, history, runtime)
        if record:
            state = {
                "digest": request.digest,
                "epoch": epoch,
                "model": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "history": history,
            }
            checkpoint.save(folder, epoch, state)
            record.metrics(history)
        runtime.gather(torch.zeros(1, device=runtime.device))  # nobody goes on before the checkpoint is there
        runtime.report(metrics)
    if record:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
        save_file({**tensors, MEAN: torch.from_numpy(store.mean_3SS)}, folder / WEIGHTS)
        record.file(folder / WEIGHTS, "weights")


class _Inputs:
    """What feeds the network: crops, or cached outputs of its frozen layers."""

    def __init__(
        self,
        spec: ExperimentSpec,
        store: CropStore,
        net: InterpretableNet,
        loaded: LoadReport | None,
        runtime: Runtime,
        places: Places,
    ) -> None:
        self.device = runtime.device
        self.mean = torch.from_numpy(store.mean_3SS).to(self.device)
        self.scale = spec.model.table.input_scale
        self.low_precision = (
            spec.train.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.cached = bool(spec.train.freeze_through and spec.compute.cache_frozen and net.cut)
        self.read: Read = crops_reader(store.images_N3SS)
        if self.cached:
            items = EvaluationPlan.of(store, "all").items
            key = feature_key(
                store.digest,
                loaded.digest if loaded else str(spec.seed),
                spec.model.network,
                str(spec.train.freeze_through),
                ",".join(loaded.loaded if loaded else ()),
                self.device.type,
            )

            def compute(part: Any) -> Tensor:
                mirrored = torch.from_numpy(part[:, 1] == 1)
                return net.frozen_features(self._normalised(crops_reader(store.images_N3SS)(part), mirrored))

            self.read = features_reader(
                places.cache,
                key,
                np.concatenate([items, store.train_items]),
                net.feature_shape(),
                compute,
                len(store.labels_N),
            )

    def _normalised(self, crops: Tensor, mirrored: Tensor) -> Tensor:
        return to_input(crops, mirrored, self.mean, self.scale, self.device)

    def output(self, model: nn.Module, batch: Batch) -> Output:
        """Full output of the model for a batch from `read`."""
        rows = batch.rows.to(self.device) if self.cached else self._normalised(batch.rows, batch.mirrored)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            return model(rows, from_features=self.cached, full=True)  # type: ignore[no-any-return]


def learning_rate(train: Train, epoch: int) -> float:
    """Rate of an epoch (from 1): from the first to the final rate in equal logarithmic steps."""
    final = train.final_learning_rate or train.learning_rate
    if train.epochs == 1:
        return train.learning_rate
    return float(train.learning_rate * (final / train.learning_rate) ** ((epoch - 1) / (train.epochs - 1)))


def _losses(spec: ExperimentSpec, net: InterpretableNet, device: torch.device) -> dict[str, LayerLoss]:
    template, loss = spec.template, spec.loss.filter
    if isinstance(template, NoTemplate) or loss is None:
        return {}
    found = {}
    for layer in net.interpretable:
        n = net.side(layer)
        bank = template_bank(n, **shape_arguments(template), tau=template.tau)  # type: ignore[arg-type]
        found[layer] = LayerLoss(bank.to(device), log_prior(n).to(device), loss.weight, loss.schedule)
    return found


def _summary(spec: ExperimentSpec, history: list[dict[str, float]], runtime: Runtime) -> dict[str, float]:
    """Numbers of the whole run, recorded with its last epoch."""
    errors = [(int(m["epoch"]), m["val_error"]) for m in history if "val_error" in m]
    hours = sum(m["seconds"] for m in history) * runtime.world_size / 3600
    on_gpu = runtime.device.type == "cuda"
    found = {"gpu_hours" if on_gpu else "cpu_hours": hours * (1 if on_gpu else spec.compute.cpus_per_worker)}
    found["best_val_error"] = min(error for _, error in errors)
    found["epochs_to_converge"] = float(epochs_to_converge(errors, spec.eval.convergence_share) or 0)
    found["area_under_error"] = area_under_error(errors) or 0.0
    return found


def _tags(
    request: RunRequest,
    store: CropStore,
    loaded: LoadReport | None,
    inputs: _Inputs,
    runtime: Runtime,
    damaged: tuple[str, ...],
) -> dict[str, str]:
    tags = {
        **store.tags,
        "data.digest": store.digest,
        "model.weights": ", ".join(loaded.loaded) if loaded else "none",
        "model.partial_weights": str(loaded.partial).lower() if loaded else "false",
        "model.weights_digest": loaded.digest if loaded else "",
        "ipcnn.spec_digest": request.digest,
        "ipcnn.seed": str(request.spec.seed),
        "ipcnn.device": torch.cuda.get_device_name() if runtime.device.type == "cuda" else "cpu",
        "ipcnn.precision": "bfloat16 autocast" if inputs.low_precision else "float32",
    }
    tags |= {f"ipcnn.compute.{k}": str(v) for k, v in request.spec.compute.model_dump().items()}
    if damaged:
        tags["ipcnn.damaged_checkpoints"] = ", ".join(damaged)
    return tags


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            yield f"{prefix}{key}", str(inner)
