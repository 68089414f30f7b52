"""Order of the runs of an experiment: repeats grouped to settings, settings ranked by the goals of the search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ipcnn_ray.core.multi_objective import pareto_front
from ipcnn_ray.core.statistics import Spread, spread
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.run_summary import Origin, RunSummary, State

COUNTED: tuple[tuple[State, ...], ...] = (("succeeded",), ("pruned", "stopped"))
"""States whose metrics count for a setting: those of succeeded runs or, without any, those of incomplete runs."""


@dataclass(frozen=True)
class Group:
    """One setting: a run, or its repeats over seeds."""

    name: str
    runs: tuple[RunSummary, ...]
    """By seed."""
    spreads: Mapping[str, Spread]
    """Metric -> spread over the succeeded runs or, without any, over the pruned and stopped ones."""
    violated: tuple[str, ...] = ()
    """Constraints that the means violate, or whose metric is missing."""
    wins: bool = False
    """Whether it is the best setting; in a Pareto search, whether it is on the front."""

    @property
    def origin(self) -> Origin:
        return self.runs[0].origin

    @property
    def template(self) -> str:
        """Short description of its template."""
        return self.runs[0].template

    @property
    def state(self) -> str:
        """`succeeded`, or with runs in different states `2 succeeded, 1 failed`."""
        counts = Counter(run.state for run in self.runs)
        return self.runs[0].state if len(counts) == 1 else ", ".join(f"{n} {state}" for state, n in counts.items())

    @property
    def order(self) -> int:
        """0: ranked by its goals; 1: violates a constraint; 2: pruned or stopped; 3: without metrics."""
        order = next((2 * i for i, states in enumerate(COUNTED) if any(run.state in states for run in self.runs)), 3)
        return 1 if order == 0 and self.violated else order

    @property
    def means(self) -> dict[str, float]:
        """Metric -> mean."""
        return {metric: spread.mean for metric, spread in self.spreads.items()}

    def values(self, metric: str) -> dict[int | None, float]:
        """Seed -> finite value of a metric, of the succeeded runs."""
        runs = [run for run in self.runs if run.state == "succeeded"]
        return {run.seed: run.metrics[metric] for run in runs if _is_finite(run, metric)}


def rank(runs: Sequence[RunSummary], objectives: Objectives) -> list[Group]:
    """The settings of these runs, best first.

    Settings with a succeeded run come first, by the mean of the goal (in a Pareto search: the front, then the rest);
    then those that violate a constraint, those whose runs were only pruned or stopped, and those without metrics.
    """
    by_name: dict[str, list[RunSummary]] = {}
    for run in runs:
        by_name.setdefault(run.group, []).append(run)
    groups = [_group(name, repeats, objectives) for name, repeats in by_name.items()]
    ranked = [(group, costs) for group in groups if not group.order and (costs := objectives.costs(group.means))]
    on_front = pareto_front([costs for _, costs in ranked])
    winners = [group for (group, _), wins in zip(ranked, on_front, strict=True) if wins]
    if len(objectives.goals) == 1:
        winners = winners[:1]
    marked = [replace(group, wins=any(group is winner for winner in winners)) for group in groups]
    return sorted(marked, key=lambda group: (group.order, not group.wins, objectives.costs(group.means) or [math.inf]))


def _group(name: str, runs: Sequence[RunSummary], objectives: Objectives) -> Group:
    by_seed = tuple(sorted(runs, key=lambda run: -1 if run.seed is None else run.seed))
    counted: list[RunSummary] = next(
        (some for states in COUNTED if (some := [run for run in by_seed if run.state in states])), []
    )
    metrics = dict.fromkeys(key for run in counted for key in run.metrics)
    values = {key: [run.metrics[key] for run in counted if _is_finite(run, key)] for key in metrics}
    group = Group(name, by_seed, {key: spread(finite) for key, finite in values.items() if finite})
    if not counted:
        return group
    excess = [constraint.violation(group.means) for constraint in objectives.constraints]
    violated = [(one, by) for one, by in zip(objectives.constraints, excess, strict=True) if by is None or by > 0]
    return replace(group, violated=tuple(str(one) + (" (not measured)" if by is None else "") for one, by in violated))


def _is_finite(run: RunSummary, metric: str) -> bool:
    value = run.metrics.get(metric)
    return value is not None and math.isfinite(value)
