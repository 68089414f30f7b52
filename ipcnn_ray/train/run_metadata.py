"""The request of a run, its params, tags and description in the record, and its spec read back from them.

Imports no torch: the commands that only read tracked runs use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any, Literal

from ipcnn_ray.core.multi_objective import combined_objective
from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.extensions import INSTABILITY
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import Run, grid_runs, named_runs, run_for
from ipcnn_ray.spec.search import Choice, Distribution, SpaceSearch, active
from ipcnn_ray.tracking.lineage import host
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.tracker import SPEC_ARTIFACT, RecordedRun, Tracker
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.utils.paths import Paths

Cached = Literal["true", "false", "evaluation"]
WITHOUT_LANDMARKS = "The data have no landmarks, so nothing tells whether filters follow parts."


@dataclass(frozen=True)
class ControlReference:
    """Final metrics of the control run, which the combined objective of a search divides by."""

    value: float
    """Of `metric`."""
    error: float
    """Validation error, a share."""
    instability_weight: float
    """Weight of the metric in the combined objective, from 0 to 1."""
    metric: str = INSTABILITY
    """Metric of interpretability."""
    better: Literal["higher", "lower"] = "lower"
    best: float | None = 0.0
    """Best value of the metric; None where there is none."""

    def objective(self, metrics: Mapping[str, float]) -> float:
        """Return the combined objective of an evaluated epoch; NaN where the metric was not recorded."""
        return combined_objective(
            metrics.get(self.metric, nan),
            metrics["val_error"],
            control_value=self.value,
            control_error=self.error,
            weight=self.instability_weight,
            images=metrics["val_images"],
            better=self.better,
            best=self.best,
        )


@dataclass(frozen=True)
class RunRequest:
    """Everything that a worker needs to train one run. Small, and it pickles."""

    run: RunSummary
    """Identity of the run; its state and metrics are not used."""
    spec: ExperimentSpec
    """Resolved, without a search. Its digest is stored in the run's checkpoints."""
    paths: Paths
    handle: str
    """The tracker's id of the run."""
    folder: str
    """Directory of the run: a path that all workers share, or an s3:// URL."""
    references: ControlReference | None = None
    """If set, every evaluated epoch has the metric `combined`."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Additional tags of the tracked run, such as the commit."""

    @property
    def run_id(self) -> str:
        return self.run.run_id


def run_params(spec: ExperimentSpec) -> dict[str, str]:
    """Return every field of a run's spec that is set, by dotted path."""
    return dict(_flatten(spec.model_dump(mode="json", exclude={"search"})))


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value)
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def run_title(request: RunRequest) -> str:
    """Return the display name of a run: its label within the experiment, and its template."""
    run, template = request.run, request.spec.template.label()
    return run.label if run.group == template else f"{run.label}: {template}"


def run_description(request: RunRequest, metrics: Mapping[str, float]) -> str:
    """Describe a run and its result in Markdown. metrics: of its last epoch."""
    spec = request.spec
    drawn = ", drawn" if spec.data.drawn else ""
    data = f"{', '.join(spec.data.categories)} (`{spec.data.kind}`{drawn})"
    paragraphs = [
        f"**{spec.template.label()}**: `{spec.model.network}` on {data}, seed {spec.seed}. Run `{request.run_id}`."
    ]
    if "val_error" in metrics and ("instability" in metrics or not spec.data.landmarks):
        after = f"After epoch {metrics['epoch']:.0f} of {spec.train.epochs}" if metrics["epoch"] else "Not trained"
        error = f"{after}: validation error **{100 * metrics['val_error']:.1f} %** of images"
        if "instability" in metrics:
            paragraphs.append(
                f"{error}, location instability **{metrics['instability']:.4f}** of the image diagonal (both lower is "
                "better)."
            )
        else:
            paragraphs.append(f"{error}. {WITHOUT_LANDMARKS}")
    following, constant = metrics.get("following_share", nan), metrics.get("instability_best_constant", nan)
    if isfinite(following) and isfinite(constant):
        paragraphs.append(
            f"**{100 * following:.0f} %** of the filters follow a landmark. A filter that always fires at the best "
            f"place of the image has a location instability of **{constant:.4f}**."
        )
    return "\n\n".join(paragraphs)


def lineage_tags(
    request: RunRequest,
    input_tags: Mapping[str, str],
    *,
    device: str,
    workers: int,
    bfloat16: bool,
    cached: Cached,
    gpus: float = 0,
) -> dict[str, str]:
    """Return the tags that say what a run was trained from and on.

    input_tags: of the data and the pretrained weights. device: name of the GPU, or `cpu`. cached: whether the outputs
    of the frozen layers are read from the feature cache; `evaluation`: not in training, whose images are augmented.
    gpus: of each worker, below 1 where runs share one.
    """
    return {
        "ipcnn.title": run_title(request),
        **request.run.identity_tags,
        **request.tags,
        **host(),
        **input_tags,
        "ipcnn.digest": request.spec.digest(),
        "ipcnn.seed": str(request.spec.seed),
        "ipcnn.workers": str(workers),
        "ipcnn.device": device,
        "ipcnn.precision": "bfloat16 autocast" if bfloat16 else "float32",
        "ipcnn.speed": request.spec.compute.speed,
        "ipcnn.frozen_cache": cached,
        **({"ipcnn.gpus_per_worker": f"{gpus:g}"} if gpus else {}),
    }


def experiment_spec_of(tracker: Tracker, parent: RecordedRun) -> ExperimentSpec:
    """Return the spec that an experiment was submitted with. Raises TrackingError if its artifact cannot be read."""
    text = tracker.read(parent.handle, SPEC_ARTIFACT)
    if text is None:
        raise TrackingError(
            f"{parent.run_id} at {without_password(tracker.uri)} has no readable {SPEC_ARTIFACT} in its record\n"
            "Its artifacts were deleted or lie where this machine cannot see them: look at it in `ipcnn ui`."
        )
    return loads(text, f"{SPEC_ARTIFACT} of {parent.run_id}").spec


def run_spec_of(experiment: ExperimentSpec, label: str, run: RecordedRun) -> Run:
    """Return a run of an experiment with the spec that it was trained with; of a sampled run, the values of the search
    space are read from its params. Raises IpcnnError if the digest of that spec is not that of the trained one."""
    by_label = {named.label: named for named in (*named_runs(experiment), *grid_runs(experiment))}
    planned = by_label.get(label)
    if planned is None and isinstance(experiment.search, SpaceSearch):
        space = experiment.search.space
        sampled = {
            path: _sampled_value(distribution, run.params[path])
            for path, distribution in space.items()
            if path in run.params
        }
        planned = run_for(experiment, active(space, sampled))
    trained = run.tags.get("ipcnn.digest")
    if planned is None or (trained and planned.spec.digest() != trained):
        raise IpcnnError(
            f"the spec of run {run.run_id} cannot be read back from the record\n"
            "It was recorded by another version of ipcnn: use that one, or submit the experiment again with --fresh."
        )
    return planned


def recorded_folder(paths: Paths, parent: RecordedRun, label: str) -> str:
    """Return the directory of a run of a recorded experiment."""
    return f"{paths.storage.rstrip('/')}/{parent.run_id}/{label}"


def recorded_request(experiment: ExperimentSpec, paths: Paths, parent: RecordedRun, run: RecordedRun) -> RunRequest:
    """Return the request of a recorded run, from which its model is loaded. Raises IpcnnError as `run_spec_of`.

    experiment: of `experiment_spec_of`. run: one of its runs, or the experiment's own run if that is its only one.
    """
    label = run.label if run.parent else named_runs(experiment)[0].label
    spec = run_spec_of(experiment, label, run).spec
    return RunRequest(run, spec, paths, run.handle, recorded_folder(paths, parent, label))


def _sampled_value(distribution: Distribution, text: str) -> Any:
    """Return a value of a search space from the text of its param."""
    if not isinstance(distribution, Choice):
        return float(text)
    return next((value for value in distribution.choice if _has_text(value, text)), text)


def _has_text(value: Any, text: str) -> bool:
    """Whether a value is recorded as this text; a float field records 2 as 2.0."""
    if str(value) == text:
        return True
    try:
        return not isinstance(value, str | bool) and float(value) == float(text)
    except ValueError:
        return False
