"""How fast the validation error fell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def epochs_to_converge(error_by_epoch: Sequence[tuple[int, float]], share: float) -> int | None:
    """The first evaluated epoch whose error is at most (best error / share); None when nothing was evaluated.

    error_by_epoch: (epoch, validation error) in the order of epochs. share: in (0, 1]; 1 asks for the best error
    itself, 0.9 for one at most a ninth above it. After a best error of 0 only an error of 0 counts.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: expected a number above 0, at most 1")
    if not error_by_epoch:
        return None
    bound = min(error for _, error in error_by_epoch) / share
    return next(epoch for epoch, error in error_by_epoch if error <= bound)


def area_under_error(error_by_epoch: Sequence[tuple[int, float]]) -> float | None:
    """Mean height of the error curve over the evaluated epochs (trapezoids between them); None without any."""
    if not error_by_epoch:
        return None
    first, last = error_by_epoch[0], error_by_epoch[-1]
    if first[0] == last[0]:
        return first[1]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(error_by_epoch))
    return area / (last[0] - first[0])
