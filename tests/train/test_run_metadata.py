"""Title and description of a run, and its spec, read back from its record."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from fakes.training import tiny

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import run_for, run_id
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.tracker import RecordedRun
from ipcnn_ray.train.run_metadata import (
    ControlReference,
    RunRequest,
    lineage_tags,
    run_description,
    run_params,
    run_spec_of,
    run_title,
)
from ipcnn_ray.train.run_metrics import summary
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.utils.paths import Paths

SPACE = {
    "kind": "space",
    "algorithm": "tpe",
    "trials": 2,
    "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}],
    "space": {
        "template.shape": {"choice": ["gradient", "uniform"]},
        "template.beta": {"log_uniform": [1, 8]},
        "template.gamma": {"choice": [1, 2.5], "when": {"template.shape": "uniform"}},
        "train.batch_size": {"choice": [8, 10]},
    },
}


def recorded(experiment: ExperimentSpec, settings: dict, label: str | None = None) -> tuple[str, RecordedRun]:
    """As a run records itself."""
    run = run_for(experiment, settings, label)
    tags = {"ipcnn.digest": run.spec.digest()}
    return run.label, RecordedRun.from_tags(
        run_id(experiment, run), "succeeded", "", tags, run_params(run.spec), handle="h", parent="p"
    )


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"template": {"shape": "none"}}, "plain"),
        ({"template.shape": "gradient", "template.beta": 1.7320508075688772, "train.batch_size": 10}, None),
        ({"template.shape": "gradient", "template.beta": 2.0, "train.batch_size": 8}, None),
        ({"template.shape": "uniform", "template.beta": 2.5, "template.gamma": 1, "train.batch_size": 8}, None),
    ],
)
def test_named_and_drawn_runs(settings, label):
    experiment = tiny(search=SPACE)
    label, run = recorded(experiment, settings, label)
    found = run_spec_of(experiment, label, run)
    assert found.label == label
    assert found.spec.digest() == run.tags["ipcnn.digest"]
    assert found.spec == run_for(experiment, settings).spec


def test_a_run_that_another_version_recorded():
    experiment = tiny(search=SPACE)
    label, run = recorded(experiment, {"template.shape": "gradient", "template.beta": 2.0, "train.batch_size": 8})
    other = replace(run, tags={"ipcnn.digest": "00000000"})
    with pytest.raises(IpcnnError, match=f"the spec of run {run.run_id} cannot be read back from the record\nIt was"):
        run_spec_of(experiment, label, other)


def test_title_and_description(bench):
    request = bench.request(tiny())
    assert run_title(request) == f"{request.run.label}: L1 β2"
    metrics = {"epoch": 3.0, "val_error": 0.0625, "instability": 0.12346}
    first, second = run_description(request, metrics).split("\n\n")
    assert first == f"**L1 β2**: `compact` on cow (`drawn_animals`, drawn), seed 0. Run `{request.run_id}`."
    assert second.startswith("After epoch 3 of 3: validation error **6.2 %** of images, location")
    assert "**0.1235**" in second
    assert run_description(request, {}) == first


def test_the_description_says_what_filters_follow(bench):
    metrics = {"epoch": 3.0, "val_error": 0.0625, "instability": 0.12346, "following_share": 0.254}
    assert len(run_description(bench.request(tiny()), metrics).split("\n\n")) == 2  # of a version without baselines
    _, _, third = run_description(bench.request(tiny()), {**metrics, "instability_best_constant": 0.07}).split("\n\n")
    assert third.startswith("**25 %** of the filters follow a landmark. A filter that always fires at the best place")
    assert third.endswith("**0.0700**.")


def test_the_objective_of_any_metric():
    control = ControlReference(0.5, 0.25, 0.25, metric="landmark_tracking", better="higher", best=1.0)
    metrics = {"val_error": 0.5, "val_images": 300.0, "landmark_tracking": 0.75}
    assert control.objective(metrics) == pytest.approx(0.25 * 0.5 + 0.75 * 2)
    assert math.isnan(control.objective({"val_error": 0.5, "val_images": 300.0}))  # of a version without the metric


@pytest.mark.parametrize(("device", "gpus", "hours"), [("cuda", 0.25, 0.5), ("cuda", 2.0, 4.0), ("cpu", 0.25, None)])
def test_the_share_of_a_gpu_is_recorded(device, gpus, hours):
    """Two epochs of an hour each."""
    spec, runtime = tiny(), Runtime(device)
    runtime.gpus = gpus
    metrics = summary(spec, [{"epoch": 1.0, "seconds": 3600.0}, {"epoch": 2.0, "seconds": 3600.0}], runtime)
    assert metrics.get("gpu_hours") == hours
    request = RunRequest(RunSummary("run", "run"), spec, Paths.from_environment({}), "handle", "folder")
    of_gpu = gpus if device == "cuda" else 0
    tags = lineage_tags(request, {}, device=device, workers=1, bfloat16=False, cached="false", gpus=of_gpu)
    assert tags.get("ipcnn.gpus_per_worker") == (f"{gpus:g}" if of_gpu else None)
