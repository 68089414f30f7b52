"""Runs that no other run beats in everything."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better; lower is better in every place."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Of each point, whether no other dominates it: the Pareto front. Lower is better; equal points stand together."""
    return [not any(dominates(other, point) for other in points) for point in points]
