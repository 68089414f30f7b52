"""The data section of a spec for a folder of class folders, or a table of photographs, that a user names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ipcnn_ray.data.datasets.coco_keypoints import read_coco
from ipcnn_ray.data.datasets.image_folder import ImageFolder, class_folders
from ipcnn_ray.data.datasets.table_rows import read_csv
from ipcnn_ray.data.photographs import Annotations
from ipcnn_ray.errors import DataError, Issue

NEGATIVES: str = ImageFolder.model_fields["negative_folder"].default


def _folder_of_images(table: Path, root: Path, images: list[str]) -> Path | None:
    """Return the folder that holds the first image: the table's, one in it, or one beside it; None if none does."""
    beside = [table.parent.parent] if table.parent != root else []
    folders = [table.parent, *(folder for base in (table.parent, *beside) for folder in sorted(base.iterdir()))]
    return next((folder for folder in folders if os.path.isfile(folder / images[0])), None) if images else None


def section_of_files(path: Path, root: Path | None) -> dict[str, Any]:
    """Return the data section for a folder or table, with all of its categories and landmarks.

    root: IPCNN_DATA. Raises DataError if the path is not below it, or is neither a folder of class folders nor a table.
    """
    place = path.expanduser().absolute()
    if not place.exists():
        raise DataError([Issue(str(path), "no such file or folder", "Name a folder of class folders or a table.")])
    if root is None or not place.resolve().is_relative_to(root.resolve()):
        what = "is not set" if root is None else f"is {root}, which does not hold {place}"
        advice = f"Set it to a folder that does, such as {place.parent}."
        raise DataError([Issue("IPCNN_DATA", what, advice)])
    name = place.resolve().relative_to(root.resolve()).as_posix()
    if place.is_dir():
        categories = [folder for folder in class_folders(place) if folder != NEGATIVES]
        section: dict[str, Any] = {"kind": "folder", "path": name}
    else:
        table = Annotations()
        read = read_coco if place.suffix.lower() == ".json" else read_csv
        content = read(place, (), table)
        if table.issues:
            raise DataError(table.issues)
        categories = list(dict.fromkeys(row.category for row in content.rows if row.category))
        section = {"kind": "table", "file": name, "landmarks": list(content.landmarks)}
        folder = _folder_of_images(place.resolve(), root.resolve(), [row.image for row in content.rows])
        if folder not in (None, place.resolve().parent):
            section["images"] = folder.relative_to(root.resolve()).as_posix()
    if not categories:
        raise DataError([Issue(str(path), "has no categories", "Expected class folders, or a table with categories.")])
    return {**section, "category": categories if len(categories) > 1 else categories[0]}
