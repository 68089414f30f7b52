"""Convergence of error curves that a reader can draw."""

from __future__ import annotations

import pytest

from ipcnn_ray.core.classification import area_under_error, epochs_to_converge

CURVE = [(1, 0.5), (2, 0.2), (3, 0.11), (4, 0.1), (5, 0.15)]


@pytest.mark.parametrize(("share", "epoch"), [(1.0, 4), (0.9, 3), (0.5, 2), (0.2, 1)])
def test_first_epoch_within_a_share_of_the_best(share, epoch):
    # Bounds 0.1, 0.111, 0.2, 0.5.
    assert epochs_to_converge(CURVE, share) == epoch


def test_a_best_error_of_zero_asks_for_zero():
    assert epochs_to_converge([(1, 0.3), (2, 0.01), (3, 0.0), (4, 0.0)], 0.5) == 3


def test_epochs_that_were_not_evaluated_cannot_converge():
    assert epochs_to_converge([(3, 0.4), (6, 0.1)], 0.9) == 6


def test_area_by_hand():
    # Trapezoids 0.35, 0.155, 0.105, 0.125 over four epochs.
    assert area_under_error(CURVE) == pytest.approx(0.735 / 4, rel=1e-12)


def test_area_weighs_by_epochs_between_evaluations():
    # From epoch 1 to 3 mean 0.3 twice, from 3 to 4 mean 0.1.
    assert area_under_error([(1, 0.5), (3, 0.1), (4, 0.1)]) == pytest.approx(0.7 / 3, rel=1e-12)


def test_area_of_a_flat_curve_and_of_one_epoch_is_its_height():
    assert area_under_error([(2, 0.25), (4, 0.25), (9, 0.25)]) == pytest.approx(0.25, rel=1e-12)
    assert area_under_error([(7, 0.4)]) == 0.4


def test_nothing_evaluated_is_none():
    assert epochs_to_converge([], 0.9) is None
    assert area_under_error([]) is None


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(ValueError, match=rf"share = {share}: expected a number above 0, at most 1"):
        epochs_to_converge(CURVE, share)
