"""Tests of whether a difference between two settings, each trained with the same seeds, is due to chance.

d_s is the difference of one metric between two settings trained with seed s; R is the number of seeds. The effects that
all runs of a seed share (initial weights, order of images) cancel in d_s, so the tests are paired.

Sources: Student's paired t is that of `scipy.stats`; the exact sign-flip test is Fisher's (The Design of Experiments,
1935, section 21); Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6,
1979.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

MOST_PAIRS = 40
"""Maximum number of pairs of the sign-flip test; each half of them has 2^20 sums."""
TIE = 1e-10
"""Two sums are equal if they differ by less than this share of the sum of all |d|: 0.3 - 0.2 and 0.2 - 0.1 differ."""
SIGNIFICANCE_LEVEL = 0.05
"""A difference with a p-value below it is called more than luck."""
CONFIDENCE = 0.95
"""Level of confidence intervals."""
POWER = 0.8
"""Probability with which a planned experiment should detect the difference that it is planned for."""
MOST_SEEDS = 100
"""Largest number of seeds that `seeds_needed` considers."""


class Spread(NamedTuple):
    """Number, mean and standard deviation of the values of one metric."""

    n: int
    mean: float
    sd: float | None
    """Sample standard deviation (divisor n - 1); None for a single value."""


class PairedT(NamedTuple):
    """Student's paired t-test."""

    t: float
    """mean / (sd / sqrt(R)); 0 if all differences are 0, infinite if they are equal and not 0."""
    df: int
    """Degrees of freedom, R - 1."""
    p: float
    """Two-sided p."""
    low: float
    """Lower end of the confidence interval of the mean difference, at level CONFIDENCE."""
    high: float
    """Upper end of the interval."""


def spread(values: Sequence[float]) -> Spread:
    """Spread of at least one finite value."""
    _check_finite(values, 1)
    n = len(values)
    mean = math.fsum(values) / n
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(n, mean, math.sqrt(squares / (n - 1)) if n > 1 else None)


def paired_t(differences: Sequence[float]) -> PairedT:
    """Paired t-test of at least two differences, assumed to be normally distributed.

    *Deviations*: differences that are equal up to rounding have sd 0 here, where scipy divides by what rounding left.
    """
    _check_finite(differences, 2)
    n, mean, sd = spread(differences)
    assert sd is not None
    tie = TIE * max(abs(difference) for difference in differences)
    if sd <= tie:
        same = abs(mean) <= tie
        return PairedT(0.0 if same else math.copysign(math.inf, mean), n - 1, 1.0 if same else 0.0, mean, mean)
    from scipy.stats import ttest_rel  # takes most of a second to import

    test = ttest_rel(differences, [0.0] * n)
    low, high = test.confidence_interval(CONFIDENCE)
    return PairedT(float(test.statistic), n - 1, float(test.pvalue), float(low), float(high))


def paired_t_power(effect: float, seeds: int, level: float = SIGNIFICANCE_LEVEL) -> float:
    """Probability that the two-sided paired t-test finds a p below `level`.

    effect: mean of the differences / their standard deviation. seeds: at least two.

    *Source*: t of normally distributed differences has a noncentral t distribution with seeds - 1 degrees of freedom
    and noncentrality effect * sqrt(seeds) (Cohen, Statistical Power Analysis, 1988, chapter 2).
    """
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}: expected at least 2")
    from scipy.special import nctdtr, stdtrit

    df, shift = seeds - 1, abs(effect) * math.sqrt(seeds)
    limit = -float(stdtrit(df, level / 2))
    return 1 - float(nctdtr(df, shift, limit)) + float(nctdtr(df, shift, -limit))


def seeds_needed(difference: Spread, level: float = SIGNIFICANCE_LEVEL) -> int | None:
    """Smallest number of seeds with which `paired_t_power` reaches POWER if mean and deviation are the true ones.

    None if it is above MOST_SEEDS, and for a single difference or one without deviation.
    """
    if not difference.sd:
        return None
    effect = difference.mean / difference.sd
    return next((n for n in range(2, MOST_SEEDS + 1) if paired_t_power(effect, n, level) >= POWER), None)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of paired differences, without an assumption about their distribution.

    If the two settings are equal, d_s and -d_s are equally likely. p is the share of the 2^R choices of signs whose sum
    is at least as far from 0 as the observed one. It is never below `smallest_p`.

    Raises ValueError for no difference, one that is not finite, or more than MOST_PAIRS.
    """
    _check_finite(differences, 1)
    if len(differences) > MOST_PAIRS:
        raise ValueError(f"differences = {len(differences)} numbers: expected at most {MOST_PAIRS}")
    observed, tie = abs(math.fsum(differences)), TIE * math.fsum(map(abs, differences))
    if observed <= tie:
        return 1.0
    half = len(differences) // 2
    left, right = _signed_sums(differences[:half]), sorted(_signed_sums(differences[half:]))
    # For each sum of the left half, count the sums of the right half that reach `observed`.
    at_least = sum(len(right) - bisect_left(right, observed - tie - left_sum) for left_sum in left)
    return 2 * at_least / (1 << len(differences))  # by symmetry as many sums are at most -observed


def smallest_p(pairs: int) -> float:
    """Smallest p that the two-sided sign-flip test can give: 2 / 2^R, 0.0625 for five seeds."""
    return min(1.0, 2 / (1 << pairs))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of a family of comparisons after Holm's correction, in the order given.

    The correction bounds the probability of one or more false positives. The i-th smallest of m values, from 0, is
    multiplied by m - i; it is never below the value before it and at most 1.
    """
    m, corrected, floor = len(p_values), [0.0] * len(p_values), 0.0
    for i, index in enumerate(sorted(range(m), key=lambda index: p_values[index])):
        floor = max(floor, min(1.0, (m - i) * p_values[index]))
        corrected[index] = floor
    return corrected


def _signed_sums(numbers: Sequence[float]) -> list[float]:
    """Sums of the numbers under all 2^n choices of signs."""
    sums = [0.0]
    for number in numbers:
        sums = [partial + sign * number for partial in sums for sign in (1, -1)]
    return sums


def _check_finite(values: Sequence[float], least: int) -> None:
    if len(values) < least:
        raise ValueError(f"values = {list(values)}: expected at least {least}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values = {list(values)}: expected finite numbers")
