"""What a search aims at: the measures that its runs are ranked by, and the bounds that they must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple

from ipcnn_ray.spec.extensions import INSTABILITY, METRICS
from ipcnn_ray.spec.search import Combined, Constraint, OneMeasure, Search

COMBINED = "combined"
"""Name of the combined objective in the record."""
VAL_ERROR = "val_error"


class MetricInfo(NamedTuple):
    """What a reader needs to know of a number that runs can be ranked by."""

    unit: str
    better: Literal["higher", "lower"]
    description: str
    """One line."""


def ranked_names() -> tuple[str, ...]:
    """Names of all numbers that runs can be ranked by."""
    return (COMBINED, INSTABILITY, VAL_ERROR, *(name for name in METRICS.names() if name != INSTABILITY))


def metric_info(name: str) -> MetricInfo:
    """Unit, direction and description of a number that runs can be ranked by. Imports the metric."""
    if name == COMBINED:
        return MetricInfo("1 is the control", "lower", "instability and error relative to the control")
    if name == VAL_ERROR:
        return MetricInfo("share of validation items", "lower", "classification error on the validation items")
    metric = METRICS.load(name)
    return MetricInfo(metric.unit, metric.better, metric.description)


@dataclass(frozen=True)
class Objectives:
    """What the runs of an experiment are ranked by; reads and writes itself as text, for the record."""

    goals: tuple[str, ...]
    """One measure, or those of a Pareto search."""
    constraints: tuple[Constraint, ...] = ()
    control: str | None = None
    """Name of the run that the others are compared with; None without a search."""

    @classmethod
    def of(cls, search: Search | None) -> Objectives:
        """Of a search. A single run is looked at by its instability."""
        if search is None:
            return cls(("instability",))
        objective = search.objective
        if isinstance(objective, Combined):
            goals: tuple[str, ...] = (COMBINED,)
        else:
            goals = (objective.measure,) if isinstance(objective, OneMeasure) else tuple(objective.measures)
        return cls(goals, search.constraints, objective.control)

    def costs(self, metrics: Mapping[str, float]) -> list[float] | None:
        """The goals' values, turned round where higher is better; None when one of them is not there."""
        values = [metrics.get(goal) for goal in self.goals]
        known = [value for value in values if value is not None and isfinite(value)]
        if len(known) < len(self.goals):
            return None
        return [value if lower(goal) else -value for goal, value in zip(self.goals, known, strict=True)]

    def tags(self) -> dict[str, str]:
        """For the record of the experiment."""
        bounds = "; ".join(words(one) for one in self.constraints)
        return {"ipcnn.goals": ", ".join(self.goals), "ipcnn.constraints": bounds, "ipcnn.control": self.control or ""}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Objectives:
        """What `tags` wrote. A record from before it was written: the combined objective against `plain`."""
        goals = tuple(filter(None, tags.get("ipcnn.goals", COMBINED).split(", ")))
        bounds = filter(None, tags.get("ipcnn.constraints", "").split("; "))
        return cls(goals, tuple(map(_constraint, bounds)), tags.get("ipcnn.control", "plain") or None)


def lower(measure: str) -> bool:
    """Whether lower is better. The metrics that every run has are known without an import."""
    return measure in (COMBINED, INSTABILITY, VAL_ERROR) or metric_info(measure).better == "lower"


def words(constraint: Constraint) -> str:
    """`val_error <= 0.1`"""
    if constraint.at_most is not None:
        return f"{constraint.measure} <= {constraint.at_most!r}"
    return f"{constraint.measure} >= {constraint.at_least!r}"


def _constraint(text: str) -> Constraint:
    measure, sign, bound = text.split()
    if sign == "<=":
        return Constraint.model_construct(measure=measure, at_most=float(bound))
    return Constraint.model_construct(measure=measure, at_least=float(bound))


def violations(constraints: Sequence[Constraint], metrics: Mapping[str, float]) -> list[float | None]:
    """Of each constraint by how much it is violated, in the measure's unit; at most 0 where it is kept, None where the
    measure is not there."""
    found: list[float | None] = []
    for one in constraints:
        value = metrics.get(one.measure)
        if value is None or not isfinite(value):
            found.append(None)
        elif one.at_most is not None:
            found.append(value - one.at_most)
        else:
            assert one.at_least is not None
            found.append(one.at_least - value)
    return found
