"""Several objectives at once: one combined number (the part-template paper's future work), and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

NEAREST = 0.01
"""Distance from the best value below which two runs count as equal, as a share of the best value."""


def combined_objective(
    value: float,
    error: float,
    *,
    control_value: float,
    control_error: float,
    weight: float,
    images: float,
    better: Literal["higher", "lower"] = "lower",
    best: float | None = 0.0,
) -> float:
    """Return w * value / control's value + (1 - w) * error / control's error; 1 is the control, lower is better.

    value: of a metric of interpretability; its default direction and best value are those of location instability.

    - With a best value, the distances from it are compared: |best - value| / |best - control's value|, each at least a
      hundredth of the best value, so that a control that has reached it does not make every other run infinitely bad.
    - Without one, value / control's value, or its inverse where higher is better; both must be positive, else NaN.
    - Both errors are at least one standard error of the control's error e over the n validation images, sqrt(e (1 - e)
      / n), and at least 1 / n. Smaller differences are those of single images.

    NaN when the value is NaN. Raises ValueError for a control that nothing can be compared with (`comparable`), and for
    numbers out of range.
    """
    if not comparable(control_value, best):
        expected = "a finite number" if best else "a positive number"
        raise ValueError(f"control_value = {control_value}: expected {expected}")
    if not images >= 1:
        raise ValueError(f"images = {images}: expected at least 1")
    if not 0 <= control_error <= 1:
        raise ValueError(f"control_error = {control_error}: expected a number from 0 to 1")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight = {weight}: expected a number from 0 to 1")
    if best is not None:
        least = NEAREST * abs(best)
        own, control = (max(abs(best - number), least) for number in (value, control_value))
    elif not value > 0:
        own, control = math.nan, 1.0
    else:
        own, control = (value, control_value) if better == "lower" else (control_value, value)
    floor = max(1 / images, math.sqrt(control_error * (1 - control_error) / images))
    return weight * (own / control) + (1 - weight) * (max(error, floor) / max(control_error, floor))


def comparable(control_value: float, best: float | None) -> bool:
    """Whether runs can be compared with a control of this value. best: see `combined_objective`."""
    return math.isfinite(control_value) and (bool(best) or control_value > 0)


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is not worse than `second` in any objective and better in some. Lower is better in all."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return for each point whether no other dominates it. Lower is better in all objectives."""
    return [not any(dominates(other, point) for other in points) for point in points]
