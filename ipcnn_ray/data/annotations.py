"""Annotated objects of photographs, as the reader of a dataset returns them. Imports no numpy: commands load it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipcnn_ray.errors import Issue
from ipcnn_ray.utils.files import Stamps, stamps
from ipcnn_ray.utils.matlab import MatFileError, read_mat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AGAIN = "Fetch the file again."
Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax; 1-based and inclusive, as in VOC."""
UNSEEN = (float("nan"), float("nan"))
"""Position or size of a landmark that is not seen."""


@dataclass(frozen=True)
class AnnotatedObject:
    """One object of a photograph with its K landmarks."""

    image: str
    """Name of the photograph's file, below the folder of photographs."""
    box: Box
    landmarks_K2: Sequence[Sequence[float]]
    """(row, col) as shares of the box, 0 at the center of its first pixel and 1 at that of its last; NaN unseen."""
    name: str
    in_training: bool | None = None
    """Whether the dataset's own split has it in training; None if the dataset has no split."""
    sizes_K2: Sequence[Sequence[float]] | None = None
    """(height, width) of the parts' boxes as shares of the crop, NaN where unknown; None if none is known."""
    masks: Sequence[NDArray[np.float32] | None] = ()
    """Patch of each part (see `STEPS` of crop_store.py), None for one that is not seen; empty if there are no masks."""
    mask_size: tuple[int, int] | None = None
    """(width, height) of the image that the masks were made for; it must be the photograph's."""


@dataclass
class Annotations:
    """All objects of a category, and the files that they were read from."""

    objects: list[AnnotatedObject] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Files whose content is part of the data digest."""
    made_from: Stamps = field(default_factory=dict)
    """Stamps of those files, and of folders whose listing matters, taken before they were read."""
    lacks: tuple[str, ...] = ()
    """Landmarks that this category does not have."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of objects left out, by reason."""
    issues: list[Issue] = field(default_factory=list)

    def add_issue(self, where: Path | str, what: str, advice: str) -> None:
        self.issues.append(Issue(str(where), what, advice))

    def stamp(self, *paths: Path) -> None:
        """Record the state of files and folders that are about to be read."""
        self.made_from |= stamps(paths)

    def read_structs(self, path: Path, variable: str, *fields: str) -> list[dict[str, Any]] | None:
        """Return the elements of a struct array of a .mat file; None, with an issue added, if it cannot be read."""
        if path.is_file():
            self.stamp(path)
        try:
            content = read_mat(path, variable)
        except MatFileError as error:
            self.add_issue(path, str(error), AGAIN)
            return None
        elements = content if isinstance(content, list) else [content]
        if not all(isinstance(element, dict) and all(name in element for name in fields) for element in elements):
            what = f"{variable!r} is not a struct array with the fields {' and '.join(fields)}"
            self.add_issue(path, what, AGAIN)
            return None
        self.files.append(path)
        return elements

    def is_upright(self, where: str, box: Box) -> bool:
        """Return whether a box has an inside; add an issue if it has none."""
        if box[0] < box[2] and box[1] < box[3]:
            return True
        what = f"box (xmin, ymin, xmax, ymax) = {box} is inverted or flat"
        self.add_issue(where, what, "Expected xmin < xmax and ymin < ymax.")
        return False


def box_of(sides: Iterable[Any]) -> Box:
    """Return xmin, ymin, xmax, ymax of text, numbers, or arrays of one number. Raises TypeError or ValueError."""
    xmin, ymin, xmax, ymax = (round(float(side if isinstance(side, str | float) else side.item())) for side in sides)
    return xmin, ymin, xmax, ymax
