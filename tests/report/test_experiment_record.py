"""Experiments read from a record of an earlier version."""

from __future__ import annotations

import pytest
from fakes.tracker import PARAMS, FakeTracker, uniform

from ipcnn_ray.report.experiment_record import read_experiments
from ipcnn_ray.tracking.tracker import RecordedRun

SPEC = {"search": {"kind": "space", "runs": [{"name": "plain"}, {"name": "r1234abcd"}], "space": {}}}
RUNS = {
    "plain": ("succeeded", ""),
    "r1234abcd": ("succeeded", ""),
    "r00000001": ("stopped", "early stopping at epoch 4 of 12"),
    "r00000002": ("stopped", "interrupted; submitted again, it goes on"),
}


@pytest.mark.parametrize(("spec", "sampled"), [(SPEC, ["r00000001", "r00000002"]), (None, [*RUNS][1:])])
def test_origin_and_state_of_runs_that_an_earlier_version_recorded(spec, sampled):
    tracker = FakeTracker()
    parent = tracker.parent("sweep", spec=spec)
    for label, (state, why) in RUNS.items():
        run_id, facts = f"{parent}-{label}", {"parent": parent, "metrics": {"epoch": 4.0, "combined": 1.0}}
        run = RecordedRun.from_tags(run_id, state, why, {"ipcnn.seed": "0"}, {**PARAMS, **uniform("l1")},
                                    handle=run_id, **facts)  # fmt: skip
        tracker.runs["sweep"].append(run)
    (experiment,) = read_experiments(tracker, ["sweep"], curves=False)
    assert [run.label for run in experiment.runs] == list(RUNS)
    assert [group.name for group in experiment.trials] == sampled
    assert [run.state for run in experiment.runs] == ["succeeded", "succeeded", "pruned", "stopped"]
    assert {run.template for run in experiment.runs} == {"uniform L1 β2 γ2"}
