"""What the driver and the workers know of an experiment: its runs, their folders and their records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.on_ray.events import Listener, Warned
from ipcnn_ray.on_ray.experiment_dir import experiment_folder
from ipcnn_ray.on_ray.optuna_searcher import random_settings
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import Run, grid_runs, named_runs, run_for, run_id
from ipcnn_ray.spec.search import Objectives, SpaceSearch, active
from ipcnn_ray.tracking.run_summary import RunSummary, State
from ipcnn_ray.tracking.storage import join_path
from ipcnn_ray.tracking.tracker import RunRecord, Tracker
from ipcnn_ray.train.run_metadata import ControlReference, RunRequest
from ipcnn_ray.utils.paths import Paths

LABEL = "label"
"""Key of a Tune config that names a run; other configs are sampled values by dotted path."""


@dataclass(frozen=True)
class ExperimentContext:
    """A submitted experiment. It is pickled to every worker."""

    spec: ExperimentSpec
    paths: Paths
    tracker: Tracker
    parent: str
    """Tracker handle of the experiment's run."""
    gpus: float
    """GPUs of one worker."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Lineage tags of every run."""
    references: Mapping[int, ControlReference] = field(default_factory=dict)
    """Metrics of the trained control by seed; a single one applies to all seeds."""
    expanded: dict[str, dict[str, Run]] = field(default_factory=dict, compare=False, repr=False)
    """`named` and `planned`, once they were asked for. Copies of the context share it and workers receive it, because a
    run takes 4 ms: too much for thousands of runs in every process."""

    @property
    def root(self) -> str:
        """Path or s3:// URL of the experiment's folder."""
        return experiment_folder(self.spec, self.paths)

    @property
    def objectives(self) -> Objectives:
        return Objectives.of(self.spec.search, landmarks=bool(self.spec.data.landmarks))

    @property
    def named(self) -> dict[str, Run]:
        """Named runs and their repeats, by label; without a search the single run."""
        if "named" not in self.expanded:
            self.expanded["named"] = {run.label: run for run in named_runs(self.spec)}
        return self.expanded["named"]

    @property
    def planned(self) -> dict[str, Run]:
        """Runs of a grid or random search, by label. They do not depend on results."""
        if "planned" not in self.expanded:
            self.expanded["planned"] = self._planned()
        return self.expanded["planned"]

    def _planned(self) -> dict[str, Run]:
        search = self.spec.search
        if isinstance(search, SpaceSearch) and search.algorithm == "random":
            runs = (run_for(self.spec, settings) for settings in random_settings(search, self.spec.seed))
            return {run.label: run for run in runs}
        return {run.label: run for run in grid_runs(self.spec)}

    def run(self, config: Mapping[str, Any]) -> Run:
        """Return the run of a Tune config."""
        if LABEL in config:
            label = config[LABEL]
            return self.named[label] if label in self.named else self.planned[label]
        assert isinstance(self.spec.search, SpaceSearch)
        return run_for(self.spec, active(self.spec.search.space, config))

    def folder(self, run: Run) -> str:
        """Return the path or s3:// URL of the folder with a run's checkpoints and result."""
        return join_path(self.root, run.label)

    def summary(self, run: Run) -> RunSummary:
        """The run before it has started."""
        return RunSummary(
            run_id(self.spec, run),
            run.label,
            group=run.group,
            seed=run.spec.seed,
            template=run.spec.template.label(),
            settings=run.settings,
            origin=run.origin,
        )

    def record(self, run: Run) -> RunRecord:
        """Return the tracker's record of a run; opened if it does not exist."""
        return self.tracker.open_child(self.spec.name, run_id(self.spec, run), self.parent)

    def record_state(self, run: Run, state: State, cause: str = "") -> None:
        """Record the state of a run and, for one whose worker never started, its identity."""
        record = self.record(run)
        record.set_tags(self.summary(run).identity_tags)
        record.set_state(state, cause)

    def try_to_record(self, run: Run, state: State, cause: str, listener: Listener) -> None:
        """Record the state of a run that has ended. A tracker that cannot be reached does not end the experiment: the
        run's folder has the result."""
        try:
            self.record_state(run, state, cause)
        except TrackingError as error:
            listener(Warned(f"{run.label} has {state}, which could not be recorded: {error}"))

    def reference(self, run: Run) -> ControlReference | None:
        """Return the control's metrics for the seed of a run; None while the control is not trained."""
        if len(self.references) == 1:
            return next(iter(self.references.values()))
        return self.references.get(run.spec.seed)

    def request(self, run: Run) -> RunRequest:
        """Return what a worker needs to train a run."""
        return RunRequest(
            run=self.summary(run),
            spec=run.spec,
            paths=self.paths,
            handle=self.record(run).handle,
            folder=self.folder(run),
            references=self.reference(run),
            tags=self.tags,
        )
