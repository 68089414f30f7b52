"""Ranking of the settings of an experiment by the goals of its search, and comparisons of settings, paired by seed.

A setting is a run, or its repeats over seeds. Each metric has two families of comparisons, each with its own correction
(Holm): every setting with the control, and the other settings among themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ipcnn_ray.core.multi_objective import pareto_front
from ipcnn_ray.core.statistics import SIGNIFICANCE_LEVEL, Spread, holm, paired_t, sign_flip_p, smallest_p, spread
from ipcnn_ray.spec.search import Objectives, lower_is_better
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
    violated = [(limit, by) for limit, by in zip(objectives.constraints, excess, strict=True) if by is None or by > 0]
    return replace(group, violated=tuple(f"{limit}{' (not measured)' if by is None else ''}" for limit, by in violated))


def _is_finite(run: RunSummary, metric: str) -> bool:
    value = run.metrics.get(metric)
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Comparison:
    """One metric of two settings, over the seeds that both were trained with."""

    one: str
    other: str
    measure: str
    difference: Spread
    """`one` minus `other`, in the metric's unit."""
    t: float | None = None
    """Student's t of the paired differences; None, as all below, for fewer than two seeds."""
    p_t: float | None = None
    """Two-sided p of t."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of the mean difference, by Student's t."""
    p_exact: float | None = None
    """Two-sided p of the exact sign-flip test."""
    holm_t: float | None = None
    """p_t corrected for the comparisons of its family."""
    holm_exact: float | None = None
    """p_exact corrected for the comparisons of its family."""
    family: int = 0
    """Number of comparisons of the family that have a p."""

    @property
    def smallest(self) -> float:
        """Smallest corrected p that the exact test can give if every comparison of the family has its smallest."""
        return min(1.0, self.family * smallest_p(self.difference.n))

    @property
    def verdict(self) -> str:
        """Result of the corrected exact test, in words."""
        if self.p_exact is None or self.holm_exact is None:
            return "one seed"
        if self.holm_exact < SIGNIFICANCE_LEVEL:
            return "better" if (self.difference.mean < 0) == lower_is_better(self.measure) else "worse"
        return "too few seeds" if self.smallest >= SIGNIFICANCE_LEVEL else "may be luck"


def without_landmarks(groups: Sequence[Group]) -> bool:
    """Return whether the runs are on data without landmarks: they recorded errors, and nothing of instability."""
    metrics = {key for group in groups for run in group.runs for key in run.metrics}
    return "val_error" in metrics and not any(key.startswith("instability") for key in metrics)


def compare_groups(groups: Sequence[Group], objectives: Objectives) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons of every setting with the control, and of the other repeated settings among themselves, by metric."""
    control = next((group for group in groups if group.name == objectives.control), None)
    others = [group for group in groups if group is not control]
    repeated = [group for group in others if len(group.runs) > 1]
    against: list[Comparison] = []
    among: list[Comparison] = []
    for measure in compared_measures(groups, objectives):
        if control is not None:
            against += filter(None, compare_family([(group, control) for group in others], measure))
        among += filter(None, compare_family(list(combinations(repeated, 2)), measure))
    return against, among


def compared_measures(groups: Sequence[Group], objectives: Objectives) -> list[str]:
    """Goals, constrained metrics, instability and error: those that any setting has."""
    names = [
        *objectives.goals,
        *(limit.measure for limit in objectives.constraints),
        "instability",
        "val_error",
    ]
    return [name for name in dict.fromkeys(names) if any(name in group.spreads for group in groups)]


def compare_family(pairs: Sequence[tuple[Group, Group]], measure: str) -> list[Comparison | None]:
    """Comparison of each pair in one metric, corrected together; None without the metric or a common seed."""
    comparisons = [_compare(*pair, measure) for pair in pairs]
    tested = {i: pair for i, pair in enumerate(comparisons) if pair and pair.p_exact is not None}
    exact = holm([pair.p_exact or 0.0 for pair in tested.values()])
    t = holm([pair.p_t or 0.0 for pair in tested.values()])
    for (i, pair), holm_exact, holm_t in zip(tested.items(), exact, t, strict=True):
        comparisons[i] = replace(pair, holm_exact=holm_exact, holm_t=holm_t, family=len(tested))
    return comparisons


def _compare(one: Group, other: Group, measure: str) -> Comparison | None:
    mine, theirs = one.values(measure), other.values(measure)
    pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
    if len(one.runs) == len(other.runs) == 1:
        pairs = [(a, b) for a in mine.values() for b in theirs.values()]  # a single difference, whatever the seeds
    if not pairs:
        return None
    differences = [a - b for a, b in pairs]
    comparison = Comparison(one.name, other.name, measure, spread(differences))
    if len(differences) == 1:
        return comparison
    test = paired_t(differences)
    return replace(comparison, t=test.t, p_t=test.p, interval=(test.low, test.high), p_exact=sign_flip_p(differences))
