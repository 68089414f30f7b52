"""A template that falls off with the larger of the two offsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from ipcnn_ray.spec.section import Count, FieldIssue, OmitDefaultFromDigest, Positive
from ipcnn_ray.spec.template import PartTemplate


class PyramidTemplate(PartTemplate):
    """A pyramid seen from above. It has a slope."""

    shape: Literal["pyramid"]
    """A pyramid seen from above."""
    base: Positive = 0.5
    """Half the side of its base, share of n; the template crosses zero there."""
    power: Annotated[Count, OmitDefaultFromDigest()] = 1
    """Exponent of the slope; 1 is straight."""

    function: ClassVar[str] = "ipcnn_squares.pyramid:pyramid"

    def issues(self) -> Iterator[FieldIssue]:
        if self.power == 2:
            yield self.issue("power", "must be 1, or at least 3")


def pyramid(offsets: Any, *, base: float, power: int) -> Any:
    """max(1 - (d / (base n))^power, -1), d the larger of the two offsets."""
    return (1 - (offsets.distance("linf") / (base * offsets.n)) ** power).clamp(min=-1)
