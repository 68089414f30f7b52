"""A template that falls off with the larger of the two offsets."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ipcnn_ray.spec.section import Positive
from ipcnn_ray.spec.template import PartTemplate


class PyramidTemplate(PartTemplate):
    """A pyramid seen from above."""

    shape: Literal["pyramid"]
    """A pyramid seen from above."""
    base: Positive = 0.5
    """Half the side of its base, share of n; the template crosses zero there."""

    function: ClassVar[str] = "ipcnn_squares.pyramid:pyramid"


def pyramid(offsets: Any, *, base: float) -> Any:
    """max(1 - d / (base n), -1), d the larger of the two offsets."""
    return (1 - offsets.distance("linf") / (base * offsets.n)).clamp(min=-1)
