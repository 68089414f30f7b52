"""One run, from its spec to its result; the same in a test, in a one-worker trial and in a worker of many."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.build import build
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.weights import LoadReport, load_weights
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import digest
from ipcnn_ray.tracking.tracker import RunRecord, State, Tracker
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train import run_metadata as recorded
from ipcnn_ray.train.checkpoint import Origin, Restored
from ipcnn_ray.train.data_sync import fetch_to_node
from ipcnn_ray.train.evaluate import EvaluationPlan, evaluate
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.filter_term import FilterTerm, filter_terms
from ipcnn_ray.train.metric_inputs import MetricsConfig
from ipcnn_ray.train.retry_state import Attempts, RunTakenOver, failure_cause
from ipcnn_ray.train.run_dir import TEMPLATE_FILE, WEIGHTS_FILE, open_run_dir, write_file
from ipcnn_ray.train.run_metrics import evaluation_metrics, summary, training_metrics
from ipcnn_ray.train.run_request import RunRequest, RunResult
from ipcnn_ray.train.runtime import Runtime, StopRun
from ipcnn_ray.train.tailored_template import FittedTemplate, fitted
from ipcnn_ray.train.train_epoch import learning_rate, train_epoch, warm_up_ddp

MEAN_KEY = "input_mean"
"""Name of the mean image among the final weights."""

log = logging.getLogger(__name__)


def train_run(request: RunRequest, runtime: Runtime, tracker: Tracker) -> RunResult:
    """Train a run to its end, from its newest checkpoint if it has one; a run that has ended is not trained again.

    Every rank calls it; rank 0 alone writes the record, the checkpoints and the result. An error is recorded with
    its cause, counted, and raised. A run that a search stopped has ended; one that was interrupted (a resumable
    StopRun) has not.
    """
    folder = request.folder
    if (done := checkpoint.read_result(folder)) is not None:
        return done
    if runtime.rank > 0:
        trained = _train(request, runtime)
        return trained.result(request)
    record, attempts = tracker.attach(request.handle), Attempts.begin(folder)
    try:
        record.set_state("running")
        trained = _train(request, runtime, record, attempts)
        result = trained.result(request)
        if trained.ended:
            _keep_weights(folder, save(trained.weights), record)
    except RunTakenOver:
        raise
    except Exception as error:
        cause = failure_cause(error)
        why = f"{'out of memory: ' if cause == 'memory' else ''}{type(error).__name__}: {error}"
        attempts.finish(folder, cause, why)
        record.set_tags(_counted(attempts))
        record.set_state("failed", why)
        raise
    record.set_tags(_counted(attempts))
    record.set_description(recorded.description(request, result.metrics))
    record.set_state(result.state, result.why)
    if trained.ended:
        checkpoint.write_result(folder, result)
    attempts.finish(folder)
    return result


@dataclass(frozen=True)
class _Trained:
    """Where training got to."""

    history: list[dict[str, float]]
    weights: dict[str, Tensor]
    """Parameters and the mean image, on the CPU."""
    stop: StopRun | None
    """Why it went no further."""

    @property
    def ended(self) -> bool:
        return self.stop is None or not self.stop.resumable

    def result(self, request: RunRequest) -> RunResult:
        state: State = "stopped" if self.stop else "succeeded"
        why = self.stop.why if self.stop else ""
        return RunResult(request.run_id, state, why, len(self.history), self.history[-1])


def _keep_weights(folder: str, weights: bytes, record: RunRecord) -> None:
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
        copy = Path(scratch) / WEIGHTS_FILE
        copy.write_bytes(weights)
        open_run_dir(folder).put_file(copy, WEIGHTS_FILE)
        record.log_file(copy, "weights")


def _counted(attempts: Attempts) -> dict[str, str]:
    return {f"ipcnn.attempts_{cause}": str(getattr(attempts, cause)) for cause in ("lost", "memory", "error")}


@dataclass(frozen=True)
class _Setup:
    """What a worker holds while it trains."""

    net: InterpretableNet
    inputs: InputPipeline
    plan: EvaluationPlan
    optimizer: torch.optim.Optimizer
    terms: Mapping[str, FilterTerm]
    loaded: LoadReport | None
    fitted: FittedTemplate | None
    """What a tailored template became on this data."""
    cached: bool
    """Frozen layers are read from disk."""
    bfloat16: bool

    def origin(self, spec: ExperimentSpec) -> Origin:
        return Origin(digest(spec), self.inputs.store.digest, self.loaded.digest if self.loaded else "")


def _set_up(request: RunRequest, runtime: Runtime) -> _Setup:
    """Data, network with its first weights, optimiser."""
    spec, device = request.spec, runtime.device
    fetch_to_node(request.paths)
    store = prepare(
        spec.data,
        spec.model.table.image_size,
        request.paths,
        lambda i, n: runtime.report_progress("data", i, n, "images"),
    )
    _wanted(spec).check(store)
    fit = fitted(spec.template, store)
    template = fit.template if fit else spec.template
    net = build(spec.model, template, spec.seed, len(store.categories), spec.loss.filter)
    weights = spec.model.weights
    loaded = load_weights(net, spec.model.table, weights, request.paths.weights) if weights else None
    if spec.train.freeze_through:
        net.freeze_through(spec.train.freeze_through)
    net.to(device)
    inputs = InputPipeline(store, net, spec.model.table.input_scale, device)
    cached = spec.compute.cache_frozen and net.cut > 0
    if cached:
        items = distinct_items(store.train_items, EvaluationPlan.of(store, "all").items)
        inputs.cache(request.paths.cache, items, lambda i, n: runtime.report_progress("frozen layers", i, n, "images"))
    return _Setup(
        net=net,
        inputs=inputs,
        plan=EvaluationPlan.of(store, spec.eval.images),
        optimizer=_optimizer(spec, net, loaded),
        terms=filter_terms(spec, template, net, _density(store)),
        loaded=loaded,
        fitted=fit,
        cached=cached,
        bfloat16=spec.train.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(),
    )


# Kernels that always add up in the same order, and a float32 that is float32.
@torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
def _train(
    request: RunRequest, runtime: Runtime, record: RunRecord | None = None, attempts: Attempts | None = None
) -> _Trained:
    """Set up, restore, and train epoch by epoch. `record` and `attempts` are rank 0's."""
    spec = request.spec
    torch.set_num_threads(spec.compute.cpus_per_worker)
    setup = _set_up(request, runtime)
    net, store, origin = setup.net, setup.inputs.store, setup.origin(spec)
    restored = checkpoint.newest(request.folder, origin)
    _restore(restored, setup, runtime)
    history = restored.history
    if record:
        record.log_params(recorded.params(spec))
        record.set_tags(
            recorded.lineage(request, store, setup.loaded, runtime, bfloat16=setup.bfloat16, cached=setup.cached)
        )
        if setup.fitted:
            record.log_params(setup.fitted.params())
            record.set_tags(setup.fitted.tags())
            record.log_text(setup.fitted.as_json(), "template_fitted.json")
            write_file(request.folder, TEMPLATE_FILE, setup.fitted.as_json().encode())
        if restored.damaged:
            record.set_tags({"ipcnn.damaged_checkpoints": "; ".join(restored.damaged)})
            log.warning("passed over damaged checkpoints: %s", "; ".join(restored.damaged))
        record.set_description(recorded.description(request, history[-1] if history else {}))
        if history:
            record.log_metrics(history)
    model = runtime.wrap(net)
    warm_up_ddp(model, setup.inputs)
    stop: StopRun | None = None
    while len(history) < spec.train.epochs and stop is None:
        history.append(_epoch(request, runtime, setup, model, len(history) + 1))
        last = len(history) == spec.train.epochs
        if last:
            history[-1] |= summary(spec, history, runtime)
        if record:
            state = {
                "model": net.state_dict(),
                "optimizer": setup.optimizer.state_dict(),
                "filter_loss": {layer: term.state() for layer, term in setup.terms.items()},
                "generators": checkpoint.generator_states(),
            }
            if attempts:
                attempts.check_owner(request.folder)
            checkpoint.save(request.folder, origin, history, state)
            record.log_metrics(history)
        stop = _report(runtime, history[-1], last=last)
    if stop and not stop.resumable:
        history[-1] |= summary(spec, history, runtime)
        if record:
            record.log_metrics(history)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    return _Trained(history, {**tensors, MEAN_KEY: setup.inputs.mean_3SS.cpu()}, stop)


def _epoch(request: RunRequest, runtime: Runtime, setup: _Setup, model: nn.Module, epoch: int) -> dict[str, float]:
    """Train an epoch, evaluate if it is due, and give its metrics."""
    spec, began = request.spec, time.perf_counter()
    rate = learning_rate(spec.train, epoch)
    for group in setup.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    sums = train_epoch(
        model,
        setup.inputs,
        setup.optimizer,
        setup.terms,
        runtime,
        seed=spec.seed,
        epoch=epoch,
        batch_size=spec.train.batch_size,
        bfloat16=setup.bfloat16,
        form=spec.loss.classification,
    )
    metrics = training_metrics(epoch, rate, sums, time.perf_counter() - began)
    if epoch % spec.eval.every == 0 or epoch == spec.train.epochs:
        measured = evaluate(
            setup.inputs,
            setup.plan,
            {layer: layer_receptive_field(spec.model, layer) for layer in setup.net.interpretable},
            runtime,
            epoch=epoch,
            batch_size=max(1, spec.train.batch_size // runtime.world_size),
            top_images=spec.eval.top_images,
            form=spec.loss.classification,
            instability=spec.eval.instability,
            wanted=_wanted(spec),
        )
        metrics |= evaluation_metrics(request, measured)
    return {**metrics, "seconds": time.perf_counter() - began}


def _restore(restored: Restored, setup: _Setup, runtime: Runtime) -> None:
    """Put the run where its checkpoint left it. What comes next follows from (seed, epoch, step) alone."""
    epochs = runtime.gather(torch.tensor([restored.epoch], device=runtime.device)).flatten().tolist()
    if len(set(epochs)) > 1:
        raise TrainingError(
            f"the workers see checkpoints of different epochs, {epochs}: "
            "IPCNN_STORAGE must be one folder that all share"
        )
    if not restored.epoch:
        return
    try:
        setup.net.load_state_dict(restored.state["model"])
        setup.optimizer.load_state_dict(restored.state["optimizer"])
        for layer, term in setup.terms.items():
            term.restore(restored.state["filter_loss"][layer])
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"the checkpoint of epoch {restored.epoch} does not fit the network. It is of another version of ipcnn: "
            f"go on with that one, or submit with --fresh ({' '.join(str(error).split())})"
        ) from error
    checkpoint.restore_generators(restored.state["generators"])


def _report(runtime: Runtime, metrics: Mapping[str, float], *, last: bool) -> StopRun | None:
    """Tell the runtime, once the epoch is safe; a stop that one rank was asked for is a stop on all."""
    runtime.gather(torch.zeros(1, device=runtime.device))  # nobody goes on before the checkpoint is there
    stop: StopRun | None = None
    try:
        runtime.report(metrics)
    except StopRun as asked:
        stop = asked
    wish = 0 if stop is None else 1 + stop.resumable
    wish = int(runtime.gather(torch.tensor([wish], device=runtime.device)).max())
    if last or not wish:
        return None
    return stop or StopRun("another worker was asked to stop", resumable=wish == 2)


def _density(store: CropStore) -> torch.Tensor:
    """Share of all items, of both splits, that are of each category, [L] float64."""
    label_I = torch.from_numpy(store.labels_N[np.concatenate([store.train_items, store.val_items])[:, 0]])
    return torch.stack([(label_I == k).double().mean() for k in range(len(store.categories))])


def _optimizer(spec: ExperimentSpec, net: InterpretableNet, loaded: LoadReport | None) -> torch.optim.Optimizer:
    train, loss = spec.train, spec.loss.filter
    groups = net.parameter_groups(
        train.weight_decay,
        loaded=loaded.loaded if loaded else (),
        new_bias_rate=train.new_bias_rate,
        last_bias_rate=train.last_bias_rate,
        decay_loaded_biases=train.decay_loaded_biases,
        beta_rate=loss.beta_rate if loss else 1.0,
    )
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.learning_rate)
    return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum)


def _wanted(spec: ExperimentSpec) -> MetricsConfig:
    return MetricsConfig(spec.eval.measures, spec.seed, spec.eval.ablation_filters, spec.loss.classification)
