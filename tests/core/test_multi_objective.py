"""The combined objective and the Pareto front, by hand."""

from __future__ import annotations

import math

import pytest

from ipcnn_ray.core.multi_objective import combined_objective as combined
from ipcnn_ray.core.multi_objective import comparable, dominates, pareto_front

CONTROL = {"control_value": 0.2, "control_error": 0.05, "weight": 0.5, "images": 100}
ERROR = {"control_error": 0.5, "weight": 0.5, "images": 100}
SHARE = {"better": "higher", "best": 1.0}
COUNT = {"better": "higher", "best": None}


@pytest.mark.parametrize(
    ("value", "error", "changed", "expected"),
    [
        (0.2, 0.05, {}, 1),  # the control itself
        (0.1, 0.1, {"weight": 0.25}, 1.625),  # half the instability, twice the error: 0.25 / 2 + 0.75 * 2
        (0.1, 0.15, {"weight": 1.0}, 0.5),
        (0.1, 0.15, {"weight": 0.0}, 3.0),
        (math.nan, 0.1, {}, math.nan),
        # One standard error of 0.2 over 100 images is 0.04: no error counts as less.
        *[(0.2, error, {"control_error": 0.2}, 0.6) for error in (0.0, 0.01, 0.04)],
        (0.2, 0.05, {"control_error": 0.2}, 0.5 + 0.5 / 4),
        # A control without errors, or all wrong, has none; then no error counts as less than one image.
        (0.2, 0.03, {"control_error": 0.0}, 0.5 + 0.5 * 3),
        (0.2, 0.0, {"control_error": 0.0}, 1),
        (0.2, 0.0, {"control_error": 1.0}, 0.5 + 0.5 * 0.01),
        # An error of 1 % is a single image of 100, and 0.00995 its standard error: both count as one image.
        (0.2, 0.0, {"control_error": 0.01}, 1),
    ],
)
def test_combined_by_hand(value, error, changed, expected):
    assert combined(value, error, **CONTROL | changed) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("value", "control", "metric", "expected"),
    [
        (0.9, 0.5, SHARE, 0.2),  # a distance of 0.1 from the best value in place of 0.5
        (-0.5, 0.5, SHARE, 3.0),
        (1.0, 0.5, SHARE, 0.02),  # no distance counts as less than 0.01
        (1.0, 1.0, SHARE, 1.0),  # the control is at the best value
        (0.9, 1.0, SHARE, 10.0),
        (0.9, -1.0, SHARE, 0.05),
        (4.0, 2.0, COUNT, 0.5),
        (1.0, 2.0, COUNT, 2.0),
        (0.0, 2.0, COUNT, math.nan),
        (-1.0, 2.0, COUNT, math.nan),
        (3.0, 2.0, {"better": "lower", "best": None}, 1.5),
        (0.0, 2.0, {"better": "lower", "best": 0.0}, 0.0),
        (math.nan, 2.0, COUNT, math.nan),
        (math.nan, 0.5, SHARE, math.nan),
    ],
)
def test_any_metric_of_interpretability_by_hand(value, control, metric, expected):
    found = combined(value, 0.5, control_value=control, **ERROR, **metric)
    assert found == pytest.approx(0.5 * expected + 0.5, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"control_value": 0.0}, r"control_value = 0\.0: expected a positive number"),
        ({"control_value": math.nan}, r"control_value = nan: expected a positive number"),
        ({"control_value": math.nan, **SHARE}, r"control_value = nan: expected a finite number"),
        ({"control_value": 0.0, **COUNT}, r"control_value = 0\.0: expected a positive number"),
        ({"images": 0}, "images = 0: expected at least 1"),
        ({"control_error": 1.5}, r"control_error = 1\.5: expected a number from 0 to 1"),
        ({"weight": 1.1}, r"weight = 1\.1: expected a number from 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(changed, text):
    with pytest.raises(ValueError, match=text):
        combined(0.1, 0.1, **CONTROL | changed)


@pytest.mark.parametrize(
    ("control", "best", "expected"),
    [(0.1, 0.0, True), (0.0, 0.0, False), (1.0, 1.0, True), (-3.0, 1.0, True), (2.0, None, True), (-2.0, None, False)],
)
def test_controls_that_runs_can_be_compared_with(control, best, expected):
    assert comparable(control, best) is expected and comparable(math.nan, best) is False


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
