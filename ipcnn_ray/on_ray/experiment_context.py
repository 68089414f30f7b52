"""The runs of one experiment: who they are, where they lie, how they are recorded. Pickles to every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ipcnn_ray.on_ray.experiment_dir import experiment_folder
from ipcnn_ray.on_ray.search_space import random_settings
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.objectives import Objectives
from ipcnn_ray.spec.runs import Run, grid_runs, named_runs, run_for, run_id
from ipcnn_ray.spec.search import SpaceSearch, active
from ipcnn_ray.tracking.storage import below
from ipcnn_ray.tracking.tracker import RunRecord, Tracker
from ipcnn_ray.train.run_request import ControlReference, RunRequest
from ipcnn_ray.utils.paths import Paths

LABEL = "label"
"""Key of a Tune config that names a listed run; other configs are values of a space by path."""


@dataclass(frozen=True)
class ExperimentContext:
    """One experiment under way."""

    spec: ExperimentSpec
    paths: Paths
    tracker: Tracker
    parent: str
    """The tracker's id of the experiment's run."""
    gpus: float
    """GPUs of one worker."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Lineage that every run of the experiment shares."""
    references: Mapping[int, ControlReference] = field(default_factory=dict)
    """What the runs of each seed are measured against, once the control is trained with it; of a search that has no
    repeats the one control, whatever its seed."""

    @property
    def root(self) -> str:
        """Where everything lies that belongs to the experiment: a path or an s3:// URL."""
        return experiment_folder(self.spec, self.paths)

    @property
    def objectives(self) -> Objectives:
        """What the runs are ranked by."""
        return Objectives.of(self.spec.search)

    @cached_property
    def named(self) -> dict[str, Run]:
        """The named runs and their repeats by label; without a search the one run."""
        return {run.label: run for run in named_runs(self.spec)}

    @cached_property
    def planned(self) -> dict[str, Run]:
        """The runs of the search that do not depend on how others end, by label: a grid, or random draws."""
        search = self.spec.search
        if isinstance(search, SpaceSearch) and search.algorithm == "random":
            drawn = (run_for(self.spec, settings) for settings in random_settings(search, self.spec.seed))
            return {run.label: run for run in drawn}
        return {run.label: run for run in grid_runs(self.spec)}

    def run(self, config: Mapping[str, Any]) -> Run:
        """The run that a Tune config stands for."""
        if LABEL in config:
            return (self.named | self.planned)[config[LABEL]]
        assert isinstance(self.spec.search, SpaceSearch)
        return run_for(self.spec, active(self.spec.search.space, config))

    def folder(self, run: Run) -> str:
        """Where the run keeps its checkpoints and its result."""
        return below(self.root, run.label)

    def record(self, run: Run) -> RunRecord:
        """The run in the record; opened if it is not there."""
        return self.tracker.open_child(self.spec.name, run_id(self.spec, run), self.parent)

    def reference(self, run: Run) -> ControlReference | None:
        """The control's numbers that the run is measured against: with repeats those of the same seed."""
        if len(self.references) == 1:
            return next(iter(self.references.values()))
        return self.references.get(run.spec.seed)

    def request(self, run: Run) -> RunRequest:
        """What a worker must know to train the run."""
        return RunRequest(
            run_id=run_id(self.spec, run),
            spec=run.spec,
            paths=self.paths,
            handle=self.record(run).handle,
            folder=self.folder(run),
            references=self.reference(run),
            tags=self.tags,
        )
