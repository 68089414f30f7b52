"""Settings against each other, paired by seed: how much they differ, and whether that may be luck.

Two families of comparisons for each measure, each corrected by itself (Holm): every setting against the control, and
the settings among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ipcnn_ray.core.statistics import Spread, holm, paired_t, sign_flip_p, smallest_p, spread
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.spec.objectives import Objectives, lower_is_better

LEVEL = 0.05
"""A corrected p below this is called more than luck."""


@dataclass(frozen=True)
class Comparison:
    """One measure of two settings, over the seeds that both were trained with."""

    one: str
    other: str
    measure: str
    difference: Spread
    """`one` less `other`, in the measure's unit."""
    t: float | None = None
    """Student's t of the paired differences; None, as all below, for fewer than two seeds."""
    p_t: float | None = None
    """Two-sided p of t."""
    p_exact: float | None = None
    """Two-sided p of the exact sign-flip test."""
    holm_t: float | None = None
    """p_t corrected for the comparisons of its family."""
    holm_exact: float | None = None
    """p_exact corrected for the comparisons of its family."""
    family: int = 0
    """Comparisons of the family that have a p."""

    @property
    def smallest(self) -> float:
        """The least corrected p that the exact test can give when all comparisons of the family are at their least."""
        return min(1.0, self.family * smallest_p(self.difference.n))

    @property
    def verdict(self) -> str:
        """What the corrected exact test says of the difference."""
        if self.p_exact is None or self.holm_exact is None:
            return "one seed"
        if self.holm_exact < LEVEL:
            return "better" if (self.difference.mean < 0) == lower_is_better(self.measure) else "worse"
        return "too few seeds" if self.smallest >= LEVEL else "may be luck"


def compared(groups: Sequence[Group], objectives: Objectives) -> tuple[list[Comparison], list[Comparison]]:
    """Every setting against the control, and the settings among themselves where seeds are repeated; by measure."""
    control = next((group for group in groups if group.name == objectives.control), None)
    others = [group for group in groups if group is not control]
    against: list[Comparison] = []
    among: list[Comparison] = []
    for measure in measures(groups, objectives):
        if control is not None:
            against += family([(group, control) for group in others], measure)
        repeated = [group for group in others if len(group.runs) > 1]
        among += family(list(combinations(repeated, 2)), measure)
    return against, among


def measures(groups: Sequence[Group], objectives: Objectives) -> list[str]:
    """The measures of a ranking: its goals, what is bounded, instability and error; those that any setting has."""
    names = [*objectives.goals, *(one.measure for one in objectives.constraints), "instability", "val_error"]
    return [name for name in dict.fromkeys(names) if any(name in group.spreads for group in groups)]


def family(pairs: Sequence[tuple[Group, Group]], measure: str) -> list[Comparison]:
    """One measure of pairs of settings that have it, corrected together."""
    found = [comparison for one, other in pairs if (comparison := _compared(one, other, measure))]
    tested = [index for index, one in enumerate(found) if one.p_exact is not None]
    exact = holm([found[index].p_exact or 0.0 for index in tested])
    t = holm([found[index].p_t or 0.0 for index in tested])
    for index, holm_exact, holm_t in zip(tested, exact, t, strict=True):
        found[index] = replace(found[index], holm_exact=holm_exact, holm_t=holm_t, family=len(tested))
    return found


def _compared(one: Group, other: Group, measure: str) -> Comparison | None:
    mine, theirs = one.values(measure), other.values(measure)
    pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
    if len(one.runs) == len(other.runs) == 1:
        pairs = [(a, b) for a in mine.values() for b in theirs.values()]  # whatever their seeds: nothing is tested
    if not pairs:
        return None
    differences = [a - b for a, b in pairs]
    comparison = Comparison(one.name, other.name, measure, spread(differences))
    if len(differences) == 1:
        return comparison
    from scipy.special import stdtr  # Student's distribution; only where there is something to test

    t, df = paired_t(differences)
    return replace(comparison, t=t, p_t=2 * float(stdtr(df, -abs(t))), p_exact=sign_flip_p(differences))
