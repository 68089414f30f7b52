"""The Pareto front by hand."""

from __future__ import annotations

from ipcnn_ray.core.multi_objective import dominates, front


def test_a_point_dominates_what_it_nowhere_loses_to():
    assert dominates([1, 2], [1, 3])
    assert not dominates([1, 2], [1, 2])
    assert not dominates([1, 3], [2, 2])


def test_the_front_by_hand():
    #  3 |a . .          a, b and d: nothing is left of and below them; c is above b, e right of d.
    #  2 |. b c
    #  1 |. . d e
    points = {"a": (1, 3), "b": (2, 2), "c": (3, 2), "d": (3, 1), "e": (4, 1)}
    assert [name for name, on in zip(points, front(list(points.values())), strict=True) if on] == ["a", "b", "d"]


def test_equal_points_stand_together_and_one_measure_has_its_minima():
    assert front([(1, 1), (1, 1), (2, 0)]) == [True, True, True]
    assert front([(2,), (1,), (1,)]) == [False, True, True]
    assert front([]) == []
