"""The combined objective and the Pareto front, by hand."""

from __future__ import annotations

import math

import pytest

from ipcnn_ray.core.multi_objective import combined_objective as combined
from ipcnn_ray.core.multi_objective import dominates, pareto_front

CONTROL = {"control_instability": 0.2, "control_error": 0.05, "instability_weight": 0.5, "error_floor": 0.01}


@pytest.mark.parametrize(
    ("instability", "error", "changed", "expected"),
    [
        (0.2, 0.05, {}, 1),  # the control itself
        (0.1, 0.1, {"instability_weight": 0.25}, 1.625),  # half the instability, twice the error: 0.25 / 2 + 0.75 * 2
        (0.1, 0.15, {"instability_weight": 1.0}, 0.5),
        (0.1, 0.15, {"instability_weight": 0.0}, 3.0),
        *[(0.2, error, {}, 0.6) for error in (0.0, 0.01)],  # no error counts as less than the floor
        (0.2, 0.03, {"control_error": 0.0}, 2),
        (math.nan, 0.1, {}, math.nan),
    ],
)
def test_combined_by_hand(instability, error, changed, expected):
    assert combined(instability, error, **CONTROL | changed) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"control_instability": 0.0}, r"control_instability = 0\.0: expected a positive number"),
        ({"control_instability": math.nan}, r"control_instability = nan: expected a positive number"),
        ({"error_floor": 0.0}, r"error_floor = 0\.0: expected a positive number"),
        ({"instability_weight": 1.1}, r"instability_weight = 1\.1: expected a number from 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(changed, text):
    with pytest.raises(ValueError, match=text):
        combined(0.1, 0.1, **CONTROL | changed)


def test_a_point_dominates_what_it_nowhere_loses_to():
    assert dominates([1, 2], [1, 3])
    assert not dominates([1, 2], [1, 2])
    assert not dominates([1, 3], [2, 2])


def test_the_front_by_hand():
    #  3 |a . .          a, b and d: nothing is left of and below them; c is above b, e right of d.
    #  2 |. b c
    #  1 |. . d e
    points = {"a": (1, 3), "b": (2, 2), "c": (3, 2), "d": (3, 1), "e": (4, 1)}
    assert [name for name, on in zip(points, pareto_front(list(points.values())), strict=True) if on] == ["a", "b", "d"]


def test_equal_points_stand_together_and_one_measure_has_its_minima():
    assert pareto_front([(1, 1), (1, 1), (2, 0)]) == [True, True, True]
    assert pareto_front([(2,), (1,), (1,)]) == [False, True, True]
    assert pareto_front([]) == []
