"""Trackers (the record of runs) and storages (their files). Each has one protocol; each vendor has one file."""

from __future__ import annotations

from ipcnn_ray.tracking.buffered_tracker import BufferedTracker
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.tracking.tracker import Tracker
from ipcnn_ray.tracking.tracking_uri import is_server
from ipcnn_ray.utils.paths import Paths

RETRY_S = 1800.0
"""Seconds for which a buffered tracker waits for a server where it needs an answer."""


def open_tracker(paths: Paths, buffer: str = "") -> Tracker:
    """Open the tracker of `paths.tracking_uri`. Creates nothing and imports no MLflow until it is used.

    Args:
        paths: The tracking URI, and the artifact root of new experiments.
        buffer: Folder or URL where records wait while the tracking server is unreachable, one for each experiment.
            Empty: an unreachable server is an error. Ignored for an embedded database.
    """
    tracker = open_mlflow(paths)
    if buffer and is_server(tracker.uri):
        return BufferedTracker(tracker, open_storage(buffer, RETRY_S), RETRY_S)
    return tracker


def open_mlflow(paths: Paths) -> MlflowTracker:
    """Open the same record as `open_tracker`, with what is MLflow's alone: saved views, and runs marked as deleted."""
    return MlflowTracker(paths.tracking_uri, paths.artifacts)
