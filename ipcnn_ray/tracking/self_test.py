"""Whether the record and the storage can be used from this process: they are written to, read back, and tidied up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.storage import preflight

EXPERIMENT = "ipcnn_doctor"
DESCRIPTION = "Runs that `ipcnn doctor` writes, reads back and deletes. It may be deleted for good."
NUMBER = 0.125


@dataclass(frozen=True)
class Probe:
    """How one attempt went."""

    seconds: float
    """How long it took, or how long until it failed."""
    error: str
    """Empty where it worked; else the fact, and below it what to do."""

    @property
    def fine(self) -> bool:
        return not self.error


def _timed(attempt: Callable[[], None]) -> Probe:
    began = time.monotonic()
    try:
        attempt()
    except TrackingError as error:
        return Probe(time.monotonic() - began, str(error))
    return Probe(time.monotonic() - began, "")


def probe_storage(url: str) -> Probe:
    """1 MiB written, read back, compared and deleted."""
    return _timed(lambda: _storage(url))


def _storage(url: str) -> None:
    preflight(url)


def probe_record(uri: str, artifacts: str | None, run_id: str) -> Probe:
    """A run with a number and a file, read back from the record and deleted. `run_id`: one that nobody else uses."""
    return _timed(lambda: _record(MlflowTracker(uri, artifacts), run_id))


def _record(tracker: MlflowTracker, run_id: str) -> None:
    tracker.prepare(EXPERIMENT, description=DESCRIPTION)
    run = tracker.open_parent(EXPERIMENT, run_id)
    try:
        run.log_metrics([{"epoch": 1.0, "number": NUMBER}])
        run.log_text("written by ipcnn doctor\n", "doctor.txt")
        run.set_state("succeeded")
        found = [one.metrics.get("number") for one in tracker.find(EXPERIMENT, run_id)]
        if found != [NUMBER]:
            raise TrackingError(
                f"MLflow: {NUMBER} was recorded and {found} came back\n"
                "The store loses what is written. Set MLFLOW_TRACKING_URI to another one."
            )
    finally:
        tracker.delete(run.handle)
