"""Caltech-UCSD Birds 200-2011, from its own text annotation.

Layout under IPCNN_DATA: CUB_200_2011/{images.txt,image_class_labels.txt,classes.txt,bounding_boxes.txt,
train_test_split.txt,parts/parts.txt,parts/part_locs.txt,images/<species>/*.jpg}; voc/neg/NNNNN.JPEG.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from ipcnn_ray.data.crop_store import stamps
from ipcnn_ray.data.photographs import (
    AGAIN,
    Annotated,
    Annotations,
    Box,
    Folder,
    ImageFileError,
    Source,
    gather,
    image_size,
    named,
)
from ipcnn_ray.errors import DataError
from ipcnn_ray.spec.data import Cub200

VERSION = "1"
"""Of the crops that are made from the same files: a change here makes every store anew."""
ALL = "bird"
"""The category that holds all species."""


def read(data: Cub200, root: Path | None) -> Source:
    """The birds of all categories, and the negatives; DataError with everything that is wrong."""
    folder = named(root, "CUB_200_2011", data.kind)
    tables = read_tables(folder)
    found_L = [of_category(data, tables, folder, category) for category in data.categories]
    found_L[0].issues[:0] = tables.found.issues
    found_L[0].files[:0] = tables.found.files
    found_L[0].made_from |= tables.found.made_from
    if tables.found.issues:
        raise DataError(list(dict.fromkeys(problem for found in found_L for problem in found.issues)))
    return gather(
        found_L,
        Folder(folder.parent, folder / "images", folder.parent / "voc/neg"),
        categories=data.categories,
        landmarks=data.landmarks,
        min_side=data.min_side,
        negatives=data.negatives,
    )


@dataclass
class Tables:
    """The text files, by image number."""

    images: dict[int, str] = field(default_factory=dict)
    """Path below images/."""
    species: dict[int, int] = field(default_factory=dict)
    boxes: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """x, y, width, height in pixels, the first of them 1."""
    trained: dict[int, bool] = field(default_factory=dict)
    locations: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    """(x, y) of what is visible, by (image, part)."""
    classes: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    found: Annotations = field(default_factory=Annotations)


def read_tables(folder: Path) -> Tables:
    """All text files; what is wrong with them is in `found`, each line with its number."""
    tables, found = Tables(), Annotations()
    tables.found = found
    for number, (name,) in _lines(folder / "images.txt", 1, found):
        tables.images[number] = name
    for number, (name,) in _lines(folder / "classes.txt", 1, found):
        tables.classes[name] = number
    for number, (name,) in _lines(folder / "parts/parts.txt", 1, found):
        tables.parts[name.replace(" ", "_")] = number
    for number, (label,) in _lines(folder / "image_class_labels.txt", 1, found, numbers=True):
        tables.species[number] = int(label)
    for number, (used,) in _lines(folder / "train_test_split.txt", 1, found, numbers=True):
        tables.trained[number] = float(used) == 1
    for number, sides in _lines(folder / "bounding_boxes.txt", 4, found, numbers=True):
        tables.boxes[number] = tuple(map(float, sides))
    for number, (part, x, y, visible) in _lines(folder / "parts/part_locs.txt", 4, found, numbers=True):
        if float(visible) == 1:
            tables.locations[number, int(part)] = (float(x), float(y))
    if not found.issues:
        for name, table in (
            ("image_class_labels.txt", tables.species),
            ("bounding_boxes.txt", tables.boxes),
            ("train_test_split.txt", tables.trained),
        ):
            missing = sorted(set(tables.images) - set(table))
            if missing:
                what = f"says nothing of {len(missing)} of the {len(tables.images)} images, first {missing[0]}"
                found.wrong(folder / name, what, AGAIN)
    return tables


def _lines(path: Path, fields: int, found: Annotations, *, numbers: bool = False) -> list[tuple[int, list[str]]]:
    """(image or other number, further fields) of every line; a single field is the rest of its line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        found.wrong(path, f"cannot be read: {why}", "Unpack CUB_200_2011.tgz there again.")
        return []
    found.files.append(path)
    found.made_from |= stamps([path])
    rows: list[tuple[int, list[str]]] = []
    for count, line in enumerate(text.splitlines(), start=1):
        words = line.split(maxsplit=1 if fields == 1 else -1)
        try:
            if len(words) != fields + 1 or (numbers and not all(math.isfinite(float(word)) for word in words[1:])):
                raise ValueError(line)
            rows.append((int(words[0]), words[1:]))
        except ValueError:
            what = "numbers" if numbers else "a name"
            found.wrong(f"{path}:{count}", f"{line[:60]!r} is not a number and {fields} {what} more", AGAIN)
            break
    return rows


def of_category(data: Cub200, tables: Tables, folder: Path, category: str) -> Annotations:
    """The birds of one species, or of all.

    A landmark is the dataset's own point. It is not seen where the dataset says so, and where it lies outside the box
    (released `getPart`).
    Boxes begin at the rounded-down (x, y), end width and height further on (released `readAnnotation`), and are cut at
    the image's edges (released `getI`).
    Deviations: the released metric measures on 3,000 or so of the test images that its sampling.mat lists; here on
    those that `eval.images` names. It takes landmarks for pixels of the crop at 224 x 224 at every image size.
    """
    found = Annotations()
    if category != ALL and category not in tables.classes:
        near = get_close_matches(category, tables.classes, n=1)
        advice = f"data.category is {ALL} or a name of classes.txt.{f' Did you mean {near[0]!r}?' if near else ''}"
        found.wrong(folder / "classes.txt", f"has no species {category!r}", advice)
        return found
    parts = {}
    for name in data.landmarks:
        if name not in tables.parts:
            there = ", ".join(tables.parts)
            found.wrong(folder / "parts/parts.txt", f"has no part {name!r}; it has {there}", AGAIN)
        else:
            parts[name] = tables.parts[name]
    if found.issues or tables.found.issues:
        return found
    for number, image in tables.images.items():
        if category == ALL or tables.species[number] == tables.classes[category]:
            _add(number, image, tables, list(parts.values()), folder, found)
    return found


def _add(number: int, image: str, tables: Tables, parts: list[int], folder: Path, found: Annotations) -> None:
    path = folder / "images" / image
    try:
        width, height = image_size(path)
    except ImageFileError as error:
        missing = "no such image" if not path.is_file() else str(error)
        found.wrong(path, missing, f"images.txt names it as number {number}. {AGAIN}")
        return
    x, y, wide, high = (math.floor(side) for side in tables.boxes[number])
    box: Box = (max(x, 1), max(y, 1), min(x + wide, width), min(y + high, height))
    if box[0] >= box[2] or box[1] >= box[3]:
        what = f"its box {tables.boxes[number]} is not inside the {width} x {height} image"
        found.wrong(path, what, f"Number {number} of bounding_boxes.txt: x, y, width, height. {AGAIN}")
        return
    share = np.full((len(parts), 2), np.nan)
    for k, part in enumerate(parts):
        col, row = tables.locations.get((number, part), (math.nan, math.nan))
        if box[0] <= col <= box[2] and box[1] <= row <= box[3]:
            share[k] = (row - box[1]) / (box[3] - box[1]), (col - box[0]) / (box[2] - box[0])
    found.objects.append(Annotated(image, box, share, f"{Path(image).stem}", tables.trained[number]))
