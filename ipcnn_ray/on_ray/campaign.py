"""The runs of one experiment: who they are, where they lie, how they are recorded. Pickles to every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipcnn_ray.spec.expand import Run, active, experiment_id, grid_runs, named_runs, run_for, run_id
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.places import Places
from ipcnn_ray.spec.search import SpaceSearch
from ipcnn_ray.tracking.protocol import RunRecord, Tracker
from ipcnn_ray.train.request import ControlReference, RunRequest

LABEL = "label"
"""Key of a Tune config that names a listed run; other configs are values of a space by path."""


@dataclass(frozen=True)
class Campaign:
    """One experiment under way."""

    spec: ExperimentSpec
    places: Places
    tracker: Tracker
    parent: str
    """The tracker's id of the experiment's run."""
    gpus: float
    """GPUs of one worker."""
    reference: ControlReference | None = None

    @property
    def root(self) -> str:
        """Where everything of the experiment lies."""
        return f"{self.places.storage}/{experiment_id(self.spec)}"

    def run(self, config: Mapping[str, Any]) -> Run:
        """The run that a Tune config stands for."""
        if LABEL in config:
            listed = (*named_runs(self.spec), *grid_runs(self.spec))
            return next(run for run in listed if run.label == config[LABEL])
        assert isinstance(self.spec.search, SpaceSearch)
        return run_for(self.spec, active(self.spec.search.space, config))

    def run_id(self, run: Run) -> str:
        return run_id(self.spec, run)

    def folder(self, run: Run) -> str:
        """Where the run keeps its checkpoints and its result."""
        return f"{self.root}/{run.label}"

    def record(self, run: Run) -> RunRecord:
        """The run in the record; opened if it is not there."""
        return self.tracker.open_child(self.spec.name, self.run_id(run), self.parent)

    def request(self, run: Run) -> RunRequest:
        """What a worker must know to train the run."""
        return RunRequest(
            run_id=self.run_id(run),
            spec=run.spec,
            places=self.places,
            handle=self.record(run).handle,
            folder=self.folder(run),
            references=self.reference,
        )
