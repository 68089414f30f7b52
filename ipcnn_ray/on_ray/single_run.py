"""The only run of an experiment, on several workers: Ray Train from the driver, without Tune.

A trial of Tune would be one more process that imports torch before the workers start, and an actor for its reports. The
controller of Ray Train is an actor on the driver's node. It writes the reports to a file there, which the driver reads.
On an embedded Ray that actor starts before its run is known, while the driver opens the record (train_controller.py).
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ipcnn_ray.on_ray.events import EpochDone, Listener, RunStarted, StageReached
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.experiment_dir import stop_requested
from ipcnn_ray.on_ray.train_controller import ReportsToFile
from ipcnn_ray.on_ray.trainables import cause_of, run_ray_train, train_with_retries
from ipcnn_ray.on_ray.tune_callback import measured_metrics
from ipcnn_ray.spec.runs import Run
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.checkpoint import read_result
from ipcnn_ray.train.run_dir import ProgressFile, local_path, write_interval_s
from ipcnn_ray.utils.locks import file_lock

POLL_S = 0.25
"""Seconds between two looks at the reports."""


def train_alone(
    context: ExperimentContext, run: Run, listener: Listener, controller: Callable[[], Any] = lambda: None
) -> RunSummary | None:
    """Train a run on the workers of a Ray Train run; returns how it ended, or None after a stop request.

    Args:
        listener: Called with the events of the run but its end; with all epochs but the last in another thread.
        controller: Returns the controller of an attempt; see `run_ray_train`.

    Raises:
        SystemExit: Ray Train has aborted the run on SIGINT.
    """
    request, local = context.request(run), local_path(context.folder(run))
    listener(RunStarted(run.label, run.spec.train.epochs))
    with (
        file_lock(local / "lock") if local is not None else nullcontext(),  # in a bucket, the lease has to do
        tempfile.TemporaryDirectory(prefix="ipcnn-") as folder,
    ):
        reports = Path(folder) / "reports.jsonl"
        reports.touch()
        with _reported(reports, run.label, request.folder, listener):
            try:
                to_file = ReportsToFile(reports)
                train_with_retries(request, context, lambda: run_ray_train(request, context, to_file, controller()))
            except Exception as error:
                failed = replace(context.summary(run), state="failed", cause=cause_of(error))
                context.try_to_record(run, failed.state, failed.cause, listener)
                return failed
    result = read_result(request.folder, request.run)
    if result is None and stop_requested(context.root):
        return None
    assert result is not None, f"{request.folder} has no result: the workers see another IPCNN_STORAGE"
    listener(EpochDone(run.label, result.metrics))
    return result


@contextmanager
def _reported(reports: Path, label: str, folder: str, listener: Listener) -> Iterator[None]:
    """Pass reported epochs, and the run's progress within them, to the listener for the length of the block."""
    ended = threading.Event()

    def read() -> None:
        progress, shown, next_look, rest = ProgressFile(folder), None, 0.0, ""
        with reports.open() as file:
            while True:
                over = ended.wait(POLL_S)
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    listener(EpochDone(label, measured_metrics(json.loads(line))))
                if over:
                    return
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + write_interval_s(folder)
                    if (stage := progress.read()) not in (None, shown):
                        shown = stage
                        listener(StageReached(label, stage))

    with ThreadPoolExecutor(1, "reports") as thread:
        reading = thread.submit(read)
        try:
            yield
        finally:
            ended.set()
        reading.result()
