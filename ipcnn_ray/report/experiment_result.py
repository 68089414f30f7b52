"""The ranked runs of an experiment, with their comparisons, verdicts, JSON and data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from ipcnn_ray.report.ranking import Group, rank
from ipcnn_ray.report.ranking_table import Ranking, as_json
from ipcnn_ray.report.verdict import Verdicts
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.tracker import RecordedRun

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ExperimentResult:
    """The runs of an experiment that has ended, best first."""

    experiment_id: str
    """Name and digest of the spec."""
    runs: tuple[RunSummary, ...]
    """Each with its label, template, seed, state, cause and last `metrics`; in the order of `groups`, the repeats of a
    setting by seed."""
    groups: tuple[Group, ...]
    """The settings, ranked by `report.ranking.rank`."""
    objectives: Objectives
    """Goals, constraints and control of the search."""

    @classmethod
    def of(cls, experiment_id: str, runs: Sequence[RunSummary], objectives: Objectives, **more: Any) -> Self:
        """Rank runs that are given in any order.

        experiment_id: name and digest of the spec. objectives: of its search. more: fields of a subclass.
        """
        groups = rank(runs, objectives)
        by_label = {run.label: run for run in runs}
        ranked = tuple(by_label[run.label] for group in groups for run in group.runs)
        return cls(experiment_id=experiment_id, runs=ranked, groups=tuple(groups), objectives=objectives, **more)

    @property
    def control(self) -> str | None:
        """Group of the control; None without a search."""
        return self.objectives.control

    @property
    def winners(self) -> tuple[RunSummary, ...]:
        """The first succeeded repeat of the best setting, or of each setting on the Pareto front.

        Empty if every run failed or violates a constraint.
        """
        succeeded = [run for run in self.runs if run.state == "succeeded"]
        names = [group.name for group in self.groups if group.wins]
        return tuple(next(run for run in succeeded if run.group == name) for name in names)

    @property
    def best(self) -> RunSummary | None:
        """The winner of a search with a single goal; None in a Pareto search."""
        return self.winners[0] if self.winners and len(self.objectives.goals) == 1 else None

    @property
    def failed(self) -> bool:
        """Whether no run has succeeded, or one that the spec names has failed."""
        succeeded = any(run.state == "succeeded" for run in self.runs)
        return not succeeded or any(run.state == "failed" and run.origin == "named" for run in self.runs)

    @property
    def metrics(self) -> dict[str, Mapping[str, float]]:
        """Label of each run -> the last value of each of its metrics."""
        return {run.label: run.metrics for run in self.runs}

    @cached_property
    def ranking(self) -> Ranking:
        """The settings as a table, and their comparisons with the control."""
        return Ranking.of(self.runs, self.objectives)

    @cached_property
    def verdicts(self) -> Verdicts:
        """Whether the filters of each setting follow parts."""
        return Verdicts.of(self.ranking)

    @property
    def verdict(self) -> str:
        """The verdicts in sentences, one setting a line."""
        return "\n".join(self.verdicts.lines)

    def to_frame(self) -> pandas.DataFrame:
        """Return the runs as a table: see `runs_frame`."""
        return runs_frame(self.runs)

    def as_json(self) -> dict[str, Any]:
        """Return what `ipcnn submit --json` prints."""
        return {
            "experiment": self.experiment_id,
            "control": self.control,
            "best": self.best.label if self.best else None,
            "runs": [
                {
                    "run_id": run.run_id,
                    "group": run.group,
                    "seed": run.seed,
                    "template": run.template,
                    "settings": dict(run.settings),
                    "origin": run.origin,
                    "state": run.state,
                    "why": run.cause,
                    "metrics": dict(run.metrics),
                }
                for run in self.runs
            ],
            **as_json(self.ranking),
            **self.verdicts.as_json(),
        }


def runs_frame(runs: Sequence[RunSummary]) -> pandas.DataFrame:
    """Return one row for each run, its id as the index.

    Columns: label, group, seed, template, origin, state, cause; each metric under its name; of recorded runs also when
    they started and ended (UTC), and every field of the spec by its dotted path, as text, such as `template.beta`.
    """
    import pandas

    rows = []
    for run in runs:
        row: dict[str, Any] = {
            name: getattr(run, name) for name in ("label", "group", "seed", "template", "origin", "state", "cause")
        }
        if isinstance(run, RecordedRun):
            row |= {name: pandas.to_datetime(getattr(run, name), unit="s", utc=True) for name in ("started", "ended")}
            row |= run.params
        rows.append({**row, **run.metrics})
    frame = pandas.DataFrame(rows, index=pandas.Index([run.run_id for run in runs], name="run"))
    return frame.astype({"seed": "Int64"}) if "seed" in frame else frame
