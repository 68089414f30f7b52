"""Rows of a table from the JSON of COCO keypoints: images, categories with names of keypoints, annotations.

Source: the data format of cocodataset.org. Boxes are x, y, width, height in pixels, from the upper left corner of the
image; keypoints are x, y, visibility (0: not labelled, 1: labelled but hidden, 2: visible), x and y in pixels with 0
the center of the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipcnn_ray.data.datasets.table_rows import TableRow, TableRows
from ipcnn_ray.data.photographs import Annotations
from ipcnn_ray.utils.text import did_you_mean, shortened_list

SHAPE = "Expected the JSON of COCO keypoints: lists images, categories and annotations."
HIDDEN = "landmarks that are hidden (visibility 1), taken as not seen"
CROWDS = "crowds (iscrowd 1)"
SHOWN = 12
"""Names that a message lists."""


def read_coco(path: Path, landmarks: Sequence[str], table: Annotations) -> TableRows:
    """Read the annotations as rows, with those of their landmarks that are listed, and each image without annotations
    as a negative. `table` takes the issues."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        table.add_issue(path, f"is not UTF-8: byte {error.object[error.start]:#04x}", "Save it as UTF-8.")
        return TableRows()
    except OSError as error:
        table.add_issue(path, f"cannot be read: {error.strerror}", "Let this account read it.")
        return TableRows()
    except (ValueError, RecursionError) as error:
        table.add_issue(path, f"is not JSON: {error}", SHAPE)
        return TableRows()
    images = _by_id(content, "images", {"id": int, "file_name": str}, path, table)
    categories = _by_id(content, "categories", {"id": int, "name": str}, path, table)
    annotations = _by_id(content, "annotations", {"id": int, "image_id": int, "category_id": int}, path, table)
    if table.issues:
        return TableRows()
    keypoints = {number: _keypoint_names(category, path, table) for number, category in categories.items()}
    known = list(dict.fromkeys(name for listed in keypoints.values() for name in listed))
    _check_names([category["name"] for category in categories.values()], known, landmarks, path, table)
    if table.issues:
        return TableRows()
    if not images:
        table.add_issue(path, "lists no images", SHAPE)
    rows = []
    for number, annotation in annotations.items():
        where = f"{path} annotation {number}"
        image, category = images.get(annotation["image_id"]), categories.get(annotation["category_id"])
        if image is None or category is None:
            lacking = "image" if image is None else "category"
            what = f"names {lacking} {annotation[f'{lacking}_id']}, which the file does not list"
            table.add_issue(where, what, "Export the annotations again, or remove this one.")
        elif annotation.get("iscrowd"):
            table.left_out[CROWDS] += 1
        else:
            names = keypoints[annotation["category_id"]]
            if row := _row(where, annotation, image, str(category["name"]), names, landmarks, table):
                rows.append(row)
    annotated = {annotation["image_id"] for annotation in annotations.values()}
    for number, image in images.items():
        if number not in annotated:
            where, name = f"{path} image {number}", image["file_name"]
            rows.append(TableRow(where, f"image {number}", name, None, None, size=_size(image)))
    return TableRows(rows, known)


def _by_id(
    content: Any, key: str, fields: Mapping[str, type], path: Path, table: Annotations
) -> dict[int, dict[str, Any]]:
    """Return the entries of a list by id. Adds an issue for each that lacks a field, or has the id of another."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        table.add_issue(path, f"has no list {key!r}", SHAPE)
        return {}
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        wrong = [name for name, of in fields.items() if not isinstance(entry, dict) or type(entry.get(name)) is not of]
        if wrong:
            words = ", ".join(f"{name} ({'a number' if fields[name] is int else 'text'})" for name in wrong)
            table.add_issue(f"{path} {key}[{index}]", f"lacks {words}", "Export the file again, or mend this entry.")
        elif entry["id"] in found:
            what = f"has the id {entry['id']} of an entry before it"
            table.add_issue(f"{path} {key}[{index}]", what, "Ids are unique within a list.")
        else:
            found[entry["id"]] = entry
    return found


def _keypoint_names(category: Mapping[str, Any], path: Path, table: Annotations) -> list[str]:
    names = category.get("keypoints", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        what = f"category {category['name']!r}: its keypoints are not a list of different names"
        table.add_issue(path, what, "Give each keypoint a name of its own.")
        return []
    return names


def _check_names(
    names: Sequence[str], known: Sequence[str], landmarks: Sequence[str], path: Path, table: Annotations
) -> None:
    """Add issues for categories of one name, and for landmarks that no category has.

    names: of the categories. known: the keypoints of all categories.
    """
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        table.add_issue(path, f"has {names.count(name)} categories {name!r}", "Rename one, or merge the two.")
    for name in landmarks:
        if name not in known:
            listed = shortened_list(known, SHOWN) or "none"
            advice = f"It has: {listed}.{did_you_mean(name, list(known))} data.landmarks names them."
            table.add_issue(path, f"has no keypoint {name!r}", advice)


def _row(
    where: str,
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    category: str,
    names: Sequence[str],
    landmarks: Sequence[str],
    table: Annotations,
) -> TableRow | None:
    """Return a row; None, with an issue, if its numbers are wrong."""
    box: Any = annotation.get("bbox")
    flat: Any = annotation.get("keypoints", [0] * (3 * len(names)))
    if not _are_numbers(box, 4):
        table.add_issue(where, f"bbox = {box!r}", "Expected four finite numbers: x, y, width, height in pixels.")
        return None
    if not _are_numbers(flat, 3 * len(names)) or not {0, 1, 2}.issuperset(flat[2::3]):
        advice = f"Expected {3 * len(names)} numbers: x, y and visibility (0, 1, 2) of {len(names)} keypoints."
        table.add_issue(where, f"keypoints of category {category!r} are wrong", advice)
        return None
    seen = {}
    for k, name in enumerate(names):
        x, y, visibility = flat[3 * k : 3 * k + 3]
        if name in landmarks and visibility == 1:
            table.left_out[HIDDEN] += 1
        elif name in landmarks and visibility == 2:
            seen[name] = (float(x), float(y))
    x, y, width, height = map(float, box)
    edges = (x, y, x + width, y + height)
    return TableRow(where, str(annotation["id"]), image["file_name"], category, edges, seen, size=_size(image))


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (width, height) that the file gives an image; None if it gives none."""
    width, height = image.get("width"), image.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None
