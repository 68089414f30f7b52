"""Recorded experiments as `ipcnn report` and `compare` use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ipcnn_ray.errors import SpecError
from ipcnn_ray.report.chapters import KINDS
from ipcnn_ray.report.error_curves import curves_to_draw
from ipcnn_ray.report.experiment_record import Experiment, ReportedRun, find_runs
from ipcnn_ray.spec.loader import Source, read_yaml
from ipcnn_ray.spec.objectives import Objectives
from ipcnn_ray.spec.runs import SINGLE
from ipcnn_ray.tracking.run_summary import ORIGIN, translate_earlier_record
from ipcnn_ray.tracking.tracker import RecordedRun, Tracker
from ipcnn_ray.train.run_metadata import SPEC_ARTIFACT

ReadProgress = Callable[[int, int], None]


def experiments(
    tracker: Tracker,
    wanted: Sequence[str],
    *,
    curves: bool = True,
    progress: ReadProgress = lambda done, total: None,
) -> list[Experiment]:
    """Read recorded experiments by name or id, each once, or with the one run that has the id, in the order given.

    curves: also read the histories that a report draws. progress: called with (runs read, all runs) per experiment.
    Raises IpcnnError if nothing is recorded under a name.
    """
    found: dict[tuple[str, str], Experiment] = {}
    for name in wanted:
        for parent, runs in find_runs(tracker, name):
            key = (parent.handle, name if len(runs) == 1 and runs[0].run_id == name else "")
            found.setdefault(key, _experiment(tracker, parent, runs, curves, progress))
    return list(found.values())


def _experiment(
    tracker: Tracker, parent: RecordedRun, runs: Sequence[RecordedRun], curves: bool, progress: ReadProgress
) -> Experiment:
    text = tracker.read(parent.handle, SPEC_ARTIFACT) or ""
    spec = _spec(text)
    objectives, entries = Objectives.from_tags(parent.tags), [_reported(run, spec) for run in runs]
    found = Experiment(parent, tuple(entries), objectives, spec, text)
    if not curves:
        return found
    drawn = {run.run_id for group in curves_to_draw(found) for run in found.by_group[group.name]}
    for index, run in enumerate(entries):
        errors = tracker.history(run.handle, "val_error") if run.run_id in drawn else ()
        unknown = "seconds" in run.metrics and not any(kind in run.metrics for kind in KINDS)
        seconds = tracker.history(run.handle, "seconds") if unknown else ()
        entries[index] = replace(run, errors=tuple(errors), seconds=tuple(seconds))
        progress(index + 1, len(runs))
    return replace(found, runs=tuple(entries))


def _spec(text: str) -> Mapping[str, Any]:
    """The recorded spec, not validated: another version may have written it. Empty if it cannot be read."""
    if not text:
        return {}
    try:
        raw = read_yaml(text, Source(SPEC_ARTIFACT))
    except SpecError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _reported(run: RecordedRun, spec: Mapping[str, Any]) -> ReportedRun:
    """A run without its histories. The origin of a run that an earlier version recorded follows from the spec."""
    origin = run.origin
    if ORIGIN not in run.tags and spec:
        named = {one["name"] for one in (spec.get("search") or {}).get("runs") or [{"name": SINGLE}]}
        origin = translate_earlier_record(run.run_id, run.state, run.cause, named).origin
    return ReportedRun(**{**vars(run), "origin": origin})
