"""Photographs of bright squares. Below IPCNN_DATA: squares/images/*.png, squares/<category>/table.csv, voc/neg."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.photographs import AGAIN, NEGATIVES, AnnotatedObject, Annotations, PhotographDataset
from ipcnn_ray.spec.data import Negatives, OneOrMore
from ipcnn_ray.spec.section import FieldIssue, NotNegative


class Squares(PhotographDataset):
    """Bright squares with a corner and a middle."""

    kind: Literal["squares"]
    """Photographs of squares."""
    category: OneOrMore[Literal["square", "frame"]] = "square"
    """What the positive images show."""
    landmarks: Annotated[tuple[Literal["corner", "middle"], ...], Field(min_length=1)] = ("corner", "middle")
    """The landmarks that metrics are taken over."""
    negatives: Negatives = 10
    """Number of negative images."""
    min_side: NotNegative = 10
    """Root of the smallest area of a box, pixels."""

    title: ClassVar[str] = "Squares: bright squares on noise"
    folder: ClassVar[str] = "squares"
    photographs: ClassVar[str] = "squares/images"
    folders: ClassVar[tuple[str, ...]] = ("squares/images", NEGATIVES)
    counts: ClassVar[dict[str, str]] = {"photographs": "squares/images/*.png"}
    annotated: ClassVar[str] = "squares/*/table.csv"

    def issues(self) -> Iterator[FieldIssue]:
        if self.category == "frame" and "middle" in self.landmarks:
            yield self.issue("landmarks", "a frame has no middle; take [corner]", "category")

    def annotations(self, folder: Path) -> list[Annotations]:
        return [self._table(folder / category / "table.csv") for category in self.categories]

    def _table(self, table: Path) -> Annotations:
        """Read file, box, and (row, col) of each landmark as shares of the box."""
        annotations = Annotations()
        if not table.is_file():
            annotations.add_issue(table, "no such file", AGAIN)
            return annotations
        annotations.files.append(table)
        annotations.stamp(table)
        with table.open(newline="") as rows:
            for row in csv.DictReader(rows):
                box = tuple(int(row[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
                places = [[float(row[f"{name}_row"]), float(row[f"{name}_col"])] for name in self.landmarks]
                annotations.objects.append(AnnotatedObject(row["file"], box, places, row["file"]))
        return annotations
