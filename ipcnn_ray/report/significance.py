"""Comparisons of settings, paired by seed: the difference of each metric and whether it may be due to chance.

Each metric has two families of comparisons, each with its own correction (Holm): every setting with the control, and
the other settings among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ipcnn_ray.core.statistics import Spread, holm, paired_t, sign_flip_p, smallest_p, spread
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.spec.search import Objectives, lower_is_better

LEVEL = 0.05
"""Significance level of a corrected p."""


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
        if self.holm_exact < LEVEL:
            return "better" if (self.difference.mean < 0) == lower_is_better(self.measure) else "worse"
        return "too few seeds" if self.smallest >= LEVEL else "may be luck"


def compare_groups(groups: Sequence[Group], objectives: Objectives) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons of every setting with the control, and of the other repeated settings among themselves, by metric."""
    control = next((group for group in groups if group.name == objectives.control), None)
    others = [group for group in groups if group is not control]
    repeated = [group for group in others if len(group.runs) > 1]
    against: list[Comparison] = []
    among: list[Comparison] = []
    for measure in compared_measures(groups, objectives):
        if control is not None:
            against += compare_family([(group, control) for group in others], measure)
        among += compare_family(list(combinations(repeated, 2)), measure)
    return against, among


def compared_measures(groups: Sequence[Group], objectives: Objectives) -> list[str]:
    """Goals, constrained metrics, instability and error: those that any setting has."""
    names = [*objectives.goals, *(one.measure for one in objectives.constraints), "instability", "val_error"]
    return [name for name in dict.fromkeys(names) if any(name in group.spreads for group in groups)]


def compare_family(pairs: Sequence[tuple[Group, Group]], measure: str) -> list[Comparison]:
    """Comparisons of one metric, corrected together. Pairs without the metric or a common seed are skipped."""
    comparisons = [comparison for one, other in pairs if (comparison := _compare(one, other, measure))]
    tested = [index for index, comparison in enumerate(comparisons) if comparison.p_exact is not None]
    exact = holm([comparisons[index].p_exact or 0.0 for index in tested])
    t = holm([comparisons[index].p_t or 0.0 for index in tested])
    for index, holm_exact, holm_t in zip(tested, exact, t, strict=True):
        comparisons[index] = replace(comparisons[index], holm_exact=holm_exact, holm_t=holm_t, family=len(tested))
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
