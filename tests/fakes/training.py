"""A record in memory, tiny experiments, and workers that are threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fakes.ranks import on_ranks
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.models.build import build
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.distributed_inference import EvaluationPlan
from ipcnn_ray.train.evaluate import Evaluation, evaluate
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths

CLOCKS = {"seconds", "images_per_second", "cpu_hours"}
"""Metrics that no two runs share."""


def tiny(name: str = "tiny", **sections: Mapping[str, Any]) -> ExperimentSpec:
    """Ten cows and ten negatives, `compact`, three epochs of three steps; sections are merged into it."""
    raw: dict[str, Any] = {
        "name": name,
        "data": {"kind": "drawn_animals", "objects": 10, "negatives": 10},
        "model": {"network": "compact", "dropout": 0.5},
        "template": {"shape": "gradient"},
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.05, "final_learning_rate": 0.02},
    }
    for key, section in sections.items():
        raw[key] = {**raw.get(key, {}), **section}
    return ExperimentSpec.model_validate(raw)


@dataclass
class MemoryRecord:
    """A RunRecord in memory; `fails` may raise."""

    handle: str = "handle"
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    system: dict[int, dict[str, float]] = field(default_factory=dict)
    """System metrics by epoch."""
    files: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=list)
    fails: Callable[[str], None] = lambda method: None
    """Called with the name of a method before it does anything."""

    def log_params(self, values: Mapping[str, str]) -> None:
        assert all(self.params.get(key, value) == value for key, value in values.items())
        self.params |= values

    def set_tags(self, values: Mapping[str, str]) -> None:
        assert all(isinstance(value, str) for value in values.values())
        self.tags |= values

    @property
    def history(self) -> list[dict[str, float]]:
        """The metrics of each epoch, without those of clocks."""
        return timeless(self.epochs.values())

    def set_description(self, text: str) -> None: ...

    def log_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        system = any(key.startswith("system/") for metrics in history for key in metrics)
        self.fails("system" if system else "metrics")
        for metrics in history:
            known = (self.system if system else self.epochs).setdefault(int(metrics["epoch"]), {})
            known |= {key: value for key, value in metrics.items() if key not in known}

    def log_text(self, content: str, path: str) -> None:
        self.texts[path] = content

    def log_file(self, local: Path, folder: str) -> None:
        self.fails("file")
        self.files[f"{folder}/{local.name}"] = local.read_bytes()

    def log_model(self, module: object, example: object, readme: str) -> None: ...

    def set_state(self, state: str, cause: str = "") -> None:
        self.states.append((state, cause))


class MemoryTracker:
    """A Tracker of one run."""

    uri = "memory:"

    def __init__(self, record: MemoryRecord | None = None) -> None:
        self.record = record or MemoryRecord()

    def attach(self, handle: str) -> MemoryRecord:
        return self.record


class OnReport(Runtime):
    """One worker, which keeps what is reported; `on_report(epoch)` may raise."""

    def __init__(self, on_report: Callable[[int], object] = lambda epoch: None) -> None:
        super().__init__()
        self.on_report = on_report
        self.reported: list[dict[str, float]] = []

    def report(self, metrics: Mapping[str, float]) -> None:
        self.reported.append(dict(metrics))
        self.on_report(int(metrics["epoch"]))


@dataclass
class Bench:
    """A folder for runs, and a cache."""

    root: Path
    cache: Path
    record: MemoryRecord = field(default_factory=MemoryRecord)
    """Of the last `run`."""

    @property
    def paths(self) -> Paths:
        return Paths.from_environment(
            {"IPCNN_HOME": str(self.root), "IPCNN_CACHE": str(self.cache), "IPCNN_WEIGHTS": str(self.root / "weights")}
        )

    def request(self, spec: ExperimentSpec, name: str = "run", **more: Any) -> RunRequest:
        folder = more.pop("folder", str(self.root / "runs" / name))
        return RunRequest(RunSummary(name, name), spec, self.paths, "handle", folder, **more)

    def run(
        self,
        spec: ExperimentSpec,
        name: str = "run",
        runtime: Runtime | None = None,
        record: MemoryRecord | None = None,
        **more: Any,
    ) -> RunSummary:
        """Train a run. record: where it is tracked; default: a new one. more: of the request."""
        self.record = record or MemoryRecord()
        return train_run(self.request(spec, name, **more), runtime or Runtime(), MemoryTracker(self.record))

    def weights(self, name: str = "run") -> bytes:
        return (self.root / "runs" / name / "weights.safetensors").read_bytes()

    def inputs(self, spec: ExperimentSpec) -> InputPipeline:
        store = prepare(spec.data, spec.model.table.image_size, self.paths)
        net = build(spec.model, spec.template, spec.seed, len(store.categories), spec.loss.filter)
        return InputPipeline(store, net, spec.model.table.input_scale, torch.device("cpu"))

    def pretrained(self, layers: Sequence[str], seed: int = 0) -> None:
        """A weight file `w.npz` for the lower layers of `compact`."""
        shapes = {"conv1": (16, 3, 5, 5), "conv2": (32, 16, 3, 3), "conv3": (32, 32, 3, 3)}
        rng = np.random.default_rng(seed)
        arrays: dict[str, Any] = {}
        for layer in layers:
            fan_in = np.prod(shapes[layer][1:])
            arrays[f"{layer}_w"] = rng.normal(0, np.sqrt(2 / fan_in), shapes[layer]).astype(np.float32)
            arrays[f"{layer}_b"] = rng.normal(0, 0.1, shapes[layer][0]).astype(np.float32)
        (self.root / "weights").mkdir(exist_ok=True)
        np.savez(self.root / "weights" / "w.npz", **arrays)


def timeless(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in metrics.items() if key not in CLOCKS} for metrics in history]


class ThreadRank(Runtime):
    """One of several workers that are threads of this process."""

    def __init__(self, rank: int, world_size: int, gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.rank, self.world_size, self.gather = rank, world_size, gather  # type: ignore[method-assign]


def as_threads(world_size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """Run `work` on every rank at once and return what each returned."""
    return on_ranks(world_size, lambda rank, gather: work(ThreadRank(rank, world_size, gather)))


def copy_of(inputs: InputPipeline) -> InputPipeline:
    """The same inputs with a network of their own."""
    return InputPipeline(inputs.store, copy.deepcopy(inputs.net), inputs.scale, inputs.device)


def measure(
    inputs: InputPipeline, spec: ExperimentSpec, runtime: Runtime, *metrics: str, batch_size: int = 5, **settings: Any
) -> Evaluation:
    """Evaluate a copy of the network on all objects. batch_size: of a worker. settings: of `eval`."""
    eval = spec.eval.model_copy(update={"measures": metrics, "top_images": 4, **settings})
    train = spec.train.model_copy(update={"batch_size": batch_size * runtime.world_size})
    spec = spec.model_copy(update={"seed": 5, "eval": eval, "train": train})
    return evaluate(copy_of(inputs), EvaluationPlan.of(inputs.store, "all"), spec, runtime, epoch=1)
