"""Photographs of bright squares. Below IPCNN_DATA: squares/images/*.png, squares/squares.csv, voc/neg."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.photographs import NEGATIVES, AnnotatedObject, Annotations, PhotographDataset
from ipcnn_ray.spec.data import Negatives, OneOrMore


class Squares(PhotographDataset):
    """Bright squares with a corner and a middle."""

    kind: Literal["squares"]
    """Photographs of squares."""
    category: OneOrMore[Literal["square"]] = "square"
    """What the positive images show."""
    landmarks: Annotated[tuple[Literal["corner", "middle"], ...], Field(min_length=1)] = ("corner", "middle")
    """The landmarks that metrics are taken over."""
    negatives: Negatives = 10
    """Number of negative images."""

    title: ClassVar[str] = "Squares: bright squares on noise"
    folder: ClassVar[str] = "squares"
    photographs: ClassVar[str] = "squares/images"
    folders: ClassVar[tuple[str, ...]] = ("squares/images", NEGATIVES)
    counts: ClassVar[dict[str, str]] = {"photographs": "squares/images/*.png"}

    def annotations(self, folder: Path) -> list[Annotations]:
        """Read squares.csv: file, box, and (row, col) of each landmark as shares of the box."""
        table = folder / "squares.csv"
        annotations = Annotations(files=[table])
        annotations.stamp(table)
        with table.open(newline="") as rows:
            for row in csv.DictReader(rows):
                box = tuple(int(row[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
                places = [[float(row[f"{name}_row"]), float(row[f"{name}_col"])] for name in self.landmarks]
                annotations.objects.append(AnnotatedObject(row["file"], box, places, row["file"]))
        return [annotations]
