"""Rows of a table of photographs: read from CSV, and checked against the images that they name."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ipcnn_ray.data.photographs import UNSEEN, AnnotatedObject, Annotations
from ipcnn_ray.utils.files import leaves_its_folder
from ipcnn_ray.utils.text import did_you_mean, shortened_list

if TYPE_CHECKING:
    from ipcnn_ray.data.crops import Box

EDGES = ("xmin", "ymin", "xmax", "ymax")
SPLITS = {"train": True, "val": False}
COLUMNS = ("image", "category", "split", *EDGES)
NEEDED = ("image", "category")
"""Columns of a table of photographs; what else it has is up to its author."""
SHOWN = 12
"""Names that a message lists."""


@dataclass(frozen=True)
class TableRow:
    """An object or a negative, as a table has it: numbers are finite, nothing else is checked."""

    where: str
    """Its place for messages: `table.csv:17`."""
    number: str
    """Line, or id of the annotation."""
    image: str
    """Name of the image, below the folder of images."""
    category: str | None
    """None for a negative."""
    edges: tuple[float, ...] | None
    """xmin, ymin, xmax, ymax in pixels, 0 the left or upper edge of the image; None for the whole image."""
    landmarks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(x, y) of the landmarks that are seen, in pixels, 0 the center of the first."""
    in_training: bool | None = None
    size: tuple[int, int] | None = None
    """(width, height) that the table gives the image."""


@dataclass(frozen=True)
class TableRows:
    """The rows of a table, and the names of all landmarks that it has."""

    rows: Sequence[TableRow] = ()
    landmarks: Sequence[str] = ()


class RowReader:
    """Checks rows against their images, and returns them as objects."""

    def __init__(self, root: Path, images: str, landmarks: Sequence[str], table: Annotations, mend: str) -> None:
        """root: IPCNN_DATA. images: folder below it that the names of images begin in. table: takes the issues. mend:
        what to do about an image that cannot be read."""
        self.root, self.images, self.landmarks, self.table, self.mend = root, images, landmarks, table, mend
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self._seen: dict[tuple[str, tuple[float, ...] | None], TableRow] = {}
        self._shown: dict[str, TableRow] = {}

    def item(self, row: TableRow) -> AnnotatedObject | None:
        """Return the object or negative of a row; None if it has an issue, or is left out."""
        if (size := self._size(row)) is None or not self._is_new(row):
            return None
        width, height = size
        edges = row.edges or (0, 0, width, height)
        if edges[0] >= edges[2] or edges[1] >= edges[3]:
            self._refuse(row, f"box {_box_words(edges)} is inverted or flat", "Expected xmin < xmax and ymin < ymax.")
            return None
        xmin, ymin, xmax, ymax = (math.floor(edge + 0.5) for edge in edges)
        if xmin < 0 or ymin < 0 or xmax > width or ymax > height:
            advice = f"The whole image is 0, 0, {width}, {height}."
            self._refuse(row, f"box {_box_words(edges)} is not inside its image", advice)
            return None
        if xmax - xmin < 2 or ymax - ymin < 2:
            self.table.left_out["narrower than 2 pixels"] += 1
            return None
        box = (xmin + 1, ymin + 1, xmax, ymax)
        positions = [self._position(row, name, size, edges, box) for name in self.landmarks]
        known = [position for position in positions if position is not None]
        if len(known) < len(positions):
            return None
        image = (PurePosixPath(self.images) / row.image).as_posix()
        name = f"{Path(row.image).stem} {row.number}"
        return AnnotatedObject(image, box, known, name, row.in_training)

    def _refuse(self, row: TableRow, what: str, advice: str) -> None:
        self.table.add_issue(row.where, what, advice)

    def _size(self, row: TableRow) -> tuple[int, int] | None:
        """Return width and height of a row's image; None, with an issue for its first row, if it cannot be read."""
        from ipcnn_ray.data.crops import ImageFileError, image_size

        if row.image in self._sizes:
            return self._sizes[row.image]
        size: tuple[int, int] | None = None
        path = self.root / self.images / row.image
        if leaves_its_folder(row.image):
            advice = "Images are named by their path below data.images, or below the folder of the table."
            self._refuse(row, f"image {row.image!r} is not inside the folder of images", advice)
        elif not os.path.isfile(path):  # False, too, for a name that no file can have
            slash = " Write / between folders." if "\\" in row.image else ""
            self._refuse(row, f"image {row.image!r}: no such file {path}", f"Correct it, or data.images.{slash}")
        else:
            try:
                size = image_size(path, upright=True)
            except ImageFileError as error:
                self._refuse(row, f"image {row.image!r} {error}", self.mend)
        if size and row.size and row.size != size:
            here, there = (f"{width} x {height}" for width, height in (size, row.size))
            what = f"image {row.image!r} is {here} pixels, and the table says {there}"
            self._refuse(row, what, "Use the images that were annotated, at their size.")
            size = None
        self._sizes[row.image] = size
        return size

    def _is_new(self, row: TableRow) -> bool:
        """Return whether no earlier row has the same image and box, or contradicts this one; else add an issue."""
        image = PurePosixPath(row.image).as_posix()
        earlier = self._seen.setdefault((image, row.edges), row)
        other = self._shown.setdefault(image, row)
        if earlier is not row:
            same = "" if earlier.category == row.category else ", and another category"
            what = f"has the image and the box of {earlier.where}{same}"
            self._refuse(row, what, "Keep one of the two; several objects of an image have boxes of their own.")
        elif (other.category is None) != (row.category is None):
            roles = {True: "is a negative", False: "shows an object"}
            here, there = (roles[one.category is None] for one in (row, other))
            what = f"image {row.image!r} {here}, and at {other.where} it {there}"
            self._refuse(row, what, "A negative shows none of the categories: keep one of the two.")
        else:
            return True
        return False

    def _position(
        self, row: TableRow, name: str, size: tuple[int, int], edges: Sequence[float], box: Box
    ) -> tuple[float, float] | None:
        """Return (row, col) of a landmark as shares of the box, `UNSEEN` where it is not seen; None with an issue.

        A position on the outer half of a pixel at the edge of the box is moved to the edge.
        """
        if name not in row.landmarks:
            return UNSEEN
        x, y = row.landmarks[name]
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            what = f"landmark {name!r} at x, y = {x:g}, {y:g} is outside the image of {size[0]} x {size[1]} pixels"
            self._refuse(row, what, "Correct it, or leave it out where it is not seen.")
            return None
        if not (edges[0] <= x <= edges[2] and edges[1] <= y <= edges[3]):
            self.table.left_out["landmarks outside the box of their object, taken as not seen"] += 1
            return UNSEEN
        col, line = (
            (min(max(value, first - 1.5), last - 0.5) - (first - 1)) / (last - first)
            for value, first, last in ((x, box[0], box[2]), (y, box[1], box[3]))
        )
        return line, col


def _box_words(edges: Sequence[float]) -> str:
    return f"({', '.join(f'{edge:g}' for edge in edges)})"


def read_csv(path: Path, landmarks: Sequence[str], table: Annotations, needed: Sequence[str] = NEEDED) -> TableRows:
    """Read a CSV or TSV file with a header; the rows have those of its landmarks that are listed. `table` takes the
    issues, each with its line. needed: columns that it must have."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8: byte {error.object[error.start]:#04x}"
        table.add_issue(f"{path}:{line}", what, "Save it as UTF-8 (in Excel: CSV UTF-8).")
        return TableRows()
    except OSError as error:
        table.add_issue(path, f"cannot be read: {error.strerror}", "Let this account read it.")
        return TableRows()
    header, _, rest = text.partition("\n")
    if not rest.strip():
        what = "has a header and no rows" if text.strip() else "is empty"
        table.add_issue(path, what, f"Expected a header with {' and '.join(needed)}, and a row for each object.")
        return TableRows()
    delimiter = max(",;\t", key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        names = [name.strip() for name in next(lines)]
        if not _is_header(names, needed, landmarks, path, table):
            return TableRows()
        for cells in lines:
            if cells and (row := _csv_row(f"{path}:{lines.line_num}", names, cells, landmarks, table)):
                rows.append(row)
    except csv.Error as error:
        table.add_issue(f"{path}:{lines.line_num}", f"is not CSV: {error}", "Mend its quotes, or save it as CSV again.")
        return TableRows()
    known = [name.removesuffix("_x") for name in names if name.endswith("_x") and f"{name[:-2]}_y" in names]
    return TableRows(rows, known)


def _is_header(
    names: list[str], needed: Sequence[str], landmarks: Sequence[str], path: Path, table: Annotations
) -> bool:
    """Return whether a header has what is needed, and nothing twice or nearly right; else add issues."""
    where, before, listed = f"{path}:1", len(table.issues), shortened_list(names, SHOWN)
    for name, count in Counter(names).items():
        if count > 1:
            table.add_issue(where, f"has the column {name!r} {count} times", "Keep one.")
        elif name not in COLUMNS and name.lower() in COLUMNS and name.lower() not in names:
            table.add_issue(where, f"has a column {name!r}", f"Call it {name.lower()!r}.")
    columns = [*needed, *(EDGES if set(EDGES) & set(names) else ())]
    columns += [f"{name}_{axis}" for name in landmarks for axis in "xy"]
    nearly_right = len(table.issues) > before
    for name in dict.fromkeys(columns):
        if name not in names and not nearly_right:
            table.add_issue(where, f"has no column {name!r}", f"It has: {listed}.{did_you_mean(name, names)}")
    return len(table.issues) == before


def _csv_row(
    where: str, names: list[str], cells: list[str], landmarks: Sequence[str], table: Annotations
) -> TableRow | None:
    """Return a row; None, with an issue, if a cell is wrong."""
    if len(cells) != len(names):
        table.add_issue(where, f"has {len(cells)} cells, and the header {len(names)}", "Quote cells that hold commas.")
        return None
    before = len(table.issues)
    row = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    image, category, split = row["image"], row.get("category"), row.get("split")
    if not image:
        table.add_issue(where, "names no image", "Write the path of the image, below data.images.")
    if split is not None and split not in SPLITS:
        what = f"split {split!r}" if split else "has no split"
        table.add_issue(where, what, "Write train or val in every row, or remove the column.")
    edges = _numbers(where, row, EDGES, table) if EDGES[0] in row else None
    seen = {}
    for name in landmarks:
        if place := _numbers(where, row, (f"{name}_x", f"{name}_y"), table):
            seen[name] = (place[0], place[1])
    if len(table.issues) > before:
        return None
    in_training = None if split is None else SPLITS[split]
    return TableRow(where, where.rpartition(":")[2], image, category or None, edges, seen, in_training)


def _numbers(
    where: str, row: Mapping[str, str], columns: Sequence[str], table: Annotations
) -> tuple[float, ...] | None:
    """Return the numbers of some cells; None if all are empty, or with an issue if one is no finite number."""
    given = [row[column] for column in columns]
    if not any(given):
        return None
    try:
        numbers = tuple(map(float, given))
    except ValueError:
        numbers = (math.nan,)
    if all(map(math.isfinite, numbers)):
        return numbers
    shown = ", ".join(f"{column} = {text!r}" for column, text in zip(columns, given, strict=True))
    table.add_issue(where, f"{shown}: not {len(columns)} numbers", "Write numbers of pixels, or leave all empty.")
    return None
