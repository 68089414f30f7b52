"""Self-tests of the storage and the tracker from this process, for `ipcnn doctor`: write, read back, delete."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.storage import preflight

EXPERIMENT = "ipcnn_doctor"
DESCRIPTION = "Runs that `ipcnn doctor` writes, reads back and deletes. It may be deleted for good."
VALUE = 0.125


@dataclass(frozen=True)
class ProbeResult:
    """Result of a self-test."""

    seconds: float
    """Time that it took, or after which it failed."""
    error: str
    """Empty if it passed; else the error and, on the next line, advice."""


def probe_storage(url: str) -> ProbeResult:
    """Write, read, compare and delete 1 MiB."""
    return _timed(lambda: preflight(url))


def probe_record(uri: str, artifacts: str | None, run_id: str) -> ProbeResult:
    """Write, read, compare and delete a run with a metric and a file. `run_id` must be unique."""
    return _timed(lambda: _write_and_read(MlflowTracker(uri, artifacts), run_id))


def _timed(test: Callable[[], object]) -> ProbeResult:
    start = time.monotonic()
    try:
        test()
    except TrackingError as error:
        return ProbeResult(time.monotonic() - start, str(error))
    return ProbeResult(time.monotonic() - start, "")


def _write_and_read(tracker: MlflowTracker, run_id: str) -> None:
    tracker.prepare(EXPERIMENT, DESCRIPTION)
    run = tracker.open_parent(EXPERIMENT, run_id)
    try:
        run.log_metrics([{"epoch": 1.0, "number": VALUE}])
        run.log_text("written by ipcnn doctor\n", "doctor.txt")
        run.set_state("succeeded")
        values = [recorded.metrics.get("number") for recorded in tracker.find(EXPERIMENT, run_id)]
        if values != [VALUE]:
            raise TrackingError(
                f"MLflow: {VALUE} was recorded and {values} came back\n"
                "The store loses what is written. Set MLFLOW_TRACKING_URI to another one."
            )
    finally:
        tracker.delete(run.handle)
