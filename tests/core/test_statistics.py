"""Spread, paired tests and Holm's correction: on paper, against all signs one by one, and against scipy."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
from scipy import special, stats

from ipcnn_ray.core.statistics import (
    MOST_PAIRS,
    Spread,
    holm,
    paired_t,
    paired_t_power,
    seeds_needed,
    sign_flip_p,
    smallest_p,
    spread,
)


def every_sign(differences: list[float]) -> float:
    """The slow twin: all 2^R choices of signs, one by one."""
    seen = abs(math.fsum(differences))
    sums = [abs(math.fsum(signed)) for signed in product(*((d, -d) for d in differences))]
    return sum(one >= seen - 1e-9 for one in sums) / len(sums)


def test_spread_by_hand():
    # Deviations -2, 0, 2: squares add up to 8, over n - 1 = 2.
    assert spread([1.0, 3.0, 5.0]) == (3, 3.0, 2.0)
    assert spread([4.0]) == (1, 4.0, None)


def test_t_by_hand():
    # Mean 2; squared deviations 1, 0, 0, 1 over 3: sd^2 = 2/3; R = 4.
    t, df, p, low, high = paired_t([1.0, 2.0, 2.0, 3.0])
    assert (t, df) == (pytest.approx(2 / math.sqrt(2 / 3 / 4), rel=1e-12), 3)
    # For 3 degrees of freedom the table has t 3.182446 at .975; the standard error is sqrt(1/6) = .408248.
    assert (low, high) == (pytest.approx(2 - 3.182446 * 0.408248, abs=1e-5), pytest.approx(2 + 1.299228, abs=1e-5))
    assert p == pytest.approx(0.016277, abs=1e-6)


def test_differences_that_are_all_equal():
    assert paired_t([0.0, 0.0, 0.0]) == (0.0, 2, 1.0, 0.0, 0.0)
    assert paired_t([-0.5, -0.5, -0.5]) == (-math.inf, 2, 0.0, -0.5, -0.5)
    assert paired_t([0.3 - 0.2, 0.2 - 0.1, 0.1])[:3] == (math.inf, 2, 0.0)  # equal up to rounding
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1


def test_t_is_scipys():
    for n in (2, 3, 7, 20):
        draw = random.Random(n)
        one, other = ([draw.gauss(0, 1) for _ in range(n)] for _ in range(2))
        t, df, p, *interval = paired_t([a - b for a, b in zip(one, other, strict=True)])
        found = stats.ttest_rel(one, other)
        assert (t, df) == (pytest.approx(found.statistic, rel=1e-10), found.df)
        assert p == pytest.approx(2 * special.stdtr(df, -abs(t)), rel=1e-12) == pytest.approx(found.pvalue, rel=1e-10)
        assert interval == pytest.approx(list(found.confidence_interval(0.95)), rel=1e-10)


def test_signs_by_hand():
    # Sums of +-1 +-2 +-3: 6, 4, 2, 0, 0, -2, -4, -6. As far from 0 as 6: two of eight.
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    # Seen 1 + 2 - 3 = 0: every choice is at least as far.
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1
    # Seen 1 - 2 + 3 = 2: only the two sums of 0 are nearer.
    assert sign_flip_p([1.0, -2.0, 3.0]) == 6 / 8


def test_ties_of_decimal_fractions_count_as_ties():
    # In tenths 1, 2, -3 again: the sum is 0, though not in binary.
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1
    assert sign_flip_p([0.3 - 0.2, 0.2 - 0.1, 0.1]) == 2 / 8


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("kind", ["normal", "shifted", "counts"])
def test_signs_are_those_of_the_slow_twin(n, kind):
    draw = random.Random(f"{n} {kind}")
    for _ in range(10):
        counts = [draw.randint(-3, 3) / 262 for _ in range(n)]
        differences = counts if kind == "counts" else [draw.gauss(kind == "shifted", 1) for _ in range(n)]
        assert sign_flip_p(differences) == every_sign(differences)


def test_signs_are_scipys():
    draw = random.Random(5)
    differences = [draw.gauss(0.5, 1) for _ in range(9)]
    found = stats.permutation_test((differences,), sum, permutation_type="samples", n_resamples=math.inf)
    assert sign_flip_p(differences) == pytest.approx(found.pvalue, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 6, pytest.param(MOST_PAIRS, marks=pytest.mark.slow)])
def test_the_smallest_p(n):
    assert [smallest_p(n) for n in (1, 2, 5, 6)] == [1, 0.5, 0.0625, 0.03125]
    assert sign_flip_p([1.0] * n) == smallest_p(n)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, and none below the one before it.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06], rel=1e-12)
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_holm_is_never_below_bonferroni_of_the_smallest_nor_above_bonferroni():
    draw = random.Random(3)
    for _ in range(20):
        p = [draw.random() ** 2 for _ in range(6)]
        corrected = holm(p)
        assert min(corrected) == pytest.approx(min(1, 6 * min(p)), rel=1e-12)
        assert all(a <= b <= min(1, 6 * a) + 1e-12 for a, b in zip(p, corrected, strict=True))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: spread([]), r"values = \[\]: expected at least 1"),
        (lambda: paired_t([1.0]), r"values = \[1\.0\]: expected at least 2"),
        (lambda: sign_flip_p([1.0, math.nan]), r"values = \[1\.0, nan\]: expected finite numbers"),
        (lambda: sign_flip_p([1.0] * 41), r"differences = 41 numbers: expected at most 40"),
    ],
)
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def simulated_power(effect: float, seeds: int, level: float, draws: int = 200_000) -> float:
    """The slow twin: how often drawn experiments are significant."""
    sample = np.random.default_rng(seeds).normal(effect, 1, (draws, seeds))
    t = sample.mean(1) / (sample.std(1, ddof=1) / math.sqrt(seeds))
    return float((2 * stats.t.sf(abs(t), seeds - 1) < level).mean())


@pytest.mark.parametrize(
    ("effect", "seeds", "level"), [(0.0, 5, 0.05), (1.0, 5, 0.05), (-1.5, 8, 0.0125), (0.3, 40, 0.05)]
)
def test_power_is_the_share_of_drawn_experiments_that_are_significant(effect, seeds, level):
    # Four standard errors of a share of 200 000 draws.
    assert paired_t_power(effect, seeds, level) == pytest.approx(simulated_power(effect, seeds, level), abs=0.0045)


def test_seeds_needed_are_those_of_the_tables():
    # Cohen's tables and G*Power for the paired, two-sided t-test at .05 and power .8.
    assert [seeds_needed(Spread(5, effect, 1.0)) for effect in (0.3, 0.5, 0.8, -0.8, 1.0)] == [90, 34, 15, 15, 10]
    assert seeds_needed(Spread(5, 0.8, 1.0), 0.05 / 4) > 15
    # Below .28 standard deviations more than 100.
    assert seeds_needed(Spread(5, 0.2, 1.0)) is None and seeds_needed(Spread(5, 0.0, 1.0)) is None
    assert seeds_needed(Spread(1, 0.8, None)) is None and seeds_needed(Spread(5, 0.8, 0.0)) is None
    with pytest.raises(ValueError, match="seeds = 1: expected at least 2"):
        paired_t_power(1.0, 1)
