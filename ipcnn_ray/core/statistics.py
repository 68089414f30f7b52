"""Whether a difference between two settings, each trained with the same seeds, is more than luck.

d_s is the difference of one measure between two settings trained with seed s, R the number of seeds. What all runs of
a seed share (initial weights, order of images) cancels in d_s, so the tests are paired.

Sources: the exact sign-flip test is Fisher's (The Design of Experiments, 1935, section 21); Holm, A simple sequentially
rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

MOST_PAIRS = 40
"""Pairs that the sign-flip test takes: each half of them has 2^20 sums."""
TIE = 1e-10
"""Two sums are equal when they differ by less than this share of the sum of all |d|: 0.3 - 0.2 and 0.2 - 0.1 differ."""


class Spread(NamedTuple):
    """Several values of one measure."""

    n: int
    mean: float
    sd: float | None
    """Standard deviation of the sample (divisor n - 1); None for a single value."""


class PairedT(NamedTuple):
    """Student's t of paired differences."""

    t: float
    """mean / (sd / sqrt(R)); 0 when all differences are 0, infinite when they are equal and not 0."""
    df: int
    """Degrees of freedom, R - 1."""


def spread(values: Sequence[float]) -> Spread:
    """Number, mean and standard deviation of at least one finite value."""
    _finite(values, 1)
    n = len(values)
    mean = math.fsum(values) / n
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(n, mean, math.sqrt(squares / (n - 1)) if n > 1 else None)


def paired_t(differences: Sequence[float]) -> PairedT:
    """t of at least two paired differences. Holds for differences that are normally distributed."""
    _finite(differences, 2)
    n, mean, sd = spread(differences)
    assert sd is not None
    tie = TIE * max(abs(difference) for difference in differences)
    if sd <= tie:
        return PairedT(0.0 if abs(mean) <= tie else math.copysign(math.inf, mean), n - 1)
    return PairedT(mean / (sd / math.sqrt(n)), n - 1)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of paired differences, without assuming a distribution.

    If the two settings are the same, d_s and -d_s are equally likely: p is the share of all 2^R choices of signs whose
    sum is at least as far from 0 as the one that was seen. Never below `smallest_p`.

    Raises ValueError for no difference, one that is not finite, or more than MOST_PAIRS.
    """
    _finite(differences, 1)
    if len(differences) > MOST_PAIRS:
        raise ValueError(f"differences = {len(differences)} numbers: expected at most {MOST_PAIRS}")
    seen, tie = abs(math.fsum(differences)), TIE * math.fsum(map(abs, differences))
    if seen <= tie:
        return 1.0
    half = len(differences) // 2
    left, right = _sums(differences[:half]), sorted(_sums(differences[half:]))
    at_least = sum(len(right) - bisect_left(right, seen - tie - one) for one in left)  # pairs of halves, not formed
    return 2 * at_least / (1 << len(differences))  # as many sums are at most -seen: turn all signs round


def smallest_p(pairs: int) -> float:
    """The least p that the two-sided sign-flip test can give: 2 / 2^R, 0.0625 for five seeds."""
    return min(1.0, 2 / (1 << pairs))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of a family of comparisons, corrected so that the chance of even one false claim stays at the level.

    The i-th smallest of m, from 0, times m - i, never below the one before it, at most 1; in the order given.
    """
    m, corrected, floor = len(p_values), [0.0] * len(p_values), 0.0
    for i, index in enumerate(sorted(range(m), key=lambda index: p_values[index])):
        floor = max(floor, min(1.0, (m - i) * p_values[index]))
        corrected[index] = floor
    return corrected


def _sums(numbers: Sequence[float]) -> list[float]:
    """The sums of these numbers under every choice of signs, 2^len of them."""
    sums = [0.0]
    for one in numbers:
        sums = [before + sign * one for before in sums for sign in (1, -1)]
    return sums


def _finite(values: Sequence[float], least: int) -> None:
    if len(values) < least:
        raise ValueError(f"values = {list(values)}: expected at least {least}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values = {list(values)}: expected finite numbers")
