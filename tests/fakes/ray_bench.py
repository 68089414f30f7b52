"""Tiny experiments, a shared home to submit them in, and functions that kill their processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from fakes import training
from fakes.training import CLOCKS
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.on_ray.events import EpochDone, Event, RunEnded, RunStarted
from ipcnn_ray.on_ray.submission import Outcome, run_experiment
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import experiment_id
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.tracker import RecordedRun
from ipcnn_ray.train.run_dir import WEIGHTS_FILE
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths


def tiny(name: str, **sections: Mapping[str, Any]) -> ExperimentSpec:
    """`fakes.training.tiny` with a constant, lower learning rate."""
    train = {"learning_rate": 0.005, "final_learning_rate": None, **sections.pop("train", {})}
    return training.tiny(name, train=train, **sections)


@dataclass
class Bench:
    """The home that the tests submit in."""

    paths: Paths

    @property
    def tracker(self) -> MlflowTracker:
        return MlflowTracker(self.paths.tracking_uri, self.paths.artifacts)

    def submit(self, spec: ExperimentSpec, listener: EventLog | None = None, **how: Any) -> Outcome:
        prepare(spec.data, spec.model.table.image_size, self.paths)
        self.tracker.prepare(spec.name)
        return run_experiment(spec, self.paths, self.tracker, listener=listener or EventLog(), **how)

    def folder(self, spec: ExperimentSpec, label: str = "run") -> Path:
        return Path(self.paths.storage) / experiment_id(spec) / label

    def recorded(self, spec: ExperimentSpec) -> dict[str, RecordedRun]:
        """Recorded runs of the experiment by label; the experiment's own run is ''."""
        found = self.tracker.find(spec.name)
        return {run.run_id.removeprefix(experiment_id(spec)).removeprefix("-"): run for run in found}

    def train_in_process(self, spec: ExperimentSpec) -> tuple[RunSummary, Path]:
        """Train the same run in this process without Ray; return its result and its folder."""
        self.tracker.prepare("in_process")
        record = self.tracker.open_parent("in_process", experiment_id(spec))
        folder = self.paths.home / "in_process" / spec.name
        request = RunRequest(RunSummary(experiment_id(spec), "run"), spec, self.paths, record.handle, str(folder))
        return train_run(request, Runtime(), self.tracker), folder


@dataclass
class EventLog:
    """Listener that stores all events, and calls `action` once after an epoch."""

    epoch: int = 0
    action: Any = None
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, EpochDone) and self.action and event.metrics["epoch"] == self.epoch:
            action, self.action = self.action, None
            action()

    def started(self) -> set[str]:
        return {event.label for event in self.events if isinstance(event, RunStarted)}

    def ended(self) -> list[str]:
        return [event.run.label for event in self.events if isinstance(event, RunEnded)]

    def epochs(self, label: str = "run") -> list[int]:
        return [int(e.metrics["epoch"]) for e in self.events if isinstance(e, EpochDone) and e.label == label]


def equal_metrics(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return {k: v for k, v in a.items() if k not in CLOCKS} == {k: v for k, v in b.items() if k not in CLOCKS}


def equal_weights(first: Path, second: Path) -> bool:
    a, b = load_file(first / WEIGHTS_FILE), load_file(second / WEIGHTS_FILE)
    return a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)


def kill_trainer_of(folder: Path) -> None:
    """SIGKILL for the process that trains in a folder: the one that holds its lock."""
    (pid,) = [pid for pid in _pids() if str(folder / "lock") in _open_files(pid)]
    os.kill(pid, signal.SIGKILL)


def kill_second_worker() -> None:
    """SIGKILL for the younger of our two Ray Train workers."""
    ours = [pid for pid in _pids() if "RayTrainWorker" in _command(pid) and os.getpid() in _ancestors(pid)]
    assert len(ours) == 2, ours
    os.kill(max(ours), signal.SIGKILL)


def kill_controller() -> None:
    """SIGKILL for the controller of our Ray Train run."""
    (ours,) = [pid for pid in _pids() if "ray::Controller" in _command(pid) and os.getpid() in _ancestors(pid)]
    os.kill(ours, signal.SIGKILL)


def wait_for_epoch(folder: Path, epoch: int, seconds: float = 200) -> None:
    """Wait for a checkpoint of this epoch, or of a later one."""
    end, first = time.monotonic() + seconds, f"epoch-{epoch:04}"
    while not any(path.name >= first for path in (folder / "checkpoints").glob("epoch-*")):
        assert time.monotonic() < end, f"{folder} has no {first} after {seconds} s"
        time.sleep(0.05)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found
