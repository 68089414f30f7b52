"""What the record of a run says beside its metrics: parameters and tags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.models.weights import LoadReport
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import Run, active, digest, grid_runs, named_runs, run_for, template_label
from ipcnn_ray.spec.search import Choice, Distribution, SpaceSearch
from ipcnn_ray.tracking.lineage import host
from ipcnn_ray.tracking.tracker import RecordedRun, Tracker
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.train.run_request import RunRequest
from ipcnn_ray.train.runtime import Runtime


def params(spec: ExperimentSpec) -> dict[str, str]:
    """Every field of a run's spec by dotted path; fields that are not set are left out."""
    return dict(_flat(spec.model_dump(mode="json", exclude={"search"})))


def title(request: RunRequest) -> str:
    """What a list of runs calls it: its name within its experiment, and its template."""
    label, template = request.run_id.rsplit("-", 1)[-1], template_label(request.spec.template)
    return label if label.partition(".")[0] == template else f"{label}: {template}"


def description(request: RunRequest, metrics: Mapping[str, float]) -> str:
    """What a run is and what came of it, in Markdown. metrics: of its last epoch."""
    spec = request.spec
    drawn = ", drawn" if spec.data.kind == "drawn_animals" else ""
    what = f"`{spec.model.network}` on {', '.join(spec.data.categories)} (`{spec.data.kind}`{drawn}), seed {spec.seed}"
    lines = [f"**{template_label(spec.template)}**: {what}. Run `{request.run_id}`."]
    if "val_error" in metrics and "instability" in metrics:
        lines.append(
            f"After epoch {metrics['epoch']:.0f} of {spec.train.epochs}: validation error "
            f"**{100 * metrics['val_error']:.1f} %** of images, location instability **{metrics['instability']:.4f}** "
            "of the image diagonal (both lower is better)."
        )
    return "\n\n".join(lines)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif isinstance(inner, list):
            yield f"{prefix}{key}", ", ".join(str(item) for item in inner)
        elif inner is not None:
            yield f"{prefix}{key}", str(inner)


def lineage(
    request: RunRequest, store: CropStore, loaded: LoadReport | None, runtime: Runtime, *, bfloat16: bool, cached: bool
) -> dict[str, str]:
    """What a run was made from and on, for its tags. loaded: the pretrained weights, if there are any."""
    on_gpu = runtime.device.type == "cuda"
    return {
        "ipcnn.title": title(request),
        **request.tags,
        **host(),
        **store.tags,
        "data.digest": store.digest,
        "model.weights": ", ".join(loaded.loaded) if loaded else "none",
        "model.weights_report": loaded.text if loaded else "",
        "model.weights_digest": loaded.digest if loaded else "",
        "model.partial_weights": str(loaded is not None and loaded.partial).lower(),
        "ipcnn.digest": digest(request.spec),
        "ipcnn.seed": str(request.spec.seed),
        "ipcnn.workers": str(runtime.world_size),
        "ipcnn.device": torch.cuda.get_device_name(runtime.device) if on_gpu else "cpu",
        "ipcnn.precision": "bfloat16 autocast" if bfloat16 else "float32",
        "ipcnn.frozen_cache": str(cached).lower(),
    }


SPEC = "spec.yaml"
"""Artifact of an experiment's run: its resolved spec."""


def experiment_spec_of(tracker: Tracker, parent: RecordedRun) -> ExperimentSpec:
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


def run_spec_of(experiment: ExperimentSpec, label: str, run: RecordedRun) -> Run:
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
