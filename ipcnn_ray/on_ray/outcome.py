"""How an experiment ended: its runs, ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ipcnn_ray.report.ranking import Group, Row, grouped
from ipcnn_ray.spec.objectives import Objectives
from ipcnn_ray.spec.runs import Run
from ipcnn_ray.tracking.tracker import State
from ipcnn_ray.train.run_request import RunRequest


@dataclass(frozen=True)
class RunOutcome:
    """How one run of an experiment ended."""

    run: Run
    request: RunRequest
    state: State
    why: str
    metrics: Mapping[str, float]
    """Of its last epoch, and of the whole run; none of a run that failed."""
    drawn: bool
    """Drawn by the search, not named in the spec."""
    fresh: bool
    """It was trained, at least in part, by this submission."""

    @property
    def row(self) -> Row:
        """What a report needs of it."""
        template = self.run.spec.template.label()
        return Row(self.run.label, template, self.state, self.why, self.metrics, self.run.spec.seed)


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended."""

    experiment_id: str
    parent: str
    """The tracker's id of the experiment's run."""
    runs: tuple[RunOutcome, ...]
    """Best first: by the goal; those beyond a bound behind, then early-stopped ones, failed ones last. The repeats of a
    setting stand together."""
    groups: tuple[Group, ...]
    """The settings in the same order."""
    objectives: Objectives
    """What they are ranked by."""

    @classmethod
    def of(cls, experiment_id: str, parent: str, runs: list[RunOutcome], objectives: Objectives) -> Outcome:
        """Of runs in any order."""
        groups = grouped([run.row for run in runs], objectives)
        by_label = {run.run.label: run for run in runs}
        ranked = tuple(by_label[row.label] for group in groups for row in group.rows)
        return cls(experiment_id, parent, ranked, tuple(groups), objectives)

    @property
    def control(self) -> str | None:
        """Name of the run that the others are compared with; of its repeats what they share."""
        return self.objectives.control

    @property
    def winners(self) -> tuple[RunOutcome, ...]:
        """One run for the best setting, or for each setting on the Pareto front: its first repeat that was trained to
        its end. None where every run failed, or is beyond a bound."""
        ended = [run for run in self.runs if run.state == "succeeded"]
        names = [group.name for group in self.groups if group.wins]
        return tuple(next(run for run in ended if run.run.group == name) for name in names)

    @property
    def best(self) -> RunOutcome | None:
        """The best setting's first repeat; None in a Pareto search, which has no best."""
        return self.winners[0] if self.winners and len(self.objectives.goals) == 1 else None
