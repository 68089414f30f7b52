"""What happens in a running experiment, told to whoever listens; and how a run of Tune's ends for us."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.stopper import NoopStopper

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.trial_lock import TrialLock
from ipcnn_ray.spec.runs import Run
from ipcnn_ray.tracking.run_summary import RunSummary, State
from ipcnn_ray.train.checkpoint import read_result, write_result
from ipcnn_ray.train.progress import ProgressFile, ProgressUpdate, write_interval_s

LOST_WORKERS = 8
"""Times that a run is started again after its worker vanished."""
FAILED = "failed"
"""Key of a last report to Tune: why the run has failed for good."""
STOPPED = "stopped"
"""Key of a report to Tune: the run has ended its epoch, because somebody asked for it, and waits for Tune to end."""


@dataclass(frozen=True)
class PhaseStarted:
    """Named runs, or those of the search, begin."""

    name: str
    total: int


@dataclass(frozen=True)
class RunStarted:
    """A run got its worker, for the first time or again."""

    label: str
    epochs: int
    """That it is trained for."""


@dataclass(frozen=True)
class StageReached:
    """Where a run is within an epoch, or on its way to its first."""

    label: str
    stage: ProgressUpdate


@dataclass(frozen=True)
class EpochDone:
    """An epoch of a run is recorded."""

    label: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunEnded:
    """A run has ended, in this submission or before it."""

    run: RunSummary


@dataclass(frozen=True)
class Warned:
    """Something went otherwise than asked, and the experiment goes on."""

    text: str


@dataclass(frozen=True)
class Logged:
    """A step of the submission before its first run or after its last one."""

    text: str


@dataclass(frozen=True)
class DataProgress:
    """Images that are decoded or drawn so far."""

    done: int
    total: int


Event = PhaseStarted | RunStarted | StageReached | EpochDone | RunEnded | Warned | Logged | DataProgress
Listener = Callable[[Event], None]


TUNES_OWN = {"time_this_iter_s", "time_total_s", "time_since_restore"}


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Our metrics in what Tune hands round, which adds times and identities of its own; those that are numbers."""
    floats = {key: value for key, value in result.items() if isinstance(value, float) and key not in TUNES_OWN}
    return {key: value for key, value in floats.items() if not math.isnan(value)}


class StopOnRequest(Stopper):
    """Ends Tune's work when somebody asked for it and no run is within an epoch any more."""

    def __init__(self, watcher: TuneCallback) -> None:
        self.watcher = watcher

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune writes it to disk, where nobody reads it."""
        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.watcher.stopping and not self.watcher.training


class TuneCallback(Callback):
    """Tune's events as ours. Settles what only the driver can: early stopping, lost workers, errors that last."""

    def __init__(
        self, context: ExperimentContext, lock: TrialLock, listener: Listener, *, patient: bool = False
    ) -> None:
        """patient: a run whose worker was lost while it started is left for later, not failed."""
        self.context = context
        self.patient = patient
        self.lock = lock
        self.listener = listener
        self.ended: dict[str, RunSummary] = {}
        """The runs that have ended, by label."""
        self.runs: dict[str, Run] = {}
        """By Tune's id of a trial."""
        self.training: set[str] = set()
        """Tune's ids of the trials that have a worker and have not ended."""
        self.stages: dict[str, tuple[str, ProgressFile, ProgressUpdate | None]] = {}
        """By Tune's id of a trial that has a worker: its run's label, its file, and the stage that was told last."""
        self._next_look = 0.0
        self.stopping = False
        """Somebody asked the runs to end after their epoch."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune writes its callbacks to disk with its own state, which nobody reads; a listener may hold a terminal."""
        return Callback, ()

    def _run(self, trial: Any) -> Run:
        if trial.trial_id not in self.runs:
            self.runs[trial.trial_id] = self.context.run(trial.config)
        return self.runs[trial.trial_id]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.runs:
            trial.max_failures = trial.num_failures + LOST_WORKERS
        self.training.add(trial.trial_id)
        run = self._run(trial)
        self.stages[trial.trial_id] = run.label, ProgressFile(self.context.folder(run)), None
        if not self.stopping:
            self.listener(RunStarted(run.label, run.spec.train.epochs))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune comes by several times a second."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + write_interval_s(self.context.root)
        for trial_id in self.training & set(self.stages):
            label, file, before = self.stages[trial_id]
            stage = file.read()
            if stage is not None and stage != before:
                self.stages[trial_id] = label, file, stage
                self.listener(StageReached(label, stage))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run = self._run(trial)
        if STOPPED in result:
            self.stopping = True
            self.training.discard(trial.trial_id)
        elif FAILED in result:
            trial.max_failures = trial.num_failures  # the error that follows is the last
            self._fail(run, result[FAILED])
        else:
            self.listener(EpochDone(run.label, numbers(result)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.training.discard(trial.trial_id)
        self.lock.release(trial.trial_id)
        if STOPPED in (trial.last_result or {}):
            return
        run, last = self._run(trial), numbers(trial.last_result or {})
        summary, folder = self.context.summary(run), self.context.folder(run)
        if (result := read_result(folder, summary)) is None:
            cause = f"early stopping at epoch {int(last.get('epoch', 0))} of {run.spec.train.epochs}"
            result = replace(summary, state="pruned", cause=cause, metrics=last)
            self._record(run, "pruned", cause)
            write_result(folder, result)
        self._end(result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.training.discard(trial.trial_id)
        self.lock.release(trial.trial_id)
        run = self._run(trial)
        if run.label in self.ended:
            return
        if self.patient and trial.should_recover():  # Tune does not, where a worker is lost before it has started
            self.listener(Warned(f"{run.label}: its worker was lost while it started; it is started again later"))
        else:
            self._fail(run, f"its worker was lost {trial.num_failures} times")

    def _fail(self, run: Run, cause: str) -> None:
        self._record(run, "failed", cause)
        self._end(replace(self.context.summary(run), state="failed", cause=cause))

    def _record(self, run: Run, state: State, cause: str) -> None:
        """Record a state. A tracker that cannot be reached does not end the search: the run folder has the result."""
        try:
            self.context.record_state(run, state, cause)
        except TrackingError as error:
            self.listener(Warned(f"{run.label} has {state}, which could not be recorded: {error}"))

    def _end(self, run: RunSummary) -> None:
        self.ended[run.label] = run
        self.listener(RunEnded(run))
