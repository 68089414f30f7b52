"""Events of a running experiment, and the Tune callback that emits them and records how runs end."""

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
"""Maximum number of restarts of a run after a lost worker."""
FAILED = "failed"
"""Key of the last report to Tune of a run that failed for good; its value is the cause."""
STOPPED = "stopped"
"""Key of reports to Tune of a run that ended its epoch on request and waits to be terminated."""


@dataclass(frozen=True)
class PhaseStarted:
    """The named runs, or those of the search, start."""

    name: str
    total: int


@dataclass(frozen=True)
class RunStarted:
    """A run has started, or restarted."""

    label: str
    epochs: int
    """Epochs of the whole run."""


@dataclass(frozen=True)
class StageReached:
    """Progress of a run within an epoch, or before its first."""

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
    """A problem that does not end the experiment."""

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
    """The metrics in a Tune result without NaN and without the fields that Tune adds."""
    floats = {key: value for key, value in result.items() if isinstance(value, float) and key not in TUNES_OWN}
    return {key: value for key, value in floats.items() if not math.isnan(value)}


class StopOnRequest(Stopper):
    """Stops Tune once a stop was requested and every running trial has ended its epoch."""

    def __init__(self, watcher: TuneCallback) -> None:
        self.watcher = watcher

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a no-op: Tune saves its state, which is never restored."""
        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.watcher.stopping and not self.watcher.training


class TuneCallback(Callback):
    """Emits events for Tune's, and records pruned runs, lost workers and final failures, which only the driver sees."""

    def __init__(
        self, context: ExperimentContext, lock: TrialLock, listener: Listener, *, patient: bool = False
    ) -> None:
        """patient: do not fail a run whose worker was lost during start-up; a later pass trains it."""
        self.context = context
        self.patient = patient
        self.lock = lock
        self.listener = listener
        self.ended: dict[str, RunSummary] = {}
        """The runs that have ended, by label."""
        self.runs: dict[str, Run] = {}
        """Tune trial id -> run."""
        self.training: set[str] = set()
        """Ids of the trials that have a worker and have not ended."""
        self.stages: dict[str, tuple[str, ProgressFile, ProgressUpdate | None]] = {}
        """Tune trial id -> label of the run, its progress file, and the progress reported last."""
        self._next_look = 0.0
        self.stopping = False
        """Whether a trial reported that it stopped on request."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a no-op: Tune saves its state, which is never restored, and a listener may hold a terminal."""
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
        """Emit the progress within epochs. Tune calls this several times a second."""
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
        if self.patient and trial.should_recover():  # Tune itself does not restart a trial lost before it started
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
