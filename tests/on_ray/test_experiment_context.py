"""The runs of an experiment are worked out once, and travel with the context to the workers."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from fakes.training import tiny

from ipcnn_ray.on_ray import experiment_context
from ipcnn_ray.on_ray.experiment_context import LABEL, ExperimentContext
from ipcnn_ray.utils.paths import Paths

RUNS = [{"name": "plain", "set": {"template": {"shape": "none"}}}]
SEARCHES = {
    "grid": {"kind": "grid", "grid": {"template.beta": [1.0, 2.0, 3.0]}, "runs": RUNS, "repeats": 2},
    "random": {
        "kind": "space",
        "algorithm": "random",
        "trials": 6,
        "space": {"template.beta": {"uniform": [0.5, 4]}},
        "runs": RUNS,
    },
}


@pytest.mark.parametrize("kind", SEARCHES)
def test_copies_and_workers_know_the_runs(monkeypatch, tmp_path, kind):
    spec = tiny(search=SEARCHES[kind])
    context = ExperimentContext(spec, Paths.from_environment({"IPCNN_HOME": str(tmp_path)}), None, "parent", gpus=0.0)  # type: ignore[arg-type]
    named, planned = context.named, context.planned
    assert len(planned) == 6 and not planned.keys() & named.keys()
    for name in ("named_runs", "grid_runs", "random_settings", "run_for"):
        monkeypatch.delattr(experiment_context, name)
    for other in (replace(context, gpus=1.0), pickle.loads(pickle.dumps(context))):
        assert other.named == named and other.planned == planned
        for label, run in (named | planned).items():
            assert other.run({LABEL: label}) == run
    assert replace(context, gpus=1.0) != context
