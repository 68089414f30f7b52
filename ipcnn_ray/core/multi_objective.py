"""Several objectives at once: one combined number (the part-template paper's future work), and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence


def combined_objective(
    instability: float,
    error: float,
    *,
    control_instability: float,
    control_error: float,
    instability_weight: float,
    error_floor: float,
) -> float:
    """Return w * instability / control's instability + (1 - w) * error / control's error.

    1 is the control; lower is better. error_floor: lower bound of both errors (the share of one validation image), so
    that a control without errors does not make every other run infinitely bad. NaN when the instability is NaN.
    """
    if not control_instability > 0:
        raise ValueError(f"control_instability = {control_instability}: expected a positive number")
    if not error_floor > 0:
        raise ValueError(f"error_floor = {error_floor}: expected a positive number")
    if not 0 <= instability_weight <= 1:
        raise ValueError(f"instability_weight = {instability_weight}: expected a number from 0 to 1")
    relative_error = max(error, error_floor) / max(control_error, error_floor)
    return instability_weight * instability / control_instability + (1 - instability_weight) * relative_error


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is not worse than `second` in any objective and better in some. Lower is better in all."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return for each point whether no other dominates it. Lower is better in all objectives."""
    return [not any(dominates(other, point) for other in points) for point in points]
