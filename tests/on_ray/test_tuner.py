"""The driver's part of the runs of an experiment, without Ray."""

from __future__ import annotations

from fakes.training import MemoryRecord, tiny

from ipcnn_ray.on_ray import tuner
from ipcnn_ray.on_ray.experiment_context import LABEL, ExperimentContext
from ipcnn_ray.on_ray.tuner import ExperimentTuner
from ipcnn_ray.utils.paths import Paths


class ManyRuns:
    """A tracker that keeps the records of runs by their id."""

    def __init__(self) -> None:
        self.records: dict[str, MemoryRecord] = {}

    def open_child(self, experiment: str, run_id: str, parent: str) -> MemoryRecord:
        return self.records.setdefault(run_id, MemoryRecord(run_id))


class WithoutRay(ExperimentTuner):
    """Trains nothing; looks at which runs are recorded by then."""

    def _fit(self, context, space, index, **tune_config):
        (self.labels,) = space[LABEL].values()
        self.recorded = len(context.tracker.records)
        return {label: context.summary(context.planned[label]) for label in self.labels}


def test_a_large_search_trains_before_all_runs_are_recorded(monkeypatch, tmp_path):
    """Those that are not recorded ahead are opened by their workers, as in an adaptive search."""
    monkeypatch.setattr(tuner, "RECORDED_AHEAD", 3)
    search = {"kind": "space", "algorithm": "random", "trials": 5, "space": {"template.beta": {"uniform": [0.5, 4]}}}
    runs = [{"name": "plain", "set": {"template": {"shape": "none"}}}]
    paths, tracker = Paths.from_environment({"IPCNN_HOME": str(tmp_path)}), ManyRuns()
    context = ExperimentContext(tiny(search={**search, "runs": runs}), paths, tracker, "parent", gpus=0.0)  # type: ignore[arg-type]
    driver = WithoutRay(lambda event: None)
    ended = driver.run_fixed(context, context.planned, early_stopping=True)
    assert driver.labels == list(context.planned) == list(ended) and len(ended) == 5
    assert driver.recorded == 3
    first = next(iter(context.planned.values()))
    assert tracker.records[context.summary(first).run_id].tags == context.summary(first).identity_tags
