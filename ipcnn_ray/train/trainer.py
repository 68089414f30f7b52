"""Training of one run: setup, restore, the loop over epochs, checkpoints, and the final weights.

Read `train_run`, then `Trainer.fit`. The same code trains in a test, in a one-worker Tune trial, and on every rank of a
Ray Train worker group; what differs between them is in the `Runtime`.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.datasets.dataset import Progress
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.build import build
from ipcnn_ray.models.initial_weights import scale_new_layers
from ipcnn_ray.models.named_weights import input_mean
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.pretrained_weights import LoadReport, load_pretrained, weights_tags
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.template import PartTemplate
from ipcnn_ray.tracking.run_summary import RunSummary, State
from ipcnn_ray.tracking.tracker import RunRecord, Tracker
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train.checkpoint import Origin
from ipcnn_ray.train.data_sync import fetch_to_node, weights_to_node
from ipcnn_ray.train.distributed_inference import EvaluationPlan
from ipcnn_ray.train.diversity_term import diversity_term
from ipcnn_ray.train.evaluate import check_metrics, evaluate
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.filter_term import filter_terms, set_widening
from ipcnn_ray.train.final_model import fit_template
from ipcnn_ray.train.run_dir import (
    FILTERS_FILE,
    MEAN_KEY,
    TEMPLATE_FILE,
    WEIGHTS_FILE,
    Attempts,
    RunTakenOver,
    open_run_dir,
    read_file,
    write_file,
)
from ipcnn_ray.train.run_metadata import Cached, RunRequest, lineage_tags, run_description, run_params
from ipcnn_ray.train.run_metrics import evaluation_metrics, summary
from ipcnn_ray.train.runtime import Runtime, StopRun, failure_cause, format_error
from ipcnn_ray.train.speed import has_bfloat16, kernels, laid_out
from ipcnn_ray.train.step_graph import step_graph
from ipcnn_ray.train.system_metrics import system_metrics
from ipcnn_ray.train.train_epoch import train_epoch, warm_up_ddp
from ipcnn_ray.utils.memory import keep_freed_memory

log = logging.getLogger(__name__)

SCALED_FOR = 32
"""Number of training items, at equal distances, that `model.new_weights: lsuv` scales new layers for."""


def train_run(request: RunRequest, runtime: Runtime, tracker: Tracker) -> RunSummary:
    """Train a run to its end, from its newest checkpoint if it has one. A run that has ended is not trained again.

    Every rank calls this. Rank 0 alone writes the tracked run, the checkpoints and the result. An error is tracked and
    counted with its cause, and raised. A run that a search stopped has ended; one that was interrupted (a resumable
    StopRun) has not.
    """
    with kernels(request.spec), keep_freed_memory():
        return _train_run(request, runtime, tracker)


def _train_run(request: RunRequest, runtime: Runtime, tracker: Tracker) -> RunSummary:
    folder = request.folder
    if (result := checkpoint.read_result(folder, request.run)) is not None:
        return result
    if runtime.rank > 0:
        trainer = Trainer(request, runtime)
        trainer.fit()
        return trainer.result()
    record, attempts = tracker.attach(request.handle), Attempts.begin(folder)
    try:
        record.set_state("running")
        trainer = Trainer(request, runtime, record, attempts)
        trainer.fit()
        if trainer.ended:
            trainer.store_weights(record)
            trainer.store_filters(record)
    except RunTakenOver:
        raise
    except Exception as error:
        text = format_error(error)
        attempts.finish(folder, failure_cause(error), text)
        record.set_tags(attempts.tags())
        record.set_state("failed", text)
        raise
    result = trainer.result()
    record.set_tags(attempts.tags())
    record.set_description(run_description(request, result.metrics))
    record.set_state(result.state, result.cause)
    if trainer.ended:
        checkpoint.write_result(folder, result)
        checkpoint.drop_training_state(folder)
    attempts.finish(folder)
    return result


class Trainer:
    """One worker of a run: its data, network, optimizer and metric history."""

    def __init__(
        self, request: RunRequest, runtime: Runtime, record: RunRecord | None = None, attempts: Attempts | None = None
    ) -> None:
        """Prepare the data and the network with its initial weights. `record` and `attempts` are rank 0's."""
        self.request, self.runtime, self.record, self.attempts = request, runtime, record, attempts
        self.spec = spec = request.spec
        device, table = runtime.device, spec.model.table
        torch.set_num_threads(spec.compute.cpus_per_worker)

        fetch_to_node(request.paths)
        self.store = store = prepare(spec.data, table.image_size, request.paths, self._image_progress("data"))
        check_metrics(spec, store)

        self.fitted = fit_template(spec.template, store)
        self.template = template = self.fitted.template if self.fitted else spec.template
        self.net = build(spec.model, template, spec.seed, len(store.categories), spec.loss.filter)
        weights_to_node(spec.model, request.paths)
        self.loaded = load_pretrained(self.net, spec.model, request.paths)
        if spec.train.freeze_through:
            self.net.freeze_through(spec.train.freeze_through)
        laid_out(self.net.to(device), spec)

        mean = input_mean(spec.model)
        fast, share = spec.compute.speed == "fast", min(1.0, runtime.gpus)
        self.inputs = InputPipeline(store, self.net, table.input_scale, device, fast=fast, mean=mean, gpu_share=share)
        self.cached: Cached = "false"
        if spec.compute.cache_frozen and self.net.cut > 0:
            items = EvaluationPlan.of(store, "all").items
            self.cached = "evaluation" if spec.data.augment and spec.data.augment.active else "true"
            if self.cached == "true":
                items = distinct_items(store.train_items, items)
            progress = self._image_progress("frozen layers")
            self.inputs.use_cache(request.paths.cache, items, progress, spare_cores=runtime.spare_cores())
        self.evaluation_plan = EvaluationPlan.of(store, spec.eval.images)
        self.optimizer = _optimizer(spec, self.net, self.loaded)
        self.filter_terms = filter_terms(spec, template, self.net, _category_shares(store))
        self.diversity = diversity_term(spec.loss)
        self.graph = step_graph(spec, runtime, self.net, self.optimizer, self.filter_terms)
        self.bfloat16 = spec.train.precision == "auto" and all(self._gather_int(has_bfloat16(device)))
        """Whether the trained layers run under bfloat16 autocast. A checkpoint says so for a resumed run."""

        self.origin = Origin(spec.digest(), store.digest, self.loaded.digest if self.loaded else "")
        self.history: list[dict[str, float]] = []
        """Metrics by epoch."""
        self.filters_json = ""
        """What each filter follows, after the last evaluation of this process."""
        self.stop: StopRun | None = None
        """Why training ended before the last epoch."""

    def fit(self) -> None:
        """Train from the newest checkpoint until the last epoch, or until `report` raises StopRun.

        A run of 0 epochs is measured, as epoch 0.
        """
        self._restore()
        if not self.history and self.spec.model.new_weights == "lsuv":
            self._scale_new_layers()
        self.model = self.runtime.wrap(self.net)
        warm_up_ddp(self.model, self.inputs)
        epochs = range(1, self.spec.train.epochs + 1) or range(1)  # without training, epoch 0 measures the network
        with system_metrics(self.request, self.runtime) as system:
            for epoch in epochs[len(self.history) :]:
                self.history.append(self._train_epoch(epoch))
                last = epoch == epochs[-1]
                if last:
                    self.history[-1] |= summary(self.spec, self.history, self.runtime)
                of_system = system.collect(last=last) if system else {}
                if self.record:
                    if of_system:  # before the checkpoint, after which this epoch is not repeated
                        self.record.log_metrics([{"epoch": float(epoch), **of_system}])
                    self._save_checkpoint()
                    self.record.log_metrics(self.history)
                self.stop = self._report(last=last)
                if self.stop:
                    break
        if self.stop and self.ended:
            self.history[-1] |= summary(self.spec, self.history, self.runtime)
            if self.record:
                self.record.log_metrics(self.history)

    @property
    def ended(self) -> bool:
        """Whether the run is over: trained to the last epoch, or stopped for good."""
        return self.stop is None or not self.stop.resumable

    def result(self) -> RunSummary:
        state: State = "succeeded" if self.stop is None else "stopped" if self.stop.resumable else "pruned"
        cause = self.stop.reason if self.stop else ""
        return replace(self.request.run, state=state, cause=cause, metrics=self.history[-1])

    def store_weights(self, record: RunRecord) -> None:
        """Store the state dict and the mean image in the run's directory and in the tracked run."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.net.state_dict().items()}
        with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
            file = Path(scratch) / WEIGHTS_FILE
            save_file({**tensors, MEAN_KEY: self.inputs.mean_3SS.cpu()}, file)
            open_run_dir(self.request.folder).put_file(file, WEIGHTS_FILE)
            record.log_file(file, "weights")

    def store_filters(self, record: RunRecord) -> None:
        """Store what each filter follows in the tracked run. A run that an earlier version trained may lack it."""
        if (content := read_file(self.request.folder, FILTERS_FILE)) is not None:
            record.log_text(content.decode(), FILTERS_FILE)

    def _restore(self) -> None:
        """Load the newest checkpoint, if there is one. All that follows depends on (seed, epoch, step) alone."""
        restored = checkpoint.newest(self.request.folder, self.origin)
        epochs = self._gather_int(restored.epoch if restored.state else -1)
        if len(set(epochs)) > 1:
            seen = ", ".join("none" if epoch < 0 else str(epoch) for epoch in epochs)
            raise TrainingError(
                f"the workers see checkpoints of different epochs ({seen}): "
                "IPCNN_STORAGE must be one folder that all share"
            )
        self.history = restored.history
        if restored.state:
            try:
                self.net.load_state_dict(restored.state["model"])
                self.optimizer.load_state_dict(restored.state["optimizer"])
                for layer, term in self.filter_terms.items():
                    term.restore(restored.state["filter_loss"][layer], self.runtime.device)
            except (RuntimeError, ValueError, KeyError) as error:
                raise TrainingError(
                    f"the checkpoint of epoch {restored.epoch} does not fit the network. It is of another version of "
                    "ipcnn: go on with that one, or submit with --fresh "
                    f"({' '.join(str(error).split())})"
                ) from error
            checkpoint.restore_generators(restored.state["generators"])
            # Earlier versions stored no precision. Theirs was float32 on every processor.
            self.bfloat16 = restored.state.get("bfloat16", self.bfloat16 and self.runtime.device.type == "cuda")
            if self.bfloat16 and not has_bfloat16(self.runtime.device):
                log.warning("the run began in bfloat16, which this device emulates: it goes on in it, slowly")
        if self.record:
            self._log_setup(self.record, restored.damaged)

    def _scale_new_layers(self) -> None:
        """Scale the initial weights of new layers for items of the training split, the same on every rank."""
        items = self.store.train_items
        some = items[np.unique(np.linspace(0, len(items) - 1, SCALED_FOR).round().astype(int))]
        self._set_widening(min(1, self.spec.train.epochs))
        with self.inputs.loader([some]) as loader:
            rows = self.inputs.net_input(next(loader))
        scale_new_layers(self.net, rows, self.loaded.loaded if self.loaded else ())

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        spec, runtime, start = self.spec, self.runtime, time.perf_counter()
        terms, bfloat16 = self.filter_terms, self.bfloat16
        metrics = {"epoch": float(epoch)}
        if epoch:
            widening = self._set_widening(epoch)
            metrics = train_epoch(
                self.model,
                self.inputs,
                self.optimizer,
                terms,
                runtime,
                spec,
                epoch,
                diversity=self.diversity,
                bfloat16=bfloat16,
                graph=self.graph,
            )
            metrics |= widening
        if epoch % spec.eval.every == 0 or epoch == spec.train.epochs:
            evaluation = evaluate(self.inputs, self.evaluation_plan, spec, runtime, epoch=epoch)
            metrics |= evaluation_metrics(self.request, evaluation)
            self.filters_json = evaluation.filters_json(epoch)
        return {**metrics, "seconds": time.perf_counter() - start}

    def _set_widening(self, epoch: int) -> dict[str, float]:
        """Widen the templates as in this epoch, and return the factor as a metric; nothing without narrowing."""
        template = self.template
        if not isinstance(template, PartTemplate) or template.narrowing is None:
            return {}
        set_widening(self.spec, template, self.net, self.filter_terms, template.widening(epoch))
        return {"template_widening": template.widening(epoch)}

    def _save_checkpoint(self) -> None:
        state = {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "filter_loss": {layer: term.state() for layer, term in self.filter_terms.items()},
            "generators": checkpoint.generator_states(),
            "bfloat16": self.bfloat16,
        }
        if self.attempts:
            self.attempts.check_owner(self.request.folder)
        if self.filters_json:  # before the checkpoint, so that a run that ends after it has the file
            write_file(self.request.folder, FILTERS_FILE, self.filters_json.encode())
        checkpoint.save(self.request.folder, self.origin, self.history, state)
        if self.attempts:  # again: a storage that did not answer may have kept this process until it was taken for dead
            self.attempts.check_owner(self.request.folder)

    def _report(self, *, last: bool) -> StopRun | None:
        """Report the epoch, after its checkpoint is stored. A stop that one rank is asked for stops all ranks."""
        self._gather_int(0)  # a barrier: no rank continues before rank 0 has stored the checkpoint
        stop: StopRun | None = None
        try:
            self.runtime.report(self.history[-1])
        except StopRun as request:
            stop = request
        code = max(self._gather_int(0 if stop is None else 1 + stop.resumable))
        if last or not code:
            return None
        return stop or StopRun("another worker was asked to stop", resumable=code == 2)

    def _log_setup(self, record: RunRecord, damaged_checkpoints: tuple[str, ...]) -> None:
        """Track parameters, lineage, the fitted template and the metrics so far."""
        on_gpu = self.runtime.device.type == "cuda"
        record.log_params(run_params(self.spec))
        record.set_tags(
            lineage_tags(
                self.request,
                {
                    **self.store.tags,
                    "data.digest": self.store.digest,
                    **weights_tags(self.loaded),
                    "ipcnn.frozen_features": self.inputs.features_key,
                },
                device=torch.cuda.get_device_name(self.runtime.device) if on_gpu else "cpu",
                workers=self.runtime.world_size,
                bfloat16=self.bfloat16,
                cached=self.cached,
                gpus=self.runtime.gpus if on_gpu else 0,
            )
        )
        if self.fitted:
            record.log_params(self.fitted.params())
            record.set_tags(self.fitted.tags())
            record.log_text(self.fitted.as_json(), "template_fitted.json")
            write_file(self.request.folder, TEMPLATE_FILE, self.fitted.as_json().encode())
        if damaged_checkpoints:
            record.set_tags({"ipcnn.damaged_checkpoints": "; ".join(damaged_checkpoints)})
            log.warning("passed over damaged checkpoints: %s", "; ".join(damaged_checkpoints))
        record.set_description(run_description(self.request, self.history[-1] if self.history else {}))
        if self.history:
            record.log_metrics(self.history)

    def _image_progress(self, phase: str) -> Progress:
        return lambda done, total: self.runtime.report_progress(phase, done, total, "images")

    def _gather_int(self, value: int) -> list[int]:
        return self.runtime.gather(torch.tensor([value], device=self.runtime.device)).flatten().tolist()


def _category_shares(store: CropStore) -> Tensor:
    """Share of the items of both splits that are of each category, [L] float64."""
    label_I = torch.from_numpy(store.labels_N[np.concatenate([store.train_items, store.val_items])[:, 0]])
    return torch.stack([(label_I == k).double().mean() for k in range(len(store.categories))])


def _optimizer(spec: ExperimentSpec, net: InterpretableNet, loaded: LoadReport | None) -> torch.optim.Optimizer:
    train, loss = spec.train, spec.loss.filter
    groups = net.parameter_groups(
        train.weight_decay,
        loaded=loaded.loaded if loaded else (),
        new_weight_rate=train.new_weight_rate,
        new_bias_rate=train.new_bias_rate,
        last_bias_rate=train.last_bias_rate,
        decay_loaded_biases=train.decay_loaded_biases,
        beta_rate=loss.beta_rate if loss else 1.0,
    )
    fused = True if spec.compute.speed == "fast" else None  # None: torch's choice, which has other bytes than fused
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum, fused=fused)
