"""One number for interpretability and error together (the part-template paper's future work)."""

from __future__ import annotations

from collections.abc import Sequence


def combined(
    instability: float,
    error: float,
    *,
    control_instability: float,
    control_error: float,
    instability_weight: float,
    error_floor: float,
) -> float:
    """w * instability / control's instability + (1 - w) * error / control's error; 1 is the control, lower is better.

    error_floor: neither error counts as less than this share (one validation image), so that a control without
    errors does not make every other run infinitely bad. NaN when the instability could not be measured.
    """
    if not control_instability > 0:
        raise ValueError(f"control_instability = {control_instability}: expected a positive number")
    if not error_floor > 0:
        raise ValueError(f"error_floor = {error_floor}: expected a positive number")
    if not 0 <= instability_weight <= 1:
        raise ValueError(f"instability_weight = {instability_weight}: expected a number from 0 to 1")
    relative_error = max(error, error_floor) / max(control_error, error_floor)
    return instability_weight * instability / control_instability + (1 - instability_weight) * relative_error


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better; lower is better in every place."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Of each point, whether no other dominates it: the Pareto front. Lower is better; equal points stand together."""
    return [not any(dominates(other, point) for other in points) for point in points]
