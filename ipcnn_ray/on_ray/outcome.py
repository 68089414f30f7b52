"""Outcome: the ranked runs of an experiment that has ended."""

from __future__ import annotations

from dataclasses import dataclass

from ipcnn_ray.report.ranking import Group, rank
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_metadata import RunRequest


@dataclass(frozen=True, kw_only=True)
class RunOutcome(RunSummary):
    """A run at the end of an experiment, with what is needed to load its model."""

    request: RunRequest
    fresh: bool
    """Whether this submission trained it, at least in part."""


@dataclass(frozen=True)
class Outcome:
    """The ranked runs of an experiment that has ended."""

    experiment_id: str
    parent: str
    """Tracker handle of the experiment's run."""
    runs: tuple[RunOutcome, ...]
    """In the order of `groups`; the repeats of a setting by seed."""
    groups: tuple[Group, ...]
    """The settings, ranked by `report.ranking.rank`."""
    objectives: Objectives

    @classmethod
    def of(cls, experiment_id: str, parent: str, runs: list[RunOutcome], objectives: Objectives) -> Outcome:
        """Rank runs that are given in any order."""
        groups = rank(runs, objectives)
        by_label = {run.label: run for run in runs}
        ranked = tuple(by_label[run.label] for group in groups for run in group.runs)
        return cls(experiment_id, parent, ranked, tuple(groups), objectives)

    @property
    def control(self) -> str | None:
        """Group of the control; None without a search."""
        return self.objectives.control

    @property
    def winners(self) -> tuple[RunOutcome, ...]:
        """The first succeeded repeat of the best setting, or of each setting on the Pareto front.

        Empty if every run failed or violates a constraint.
        """
        succeeded = [run for run in self.runs if run.state == "succeeded"]
        names = [group.name for group in self.groups if group.wins]
        return tuple(next(run for run in succeeded if run.group == name) for name in names)

    @property
    def best(self) -> RunOutcome | None:
        """The winner of a search with a single goal; None in a Pareto search."""
        return self.winners[0] if self.winners and len(self.objectives.goals) == 1 else None
