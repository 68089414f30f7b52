"""A run as a Tune trainable. Two strategies behind one function: one worker trains in the trial's own process,
which costs about a second a trial; several workers are a Ray Train run nested in the trial.

Checkpoints are ours (train/checkpoint.py) in both: a retried, restored or resubmitted run finds its own. A run has
ended when its result is in its folder; only then is Tune told of its last epoch, so that early stopping cannot take
a run away from its last step.
"""

from __future__ import annotations

import math
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.experiment_dir import notes, stop_requested
from ipcnn_ray.on_ray.trial_lock import TrialLock
from ipcnn_ray.on_ray.tune_callback import FAILED, LOST_WORKERS, STOPPED
from ipcnn_ray.train.checkpoint import read_result
from ipcnn_ray.train.progress import ProgressFile, ProgressUpdate
from ipcnn_ray.train.retry_state import RunTakenOver, failure_cause
from ipcnn_ray.train.run_request import RunRequest
from ipcnn_ray.train.runtime import InProcess, ProcessGroup, StopRun
from ipcnn_ray.train.trainer import train_run


class _Reports:
    """Epochs as reports to Tune: not the last one, and with the newest goals where an epoch has none of its own."""

    def __init__(self, epochs: int, goals: Sequence[str]) -> None:
        self.epochs = epochs
        self.newest = unknown(goals)

    def of(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        self.newest |= {goal: metrics[goal] for goal in self.newest if goal in metrics}
        return None if metrics["epoch"] >= self.epochs else {**self.newest, **metrics}


def unknown(goals: Sequence[str]) -> dict[str, float]:
    """Goals that are not measured yet: Tune wants a number for each."""
    return dict.fromkeys(goals, math.nan)


class _Trial(InProcess):
    """One worker in a trial's process."""

    def __init__(self, device: torch.device, reports: _Reports, root: str, folder: str) -> None:
        super().__init__(device)
        self.reports = reports
        self.root = root
        self.stage = ProgressFile(folder)

    def report(self, metrics: Mapping[str, float]) -> None:
        if (report := self.reports.of(metrics)) is not None:
            tune.report(report)
        _stop_if_asked(self.root)

    def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
        self.stage.write(ProgressUpdate(what, done, total, unit))


class _TrainWorker(ProcessGroup):
    """A worker of Ray Train, whose controller passes rank 0's reports on to Tune."""

    def __init__(self, device: torch.device, reports: _Reports, root: str, folder: str) -> None:
        super().__init__(device)
        self.reports = reports
        self.root = root
        self.stage = ProgressFile(folder)

    def report(self, metrics: Mapping[str, float]) -> None:
        if (report := self.reports.of(metrics)) is not None:
            ray.train.report(report)
        if self.rank == 0:
            _stop_if_asked(self.root)

    def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
        if self.rank == 0:
            self.stage.write(ProgressUpdate(what, done, total, unit))


def _stop_if_asked(root: str) -> None:
    if stop_requested(root):
        raise StopRun("stopped on request; submitted again, it goes on", resumable=True)


class _WorkersLost(Exception):
    """Workers of a nested run vanished."""


def trainable(context: ExperimentContext, turns: TrialLock) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs, once per trial."""
    goals = context.objectives.goals

    def trial(config: dict[str, Any]) -> None:
        if stop_requested(context.root):
            _wait_for_the_end(goals)
        request = context.request(context.run(config))
        attempt = _nested if request.spec.compute.workers > 1 else _in_trial
        with turns.of(request.folder):
            try:
                if read_result(request.folder) is None:
                    ProgressFile(request.folder).clear()  # of an attempt that was killed
                    _persist(lambda: attempt(request, context), request.spec.compute.retries)
            except Exception as error:
                with suppress(TrackingError):
                    context.tracker.attach(request.handle).log_text(traceback.format_exc(), "traceback.txt")
                tune.report({FAILED: _told(error), **unknown(goals), "epoch": 0.0})
                raise
        ProgressFile(request.folder).clear()
        result = read_result(request.folder)
        if result is None and stop_requested(context.root):
            _wait_for_the_end(goals)
        assert result is not None, f"{request.folder} has no result: the workers see another IPCNN_STORAGE"
        tune.report({**unknown(goals), **result.metrics})

    return trial


def _wait_for_the_end(goals: Sequence[str]) -> NoReturn:
    """Say that this run is where it can be left; Tune ends it, in `report`, when all are."""
    while True:
        tune.report({STOPPED: True, **unknown(goals), "epoch": 0.0})
        time.sleep(0.5)


def resources(context: ExperimentContext) -> dict[str, float]:
    """What one trial asks Tune for. The driver of a nested run takes no core and stays with the head."""
    compute = context.spec.compute
    if compute.workers > 1:
        return {"CPU": 0, "node:__internal_head__": 0.001}
    return {"CPU": float(compute.cpus_per_worker), "GPU": context.gpus}


def _persist(attempt: Callable[[], object], retries: int) -> None:
    """Attempt again after an error as often as the spec says; lost workers do not use that up."""
    lost = errors = 0
    while True:
        try:
            attempt()
            return
        except RunTakenOver:
            raise
        except _WorkersLost:
            lost += 1
            if lost > LOST_WORKERS:
                raise
        except Exception:
            errors += 1
            if errors > retries:
                raise


def _told(error: Exception) -> str:
    """The cause of a failure in a sentence."""
    if isinstance(error, _WorkersLost):
        return f"its workers were lost {LOST_WORKERS + 1} times; the last time: {error}"
    return f"{type(error).__name__}: {error}"


def _in_trial(request: RunRequest, context: ExperimentContext) -> None:
    device = torch.device("cuda" if context.gpus else "cpu")
    reports = _Reports(request.spec.train.epochs, context.objectives.goals)
    train_run(request, _Trial(device, reports, context.root, request.folder), context.tracker)


def _nested(request: RunRequest, context: ExperimentContext) -> None:
    compute, tracker, goals, root = request.spec.compute, context.tracker, context.objectives.goals, context.root

    def worker() -> None:
        reports = _Reports(request.spec.train.epochs, goals)
        train_run(request, _TrainWorker(ray.train.torch.get_device(), reports, root, request.folder), tracker)

    # Ray Train would go on from its notes of an attempt before.
    home = notes(request.folder, request.paths)
    shutil.rmtree(home, ignore_errors=True)
    per_worker = {"CPU": float(compute.cpus_per_worker)} | ({"GPU": context.gpus} if context.gpus else {})
    to_tune: Any = TuneReportCallback()  # type: ignore[no-untyped-call]
    trainer = TorchTrainer(
        worker,
        scaling_config=ScalingConfig(
            num_workers=compute.workers, use_gpu=context.gpus > 0, resources_per_worker=per_worker
        ),
        run_config=RunConfig(name="train", storage_path=str(home), callbacks=[to_tune]),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise _cause(error.worker_failures) from error
    except ControllerError as error:
        raise _WorkersLost(str(error.controller_failure)) from error
    shutil.rmtree(home, ignore_errors=True)


def _cause(failures: Mapping[int, Exception]) -> Exception:
    """The error behind the failures of a group, by rank: a worker that vanished makes the others fail, too."""
    for failure in failures.values():
        gone = getattr(failure, "health_check_failure", failure)
        if isinstance(gone, RayActorError):
            return _WorkersLost(str(gone))
    errors = [failure for failure in failures.values() if failure_cause(failure) != "lost"]
    return errors[0] if errors else _WorkersLost(str(next(iter(failures.values()))))
