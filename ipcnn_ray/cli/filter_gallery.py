"""The gallery of `ipcnn report`: filters of some runs with their strongest images, looked at anew by their networks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ipcnn_ray.cli import output
from ipcnn_ray.cli.pictures import evenly_spaced, run_activations
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.report.experiment_record import Experiment, ReportedRun
from ipcnn_ray.report.gallery import Photograph, RunGallery, ShownFilter, StrongImage
from ipcnn_ray.report.verdict import Verdicts
from ipcnn_ray.tracking.tracker import Tracker
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import counted

if TYPE_CHECKING:
    from ipcnn_ray.train.filter_activations import FilterActivations

FILTERS_ARTIFACT = "filters.json"
MOST_FILTERS = 64
"""Filters of a run in the gallery; of more, an even sample from those that track best to those that track least."""
IMAGES = 8
"""Strongest images of a filter."""


def galleries(tracker: Tracker, paths: Paths, experiment: Experiment, count: int) -> list[RunGallery]:
    """The filters of up to `count` runs: see `chosen_runs`.

    Their numbers are those that were recorded. A run whose model or data this machine cannot read has no pictures, and
    its note says why.
    """
    return [_gallery(tracker, paths, experiment, run) for run in chosen_runs(experiment, count)]


def chosen_runs(experiment: Experiment, count: int) -> list[ReportedRun]:
    """Up to `count` runs, one per setting: the control, the best, the best of each verdict, and then by rank."""
    groups = [group for group in experiment.ranking.groups if any(run.state == "succeeded" for run in group.runs)]
    outcomes = Verdicts.of(experiment.ranking).outcomes
    control = [group for group in groups if group.name == experiment.objectives.control]
    first_of_outcome = {outcomes.get(group.name, ""): group for group in reversed(groups)}
    of_outcome = [group for group in groups if group in first_of_outcome.values()]
    order = [*control, *groups[:1], *of_outcome, *groups]
    names = list(dict.fromkeys(group.name for group in order))[:count]
    return [next(run for run in experiment.by_group[name] if run.state == "succeeded") for name in names]


def _gallery(tracker: Tracker, paths: Paths, experiment: Experiment, run: ReportedRun) -> RunGallery:
    recorded = _recorded_filters(tracker, run)
    try:
        activations = run_activations(tracker, paths, experiment.parent, run)
    except IpcnnError as error:
        layer = next(reversed(recorded), "")
        rows = recorded.get(layer, {})
        filters = tuple(_sample([_shown(row) for row in rows.values()]))
        note = " ".join(str(error).split())
        return RunGallery(run.label, run.title, layer, filters, total=len(rows), note=note)
    layer, store = activations.layer, activations.store
    rows = recorded.get(layer) or {c: _measured(activations, c) for c in range(len(activations.threshold_C))}
    share_C = activations.fires_NC.double().mean(0).tolist()
    filters = tuple(_sample([_shown(row, share_C[c]) for c, row in rows.items()]))
    photographs: dict[int, Photograph] = {}
    output.print_progress(f"{run.label}: {counted(len(filters), 'filter')} for the gallery")
    pictured = tuple(
        ShownFilter(**{**vars(shown), "images": _images(activations, shown.number, photographs)}) for shown in filters
    )
    return RunGallery(run.label, run.title, layer, pictured, store.landmark_names, len(rows))


def _recorded_filters(tracker: Tracker, run: ReportedRun) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Layer -> filter -> what its run recorded of it; empty for runs of versions that did not."""
    text = tracker.read(run.handle, FILTERS_ARTIFACT)
    layers = json.loads(text)["layers"] if text else {}
    return {layer: {row["filter"]: row for row in rows} for layer, rows in layers.items()}


def _measured(activations: FilterActivations, c: int) -> dict[str, Any]:
    instability = float(activations.instability.per_filter_C[c])
    category = activations.store.categories[int(activations.instability.category_C[c])]
    number = None if math.isnan(instability) else instability
    return {"filter": c, "category": category, "landmark": None, "tracking": None, "instability": number}


def _shown(row: Mapping[str, Any], fires: float | None = None) -> ShownFilter:
    return ShownFilter(
        row["filter"], row["category"], row.get("landmark"), row.get("tracking"), row.get("instability"), fires
    )


def _sample(filters: list[ShownFilter]) -> list[ShownFilter]:
    def order(shown: ShownFilter) -> tuple[float, int]:
        return (math.inf if shown.tracking is None else -shown.tracking, shown.number)

    sample: list[ShownFilter] = evenly_spaced(sorted(filters, key=order), MOST_FILTERS)
    return sample


def _images(activations: FilterActivations, c: int, photographs: dict[int, Photograph]) -> tuple[StrongImage, ...]:
    """The strongest images of the category of filter c. `photographs`: those made so far, by image of the store."""
    own, store, size = activations.own_images(c), activations.store, activations.store.size
    activation_N = activations.activation_NC[own, c]
    images = []
    for position in own[activation_N.argsort(descending=True, stable=True)[:IMAGES]].tolist():
        number = int(activations.image_N[position])
        if number not in photographs:
            photographs[number] = Photograph.of(str(store.names[number]), activations.crops([position])[0])
        row, col = activations.peaks_NC2[position, c].tolist()
        landmarks, distances = [], []
        for y, x in store.landmarks_NK2[number].tolist():
            known = not (math.isnan(y) or math.isnan(x))
            landmarks.append(((y + 0.5) / size, (x + 0.5) / size) if known else None)
            distances.append(math.hypot(y - row, x - col) / (size * math.sqrt(2)) if known else None)
        peak = ((row + 0.5) / size, (col + 0.5) / size)
        activation = float(activations.activation_NC[position, c])
        images.append(StrongImage(photographs[number], activation, peak, tuple(landmarks), tuple(distances)))
    return tuple(images)
