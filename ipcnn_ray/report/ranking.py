"""The runs of an experiment as settings: the repeats of one setting together, the best first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ipcnn_ray.core.multi_objective import front
from ipcnn_ray.core.statistics import Spread, spread
from ipcnn_ray.spec.objectives import Objectives, violations, words
from ipcnn_ray.spec.runs import group_of

ORDER = ("succeeded", "stopped")
"""States that come before all others, in this order."""


@dataclass(frozen=True)
class Row:
    """One run, from its outcome or from the record."""

    label: str
    template: str
    """Its template in a few characters."""
    state: str
    why: str
    """Cause of a failure or stop, in a sentence."""
    metrics: Mapping[str, float]
    """Of its last epoch, and of the whole run."""
    seed: int | None = None
    """Seed that it was trained with; None where the record does not say."""


@dataclass(frozen=True)
class Group:
    """One setting: a run, or its repeats over seeds."""

    name: str
    rows: tuple[Row, ...]
    """By seed."""
    spreads: Mapping[str, Spread]
    """Of every measure, over the runs that were trained to their end, or, where none was, those that were stopped."""
    violated: tuple[str, ...] = ()
    """Constraints that the means do not keep, or that could not be measured."""
    wins: bool = False
    """It is the best; in a Pareto search, it is on the front."""

    @property
    def state(self) -> str:
        """`succeeded`, or of several runs in different states `2 succeeded, 1 failed`."""
        counts = Counter(row.state for row in self.rows)
        return self.rows[0].state if len(counts) == 1 else ", ".join(f"{n} {state}" for state, n in counts.items())

    @property
    def order(self) -> int:
        """0: ranked by its numbers; then those beyond a bound, those that were stopped, the rest."""
        states = {row.state for row in self.rows}
        if ORDER[0] in states:
            return 1 if self.violated else 0
        return 2 if ORDER[1] in states else 3

    @property
    def means(self) -> dict[str, float]:
        """Of every measure its mean."""
        return {measure: found.mean for measure, found in self.spreads.items()}

    def values(self, measure: str) -> dict[int | None, float]:
        """Of the runs trained to their end: seed -> the measure, where it is finite."""
        return {row.seed: row.metrics[measure] for row in _ended(self.rows, ORDER[0]) if _there(row, measure)}


def _there(row: Row, measure: str) -> bool:
    value = row.metrics.get(measure)
    return value is not None and math.isfinite(value)


def _ended(rows: Sequence[Row], state: str) -> list[Row]:
    return [row for row in rows if row.state == state]


def _group(name: str, rows: Sequence[Row], objectives: Objectives) -> Group:
    seeded = tuple(sorted(rows, key=lambda row: -1 if row.seed is None else row.seed))
    counted = next((found for state in ORDER if (found := _ended(seeded, state))), [])
    measures = dict.fromkeys(key for row in counted for key in row.metrics)
    values = {key: [row.metrics[key] for row in counted if _there(row, key)] for key in measures}
    group = Group(name, seeded, {key: spread(found) for key, found in values.items() if found})
    if not counted:
        return group
    by_how_much = violations(objectives.constraints, group.means)
    beyond = [(one, by) for one, by in zip(objectives.constraints, by_how_much, strict=True) if by is None or by > 0]
    return replace(group, violated=tuple(words(one) + (" (not measured)" if by is None else "") for one, by in beyond))


def grouped(rows: Sequence[Row], objectives: Objectives) -> list[Group]:
    """The settings of these runs: first the best by the mean of the goal, or the Pareto front; behind the ranked ones
    those beyond a bound, those that were stopped early, and those that failed."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(group_of(row.label), []).append(row)
    groups = [_group(name, found, objectives) for name, found in by_name.items()]
    ranked = [(group, costs) for group in groups if not group.order and (costs := objectives.costs(group.means))]
    on_front = front([costs for _, costs in ranked])
    winners = [group for (group, _), wins in zip(ranked, on_front, strict=True) if wins]
    if len(objectives.goals) == 1:
        winners = winners[:1]
    marked = [replace(group, wins=any(group is winner for winner in winners)) for group in groups]
    return sorted(marked, key=lambda group: (group.order, not group.wins, objectives.costs(group.means) or [math.inf]))
