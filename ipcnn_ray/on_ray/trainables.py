"""Trainables of Tune: one worker trains in the trial's process, several workers in a nested Ray Train run.

Starting a nested run costs several seconds, a run in the trial's process about one. A run of several workers that is
the only one is trained without Tune (single_run.py). Both write the same checkpoints
(train/checkpoint.py), so a retried, restored or resubmitted run resumes from its own folder. Tune receives the last
epoch only after the result is written, so that early stopping cannot interrupt the last epoch.
"""

from __future__ import annotations

import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, RunConfig, ScalingConfig, WorkerGroupError
from ray.tune.integration.ray_train import TuneReportCallback

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.on_ray.events import FAILED, STOPPED
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.experiment_dir import ray_storage_dir, stop_requested
from ipcnn_ray.on_ray.trainers import DriverTrainer, TrialTrainer
from ipcnn_ray.train.checkpoint import read_result
from ipcnn_ray.train.run_dir import ProgressFile, ProgressUpdate, RunTakenOver, local_path
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import ProcessGroup, Runtime, StopRun, failure_cause, format_error
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.locks import file_lock
from ipcnn_ray.utils.text import without_passwords

MAX_LOST_WORKERS = 8
"""Maximum number of restarts of a run whose worker was lost."""
LOCK_POLL_S = 1.0


@ray.remote(num_cpus=0)
class _LockActor:
    """Maps each run folder to the trial that holds its lock. Lives as long as the driver."""

    def __init__(self) -> None:
        self.holders: dict[str, str] = {}

    def acquire(self, folder: str, trial_id: str) -> bool:
        """Return whether this trial holds the lock. A restarted trial still holds its own."""
        return self.holders.setdefault(folder, trial_id) == trial_id

    def release(self, trial_id: str) -> None:
        self.holders = {folder: holder for folder, holder in self.holders.items() if holder != trial_id}


class TrialLock:
    """Locks of an experiment's run folders: file locks in a file system, an actor's table for S3. Can be pickled."""

    def __init__(self, root: str) -> None:
        """root: Folder of the experiment."""
        self._actor: Any = None if local_path(root) is not None else _LockActor.remote()  # type: ignore[attr-defined]

    @contextmanager
    def acquire(self, folder: str) -> Iterator[None]:
        """Wait for the lock of a run folder and hold it. For the process of a trial."""
        if self._actor is None:
            with file_lock(Path(folder) / "lock"):
                yield
            return
        trial_id = tune.get_context().get_trial_id()
        while not ray.get(self._actor.acquire.remote(folder, trial_id)):
            time.sleep(LOCK_POLL_S)
        try:
            yield
        finally:
            self.release(trial_id)

    def release(self, trial_id: str) -> None:
        """Release what a trial holds, however its process ended. For the driver."""
        if self._actor is not None:
            self._actor.release.remote(trial_id)


def unmeasured(goals: Sequence[str]) -> dict[str, float]:
    """Return NaN for each objective: Tune requires every objective in each report."""
    return dict.fromkeys(goals, math.nan)


class _TuneReports:
    """Mixin of a runtime: reports epochs to Tune and progress to a file, and stops the run on request.

    An objective that an epoch did not measure is reported with its last value. The last epoch is not reported.
    """

    rank: int
    world_size: int

    def __init__(
        self,
        device: torch.device,
        send: Callable[[dict[str, float]], None],
        request: RunRequest,
        context: ExperimentContext,
    ) -> None:
        super().__init__(device)  # type: ignore[call-arg]
        self.gpus = context.gpus
        self.send = send
        self.epochs = request.spec.train.epochs
        self.latest = unmeasured(context.objectives.goals)
        self.progress = ProgressFile(request.folder)
        self.root = context.root

    def report(self, metrics: Mapping[str, float]) -> None:
        self.latest |= {goal: metrics[goal] for goal in self.latest if goal in metrics}
        if metrics["epoch"] < self.epochs:
            self.send({**self.latest, **metrics})
        if self.rank == 0 and stop_requested(self.root):
            raise StopRun("stopped on request; submitted again, it goes on", resumable=True)

    def spare_cores(self) -> int:
        """The share of this worker in the cores of an embedded Ray that no run has. Those of a cluster may be needed by
        other experiments at any time."""
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        if sum(node["Alive"] for node in nodes) > 1:
            return 0
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return int(free.get("CPU", 0)) // self.world_size

    def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
        if self.rank == 0:
            self.progress.write(ProgressUpdate(what, done, total, unit))


class _TrialRuntime(_TuneReports, Runtime):
    """Runtime of the single worker of a run, in the process of its trial."""


class _RayTrainRuntime(_TuneReports, ProcessGroup):
    """Runtime of a Ray Train worker. The controller passes the reports of rank 0 on to Tune."""


class WorkersLost(Exception):
    """Workers of a nested run died."""


def make_trainable(context: ExperimentContext, lock: TrialLock) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune calls once per trial."""
    goals = context.objectives.goals

    def trial(config: dict[str, Any]) -> None:
        if stop_requested(context.root):
            _report_stopped(goals)
        request = context.request(context.run(config))
        train = _run_nested if request.spec.compute.workers > 1 else _run_in_trial
        with lock.acquire(request.folder):
            try:
                train_with_retries(request, context, lambda: train(request, context))
            except Exception as error:
                tune.report({FAILED: cause_of(error), **unmeasured(goals), "epoch": 0.0})
                raise
        result = read_result(request.folder, request.run)
        if result is None and stop_requested(context.root):
            _report_stopped(goals)
        assert result is not None, f"{request.folder} has no result: the workers see another IPCNN_STORAGE"
        tune.report({**unmeasured(goals), **result.metrics})

    return trial


def _report_stopped(goals: Sequence[str]) -> NoReturn:
    """Report STOPPED until Tune terminates this trial, inside `report`, when all trials have stopped."""
    while True:
        tune.report({STOPPED: True, **unmeasured(goals), "epoch": 0.0})
        time.sleep(0.5)


def trial_resources(context: ExperimentContext) -> dict[str, float]:
    """Return what one trial requests from Tune. The driver of a nested run takes no core and stays on the head node."""
    compute = context.spec.compute
    if compute.workers > 1:
        return {"CPU": 0, "node:__internal_head__": 0.001}
    return {"CPU": float(compute.cpus_per_worker), "GPU": context.gpus}


def train_with_retries(request: RunRequest, context: ExperimentContext, attempt: Callable[[], object]) -> None:
    """Train a run to its end, unless it has a result. An error that retries do not mend is recorded with its traceback,
    and raised."""
    try:
        if read_result(request.folder, request.run) is None:
            ProgressFile(request.folder).clear()  # of an attempt that was killed
            _with_retries(attempt, request.spec.compute.retries)
    except Exception:
        with suppress(TrackingError):
            context.tracker.attach(request.handle).log_text(without_passwords(traceback.format_exc()), "traceback.txt")
        raise
    ProgressFile(request.folder).clear()


def cause_of(error: Exception) -> str:
    """Return the cause of a failed run in one sentence."""
    return str(error) if isinstance(error, WorkersLost) else format_error(error)


def _with_retries(attempt: Callable[[], object], retries: int) -> None:
    """Call `attempt` until it succeeds: `retries` times after an error, MAX_LOST_WORKERS times after lost workers."""
    lost = errors = 0
    while True:
        try:
            attempt()
            return
        except RunTakenOver:
            raise
        except WorkersLost as error:
            lost += 1
            if lost > MAX_LOST_WORKERS:
                raise WorkersLost(f"its workers were lost {lost} times; the last time: {error}") from error
        except Exception:
            errors += 1
            if errors > retries:
                raise


def _run_in_trial(request: RunRequest, context: ExperimentContext) -> None:
    device = torch.device("cuda" if context.gpus else "cpu")
    try:
        train_run(request, _TrialRuntime(device, tune.report, request, context), context.tracker)
    except torch.OutOfMemoryError as error:
        if not 0 < context.gpus < 1:
            raise
        advice = (
            f"Runs with {context.gpus:g} of a GPU each share its memory; --set compute.gpus_per_worker=1: one on each."
        )
        raise torch.OutOfMemoryError(f"{error} {advice}") from error


def _run_nested(request: RunRequest, context: ExperimentContext) -> None:
    run_ray_train(request, context, TuneReportCallback())  # type: ignore[no-untyped-call]


def run_ray_train(request: RunRequest, context: ExperimentContext, reports: Any, controller: Any = None) -> None:
    """Train a run on the workers of a Ray Train run, whose controller is an actor on this node.

    Args:
        reports: A UserCallback, which the controller calls with the metrics of each epoch but the last.
        controller: A controller without a run (train_controller.py), if this is the driver of an embedded Ray. By
            default Ray Train starts one, and a process that frees the cores of the workers if the controller dies.

    Raises:
        Exception: The error of a worker, or that workers were lost.
    """

    def worker() -> None:
        runtime = _RayTrainRuntime(ray.train.torch.get_device(), ray.train.report, request, context)
        train_run(request, runtime, context.tracker)

    compute, storage = request.spec.compute, ray_storage_dir(request.folder, request.paths)
    shutil.rmtree(storage, ignore_errors=True)  # Ray Train would resume the state of an earlier attempt
    per_worker = {"CPU": float(compute.cpus_per_worker)} | ({"GPU": context.gpus} if context.gpus else {})
    trainer = (TrialTrainer if controller is None else DriverTrainer)(
        worker,
        scaling_config=ScalingConfig(
            num_workers=compute.workers, use_gpu=context.gpus > 0, resources_per_worker=per_worker
        ),
        run_config=RunConfig(name="train", storage_path=str(storage), callbacks=[reports]),
    )
    if isinstance(trainer, DriverTrainer):
        trainer.controller = controller
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise _cause(error.worker_failures) from error
    except ControllerError as error:
        raise WorkersLost(str(error.controller_failure)) from error
    except RayActorError as error:  # the controller, with which its workers end
        raise WorkersLost(str(error)) from error
    shutil.rmtree(storage, ignore_errors=True)


def _cause(failures: Mapping[int, Exception]) -> Exception:
    """Return the error behind the failures of a worker group, by rank.

    A worker that died makes the collectives of the others fail, so its loss is the cause if there is one.
    """
    for failure in failures.values():
        lost = getattr(failure, "health_check_failure", failure)
        if isinstance(lost, RayActorError):
            return WorkersLost(str(lost))
    errors = [failure for failure in failures.values() if failure_cause(failure) != "lost"]
    return errors[0] if errors else WorkersLost(str(next(iter(failures.values()))))
