"""The objectives of a search: the metrics that its runs are ranked by, and the constraints on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple

from ipcnn_ray.spec.extensions import INSTABILITY, METRICS
from ipcnn_ray.spec.search import Combined, Constraint, OneMeasure, Search

COMBINED = "combined"
"""Name of the combined objective in the record."""
VAL_ERROR = "val_error"


class MetricInfo(NamedTuple):
    """Facts about a metric that runs can be ranked by."""

    unit: str
    better: Literal["higher", "lower"]
    description: str
    """One line."""


def ranked_names() -> tuple[str, ...]:
    """Return the names of all metrics that runs can be ranked by."""
    return (COMBINED, INSTABILITY, VAL_ERROR, *(name for name in METRICS.names() if name != INSTABILITY))


def metric_info(name: str) -> MetricInfo:
    """Return unit, direction and description of a metric that runs can be ranked by. Imports the metric."""
    if name == COMBINED:
        return MetricInfo("1 is the control", "lower", "instability and error relative to the control")
    if name == VAL_ERROR:
        return MetricInfo("share of validation items", "lower", "classification error on the validation items")
    metric = METRICS.load(name)
    return MetricInfo(metric.unit, metric.better, metric.description)


def lower_is_better(name: str) -> bool:
    """Return whether lower values of a metric are better. Imports it, unless every run has it."""
    return name in (COMBINED, INSTABILITY, VAL_ERROR) or metric_info(name).better == "lower"


@dataclass(frozen=True)
class Objectives:
    """Metrics and constraints that the runs of an experiment are ranked by. The record stores them as tags."""

    goals: tuple[str, ...]
    """One metric, or those of a Pareto search."""
    constraints: tuple[Constraint, ...] = ()
    control: str | None = None
    """Name of the run that the others are compared with; None without a search."""

    @classmethod
    def of(cls, search: Search | None) -> Objectives:
        """Return the objectives of a search; those of a single run are its instability."""
        if search is None:
            return cls((INSTABILITY,))
        objective = search.objective
        if isinstance(objective, Combined):
            goals: tuple[str, ...] = (COMBINED,)
        else:
            goals = (objective.measure,) if isinstance(objective, OneMeasure) else tuple(objective.measures)
        return cls(goals, search.constraints, objective.control)

    def costs(self, metrics: Mapping[str, float]) -> list[float] | None:
        """Return the values of the goals, negated if higher is better; None if one is missing or not finite."""
        values = [metrics.get(goal) for goal in self.goals]
        known = [value for value in values if value is not None and isfinite(value)]
        if len(known) < len(self.goals):
            return None
        return [value if lower_is_better(goal) else -value for goal, value in zip(self.goals, known, strict=True)]

    def tags(self) -> dict[str, str]:
        """Return the tags of the experiment's record."""
        return {
            "ipcnn.goals": ", ".join(self.goals),
            "ipcnn.constraints": "; ".join(map(str, self.constraints)),
            "ipcnn.control": self.control or "",
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Objectives:
        """Return the objectives that `tags` wrote. Old records without them have the combined objective and the
        control `plain`."""
        goals = tuple(filter(None, tags.get("ipcnn.goals", COMBINED).split(", ")))
        constraints = filter(None, tags.get("ipcnn.constraints", "").split("; "))
        return cls(goals, tuple(map(_constraint, constraints)), tags.get("ipcnn.control", "plain") or None)


def _constraint(text: str) -> Constraint:
    """Parse the text of a constraint. The package of its metric need not be installed."""
    measure, sign, bound = text.split()
    bounds = {"at_most" if sign == "<=" else "at_least": float(bound)}
    return Constraint.model_construct(measure=measure, **bounds)  # type: ignore[arg-type]
