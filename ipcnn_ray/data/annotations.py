"""What the annotation of a dataset says of one category, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.image_io import Box
from ipcnn_ray.data.index import Stamps
from ipcnn_ray.errors import Problem

AGAIN = "Fetch the file again."


@dataclass(frozen=True)
class Annotated:
    """One object as its annotation describes it."""

    image: str
    """Name of its photograph's file, below the folder of photographs."""
    box: Box
    share_K2: NDArray[np.float64]
    """Landmarks as shares of the box, 0 at the centre of its first pixel and 1 at that of its last; NaN unseen."""
    name: str
    trained: bool | None = None
    """Whether the dataset's own split has it for training; None where there is none."""
    sizes_K2: NDArray[np.float64] | None = None
    """(height, width) of the parts' boxes as shares of the crop; NaN where unknown, None where none is known."""
    masks: Sequence[NDArray[np.float32] | None] = ()
    """Patch of each part (`data/part_masks.py`), where masks are read."""
    mask_size: tuple[int, int] | None = None
    """(width, height) of the masks, which must be the photograph's."""


@dataclass
class Annotations:
    """All objects of a category, and what they were read from."""

    objects: list[Annotated] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """The files whose content matters."""
    made_from: Stamps = field(default_factory=dict)
    """Those files and the folders whose listing matters, as they were before they were read."""
    lacks: tuple[str, ...] = ()
    """Landmarks that this category does not have."""
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, where: Path | str, what: str, advice: str) -> None:
        self.problems.append(Problem(str(where), what, advice))


def upright(where: str, box: Box, found: Annotations) -> bool:
    """Whether a box has an inside; told in `found` where it has none."""
    if box[0] < box[2] and box[1] < box[3]:
        return True
    found.wrong(
        where, f"box (xmin, ymin, xmax, ymax) = {box} is inverted or flat", "Expected xmin < xmax and ymin < ymax."
    )
    return False


def box_of(sides: Iterable[Any]) -> Box:
    """xmin, ymin, xmax, ymax as they stand in a file: text, numbers, or arrays of one."""
    xmin, ymin, xmax, ymax = (
        float(side if isinstance(side, str) else np.asarray(side, np.float64).item()) for side in sides
    )
    return round(xmin), round(ymin), round(xmax), round(ymax)
