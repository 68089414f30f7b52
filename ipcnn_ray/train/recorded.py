"""From the record of a run back to its spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.spec.digest import digest
from ipcnn_ray.spec.expand import Run, active, grid_runs, named_runs, run_for
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.load import loads
from ipcnn_ray.spec.search import Choice, Distribution, SpaceSearch
from ipcnn_ray.tracking.address import without_password
from ipcnn_ray.tracking.protocol import RecordedRun, Tracker

SPEC = "spec.yaml"
"""Artifact of an experiment's run: its resolved spec."""


def recorded_experiment(tracker: Tracker, parent: RecordedRun) -> ExperimentSpec:
    """The spec that an experiment was submitted with. Raises TrackingError where the record does not hold it."""
    text = tracker.read(parent.handle, SPEC)
    if text is None:
        raise TrackingError(
            f"{parent.run_id} at {without_password(tracker.uri)} has no readable {SPEC} in its record\n"
            "Its artifacts were deleted or lie where this machine cannot see them: look at it in `ipcnn ui`."
        )
    return loads(text, f"{SPEC} of {parent.run_id}").spec


def label_of(parent: RecordedRun, run: RecordedRun) -> str:
    """The run's name within its experiment."""
    return run.run_id.removeprefix(f"{parent.run_id}-")


def recorded_run(experiment: ExperimentSpec, label: str, run: RecordedRun) -> Run:
    """A run of an experiment with the spec that it was trained with.

    Of a run that a search drew, the values of the searched fields are read from its recorded params. Raises IpcnnError
    where the spec found so is not the one that was trained (another version of ipcnn has recorded it).
    """
    listed = {one.label: one for one in (*named_runs(experiment), *grid_runs(experiment))}
    found = listed.get(label)
    if found is None and isinstance(experiment.search, SpaceSearch):
        found = _drawn(experiment, experiment.search.space, run.params)
    trained = run.tags.get("ipcnn.digest")
    if found is None or (trained and digest(found.spec) != trained):
        raise IpcnnError(
            f"the spec of run {run.run_id} cannot be read back from the record\n"
            "It was recorded by another version of ipcnn: use that one, or submit the experiment again with --fresh."
        )
    return found


def _drawn(experiment: ExperimentSpec, space: Mapping[str, Distribution], recorded: Mapping[str, str]) -> Run:
    chosen = {path: _value(one, path, recorded[path]) for path, one in space.items() if path in recorded}
    return run_for(experiment, active(space, chosen))


def _value(distribution: Distribution, path: str, text: str) -> Any:
    """A drawn value from its recorded text; of a choice the one that is recorded so."""
    if not isinstance(distribution, Choice):
        return float(text)
    return next((value for value in distribution.choice if _same(value, text)), text)


def _same(value: Any, text: str) -> bool:
    if str(value) == text:
        return True
    try:
        return not isinstance(value, str | bool) and float(value) == float(
            text
        )  # 2 is recorded as 2.0 by a float field
    except ValueError:
        return False
