"""Tune's callback: turns Tune's events into ours, and decides how a trial ends."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.stopper import NoopStopper

from ipcnn_ray.on_ray.events import FAILED, STOPPED, EpochDone, Listener, RunEnded, RunStarted, StageReached, Warned
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.trainables import MAX_LOST_WORKERS, TrialLock
from ipcnn_ray.spec.runs import Run
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.checkpoint import drop_training_state, read_result, write_result
from ipcnn_ray.train.run_dir import ProgressFile, ProgressUpdate, write_interval_s

READERS = 8
"""Threads that read progress files."""
TUNE_TIMES = {"time_this_iter_s", "time_total_s", "time_since_restore"}


def measured_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return our metrics in a result of Tune, without NaN and without the fields that Tune adds."""
    floats = {key: value for key, value in result.items() if isinstance(value, float) and key not in TUNE_TIMES}
    return {key: value for key, value in floats.items() if not math.isnan(value)}


def forget_statistics(trial: Any) -> None:
    """Delete what Tune keeps of all metrics of a trial for its own analysis: 280 KiB of the driver for each trial."""
    trial.metric_analysis.clear()
    trial.metric_n_steps.clear()
    trial.run_metadata.invalidate_cache()


class StopOnRequest(Stopper):
    """Ends Tune's loop after a stop request, when no run is within an epoch any more."""

    def __init__(self, callback: TuneCallback) -> None:
        self.callback = callback

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its stopper to disk. It is never read."""
        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.callback.stopping and not self.callback.training


class TuneCallback(Callback):
    """Reports events to the listener and records the ends of runs that only the driver knows: pruned, lost, failed."""

    def __init__(
        self, context: ExperimentContext, lock: TrialLock, listener: Listener, *, retry_lost_start: bool = False
    ) -> None:
        """retry_lost_start: leave a run whose worker was lost during start-up to the next pass; else it fails."""
        self.context = context
        self.retry_lost_start = retry_lost_start
        self.lock = lock
        self.listener = listener
        self.ended: dict[str, RunSummary] = {}
        """Runs that have ended, by label."""
        self.runs: dict[str, Run] = {}
        """Runs by trial id."""
        self.training: set[str] = set()
        """Ids of the trials that have a worker and have not ended."""
        self.stages: dict[str, tuple[str, ProgressFile, ProgressUpdate | None]] = {}
        """Label, progress file and last reported progress of each trial that has had a worker, by trial id."""
        self._next_read = 0.0
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="progress")
        self._reading: dict[str, Future[ProgressUpdate | None]] = {}
        """Progress files that are being read, by trial id."""
        self.stopping = False
        """Whether a stop was requested."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its callbacks to disk. They are never read, and a listener may hold a terminal."""
        return Callback, ()

    def _run(self, trial: Any) -> Run:
        if trial.trial_id not in self.runs:
            self.runs[trial.trial_id] = self.context.run(trial.config)
        return self.runs[trial.trial_id]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.runs:
            trial.max_failures = trial.num_failures + MAX_LOST_WORKERS
        self.training.add(trial.trial_id)
        run = self._run(trial)
        self.stages[trial.trial_id] = run.label, ProgressFile(self.context.folder(run)), None
        if not self.stopping:
            self.listener(RunStarted(run.label, run.spec.train.epochs))

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Read the progress files, in other threads: trials would wait for hundreds of requests to a bucket. Tune calls
        this several times a second."""
        for trial_id in [trial_id for trial_id, reading in self._reading.items() if reading.done()]:
            stage, (label, file, before) = self._reading.pop(trial_id).result(), self.stages[trial_id]
            if stage is not None and stage != before and trial_id in self.training:
                self.stages[trial_id] = label, file, stage
                self.listener(StageReached(label, stage))
        if self._reading or time.monotonic() < self._next_read:
            return
        self._next_read = time.monotonic() + write_interval_s(self.context.root)
        self._reading = {trial_id: self._readers.submit(self.stages[trial_id][1].read) for trial_id in self.training}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run = self._run(trial)
        if STOPPED in result:
            self.stopping = True
            self.training.discard(trial.trial_id)
        elif FAILED in result:
            trial.max_failures = trial.num_failures  # Tune must not retry the error that follows
            self._fail(run, result[FAILED])
        else:
            self.listener(EpochDone(run.label, measured_metrics(result)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.training.discard(trial.trial_id)
        self.lock.release(trial.trial_id)
        forget_statistics(trial)
        if STOPPED in (trial.last_result or {}):
            return
        run, last = self._run(trial), measured_metrics(trial.last_result or {})
        summary, folder = self.context.summary(run), self.context.folder(run)
        if (result := read_result(folder, summary)) is None:
            cause = f"early stopping at epoch {int(last.get('epoch', 0))} of {run.spec.train.epochs}"
            result = replace(summary, state="pruned", cause=cause, metrics=last)
            self.context.try_to_record(run, "pruned", cause, self.listener)
            write_result(folder, result)
            drop_training_state(folder)
        self._end(result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.training.discard(trial.trial_id)
        self.lock.release(trial.trial_id)
        forget_statistics(trial)
        run = self._run(trial)
        if run.label in self.ended:
            return
        if self.retry_lost_start and trial.should_recover():  # Tune fails a trial whose worker is lost during start-up
            self.listener(Warned(f"{run.label}: its worker was lost while it started; it is started again later"))
        else:
            self._fail(run, f"its worker was lost {trial.num_failures} times")

    def _fail(self, run: Run, cause: str) -> None:
        self.context.try_to_record(run, "failed", cause, self.listener)
        self._end(replace(self.context.summary(run), state="failed", cause=cause))

    def _end(self, run: RunSummary) -> None:
        self.ended[run.label] = run
        self.listener(RunEnded(run))
