"""Caltech-UCSD Birds 200-2011, from its own text annotation.

Layout below IPCNN_DATA: CUB_200_2011/{images.txt,image_class_labels.txt,classes.txt,bounding_boxes.txt,
train_test_split.txt,parts/parts.txt,parts/part_locs.txt,images/<species>/*.jpg}; voc/neg/NNNNN.JPEG.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.datasets.dataset import Archive, released_archive
from ipcnn_ray.data.photographs import AGAIN, NEGATIVES, UNSEEN, AnnotatedObject, Annotations, PhotographDataset, Source
from ipcnn_ray.errors import DataError
from ipcnn_ray.spec.data import Negatives, OneOrMore
from ipcnn_ray.spec.section import Count, ErrorMessage, FieldIssue, NotNegative
from ipcnn_ray.utils.text import did_you_mean

if TYPE_CHECKING:
    from ipcnn_ray.data.split import Items

ALL = "bird"
"""The category that holds all species."""
Species = Annotated[
    str,
    Field(pattern=r"^(bird|[0-9]{3}\.[A-Za-z_]+)$"),
    ErrorMessage("must be bird (all species together) or a species of classes.txt, such as 001.Black_footed_Albatross"),
]
BirdPart = Literal[
    "back", "beak", "belly", "breast", "crown", "forehead", "left_eye", "left_leg", "left_wing", "nape", "right_eye",
    "right_leg", "right_wing", "tail", "throat",
]  # fmt: skip


class Cub200(PhotographDataset):
    """Caltech-UCSD Birds 200-2011: all birds against fixed negatives, or species from each other.

    The birds are split as the dataset splits them, and not mirrored; the first half of the negatives is trained on.
    """

    kind: Literal["cub200"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: OneOrMore[Species] = "bird"
    """`bird`: all species together (released). A species of classes.txt, such as 001.Black_footed_Albatross."""
    landmarks: Annotated[tuple[BirdPart, ...], Field(min_length=1)] = ("back", "forehead", "tail")
    """The landmarks that location instability is taken over (released: parts 1, 6 and 14: back, forehead and tail)."""
    negatives: Negatives = 1000
    """Number of negative images used, from 00001.JPEG up. Default for several categories: 0."""
    negative_repeats: Count = 4
    """How often each negative image is there (released: 4)."""
    min_side: NotNegative = 50
    """Birds whose box covers fewer than min_side^2 square pixels are left out."""

    title: ClassVar = "Caltech-UCSD Birds 200-2011: 11,788 birds of 200 species with 15 parts"
    folder: ClassVar = "CUB_200_2011"
    photographs: ClassVar = "CUB_200_2011/images"
    archives: ClassVar = (
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            (("CUB_200_2011", ""),),
            "97eceeb196236b17998738112f37df78",
        ),
        released_archive(),
    )
    folders: ClassVar = ("CUB_200_2011", NEGATIVES)
    split_source: ClassVar = "train_test_split.txt"
    counts: ClassVar = {"photographs": f"{photographs}/*/*.jpg", "negatives": f"{NEGATIVES}/*.JPEG"}

    def issues(self) -> Iterator[FieldIssue]:
        if not isinstance(self.category, str) and ALL in self.category:
            yield self.issue("category", f"{ALL} holds all the others; list species, or take {ALL} alone")

    def annotations(self, folder: Path) -> list[Annotations]:
        tables = read_tables(folder)
        annotations_L = [of_category(self, tables, folder, category) for category in self.categories]
        first, source = annotations_L[0], tables.source
        first.issues[:0], first.files[:0] = source.issues, source.files
        first.made_from |= source.made_from
        if source.issues:
            raise DataError(list(dict.fromkeys(issue for annotations in annotations_L for issue in annotations.issues)))
        return annotations_L

    def split_items(self, source: Source) -> tuple[Items, Items]:
        from ipcnn_ray.data.split import items_as_given

        in_training = [bool(crop.item.in_training) for crop in source.crops if crop.item]
        return items_as_given(in_training, source.negatives, self.negative_repeats)


@dataclass
class Tables:
    """The text files, by image number."""

    source: Annotations
    """The files and their issues."""
    images: dict[int, str]
    """Path below images/."""
    classes: dict[str, int]
    parts: dict[str, int]
    species: dict[int, int]
    in_training: dict[int, bool]
    boxes: dict[int, tuple[float, ...]]
    """x, y, width, height in pixels, the first of them 1."""
    locations: dict[tuple[int, int], tuple[float, float]]
    """(x, y) of visible parts, by (image, part)."""


def read_tables(folder: Path) -> Tables:
    """Read all text files. Their issues are in `source`, each with the number of its line."""
    source = Annotations()

    def names(file: str) -> list[tuple[int, str]]:
        return [(number, name) for number, (name,) in _lines(folder / file, 1, source)]

    def values(file: str, fields: int) -> list[tuple[int, list[str]]]:
        return _lines(folder / file, fields, source, numbers=True)

    tables = Tables(
        source,
        images=dict(names("images.txt")),
        classes={name: number for number, name in names("classes.txt")},
        parts={name.replace(" ", "_"): number for number, name in names("parts/parts.txt")},
        species={number: int(label) for number, (label,) in values("image_class_labels.txt", 1)},
        in_training={number: float(used) == 1 for number, (used,) in values("train_test_split.txt", 1)},
        boxes={number: tuple(map(float, sides)) for number, sides in values("bounding_boxes.txt", 4)},
        locations={
            (number, int(part)): (float(x), float(y))
            for number, (part, x, y, visible) in values("parts/part_locs.txt", 4)
            if float(visible) == 1
        },
    )
    if not source.issues:
        for name, table in (
            ("image_class_labels.txt", tables.species),
            ("bounding_boxes.txt", tables.boxes),
            ("train_test_split.txt", tables.in_training),
        ):
            missing = sorted(set(tables.images) - set(table))
            if missing:
                what = f"says nothing of {len(missing)} of the {len(tables.images)} images, first {missing[0]}"
                source.add_issue(folder / name, what, AGAIN)
    return tables


def _lines(path: Path, fields: int, source: Annotations, *, numbers: bool = False) -> list[tuple[int, list[str]]]:
    """Return (image or other number, further fields) of every line; a single field is the rest of its line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        source.add_issue(path, f"cannot be read: {why}", "Unpack CUB_200_2011.tgz there again.")
        return []
    source.files.append(path)
    source.stamp(path)
    rows: list[tuple[int, list[str]]] = []
    for count, line in enumerate(text.splitlines(), start=1):
        words = line.split(maxsplit=1 if fields == 1 else -1)
        try:
            if len(words) != fields + 1 or (numbers and not all(math.isfinite(float(word)) for word in words[1:])):
                raise ValueError(line)
            rows.append((int(words[0]), words[1:]))
        except ValueError:
            what = "numbers" if numbers else "a name"
            source.add_issue(f"{path}:{count}", f"{line[:60]!r} is not a number and {fields} {what} more", AGAIN)
            break
    return rows


def of_category(data: Cub200, tables: Tables, folder: Path, category: str) -> Annotations:
    """Return the birds of one species, or of all.

    A landmark is the dataset's own point. It is not seen where the dataset says so or it lies outside the box (released
    `getPart`).
    Boxes begin at the rounded-down (x, y), end width and height further on (released `readAnnotation`), and are cut at
    the image's edges (released `getI`).
    Deviations: the released metric measures on 3,000 or so of the test images that its sampling.mat lists; here on
    those that `eval.images` names. It takes landmarks for pixels of the crop at 224 x 224 at every image size.
    """
    annotations = Annotations()
    if category != ALL and category not in tables.classes:
        advice = f"data.category is {ALL} or a name of classes.txt.{did_you_mean(category, list(tables.classes))}"
        annotations.add_issue(folder / "classes.txt", f"has no species {category!r}", advice)
        return annotations
    parts = {}
    for name in data.landmarks:
        if name not in tables.parts:
            known = ", ".join(tables.parts)
            annotations.add_issue(folder / "parts/parts.txt", f"has no part {name!r}; it has {known}", AGAIN)
        else:
            parts[name] = tables.parts[name]
    if annotations.issues or tables.source.issues:
        return annotations
    for number, image in tables.images.items():
        if category == ALL or tables.species[number] == tables.classes[category]:
            _add(number, image, tables, list(parts.values()), folder, annotations)
    return annotations


def _add(number: int, image: str, tables: Tables, parts: list[int], folder: Path, annotations: Annotations) -> None:
    from ipcnn_ray.data.crops import ImageFileError, image_size

    path = folder / "images" / image
    try:
        width, height = image_size(path)
    except ImageFileError as error:
        missing = "no such image" if not os.path.isfile(path) else str(error)
        annotations.add_issue(path, missing, f"images.txt names it as number {number}. {AGAIN}")
        return
    x, y, wide, high = (math.floor(side) for side in tables.boxes[number])
    box = (max(x, 1), max(y, 1), min(x + wide, width), min(y + high, height))
    if box[0] >= box[2] or box[1] >= box[3]:
        what = f"its box {tables.boxes[number]} is not inside the {width} x {height} image"
        annotations.add_issue(path, what, f"Number {number} of bounding_boxes.txt: x, y, width, height. {AGAIN}")
        return
    landmarks = [UNSEEN] * len(parts)
    for k, part in enumerate(parts):
        col, row = tables.locations.get((number, part), UNSEEN)
        if box[0] <= col <= box[2] and box[1] <= row <= box[3]:
            landmarks[k] = (row - box[1]) / (box[3] - box[1]), (col - box[0]) / (box[2] - box[0])
    annotations.objects.append(AnnotatedObject(image, box, landmarks, Path(image).stem, tables.in_training[number]))
