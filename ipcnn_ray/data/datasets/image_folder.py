"""A folder of class folders: photographs with a category each, without boxes and landmarks.

Layout below IPCNN_DATA: <path>/<category>/*.{jpg,png,...}, <path>/<negative_folder>/*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.datasets.own_photographs import (
    CategoryName,
    OwnPhotographs,
    RelativePath,
    path_issues,
    raise_issues,
)
from ipcnn_ray.data.photographs import AnnotatedObject, Annotations
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.spec.section import ErrorMessage, FieldIssue
from ipcnn_ray.utils.files import sha256_of, stamps
from ipcnn_ray.utils.text import did_you_mean, shortened_list

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""Of the files that are read as images."""
SHOWN = 12
"""Folders that a message names."""
NoLandmarks = Annotated[
    tuple[str, ...],
    Field(max_length=0),
    ErrorMessage("class folders have no landmarks; drop this, or use data.kind: table"),
]


class ImageFolder(OwnPhotographs):
    """Photographs in class folders, `<path>/<category>/*`: each is an object as a whole, without landmarks. Copies of
    one image, which could be in both splits, are left out."""

    kind: Literal["folder"]
    """One's own photographs, in class folders."""
    path: RelativePath
    """Folder of the class folders, below IPCNN_DATA."""
    landmarks: NoLandmarks = ()
    """None: a table has landmarks. What needs them is not measured."""
    negative_folder: CategoryName = "negatives"
    """The class folder whose photographs show none of the categories. It need not exist for several categories."""

    title: ClassVar = "One's own photographs: a folder of class folders anywhere in IPCNN_DATA"

    def issues(self) -> Iterator[FieldIssue]:
        yield from path_issues(self, "path")
        if self.negative_folder in self.categories:
            yield self.issue("negative_folder", "is a category, too; name another folder", "category")

    def source(self, root: Path) -> Path:
        return root / self.path

    def annotations(self, folder: Path) -> list[Annotations]:
        base = self.source(folder)
        stamped = stamps([base]) if base.is_dir() else {}
        there = class_folders(base)
        annotations_L = [self._of_folder(base, category, there, folder) for category in self.categories]
        first, negatives = annotations_L[0], Annotations()
        first.made_from |= stamped
        if self.negative_folder in there and not self.negatives:
            if images := image_files(base / self.negative_folder):
                first.left_out[self.unused_negatives] += len(images)
        elif self.negative_folder in there:
            negatives = self._of_folder(base, self.negative_folder, there, folder)
        leave_out_copies([*annotations_L, negatives], folder)
        first.negatives = negatives.objects
        first.issues += negatives.issues
        first.left_out += negatives.left_out
        first.made_from |= negatives.made_from
        others = [name for name in there if name not in (*self.categories, self.negative_folder)]
        if others:
            reason = f"in class folders that data.category does not list ({shortened_list(others, 3)})"
            first.left_out[reason] += sum(len(image_files(base / name)) for name in others)
        everything = Annotations(issues=[issue for annotations in annotations_L for issue in annotations.issues])
        raise_issues(everything, base)
        return annotations_L

    def _of_folder(self, base: Path, name: str, there: list[str], root: Path) -> Annotations:
        """Read one class folder."""
        from ipcnn_ray.data.crops import ImageFileError, image_size

        annotations, folder = Annotations(), base / name
        if name not in there:
            known = f"There are: {shortened_list(there, SHOWN)}." if there else "There are none at all."
            what, guess = "no such class folder", did_you_mean(name, there)
            annotations.add_issue(folder, what, f"data.category names the folders of data.path. {known}{guess}")
            return annotations
        annotations.stamp(folder)
        images = image_files(folder)
        for path in sorted(set(folder.iterdir()) - set(images)):
            suffix = f"{path.suffix}" if path.suffix else "without a suffix"
            reason = "folders inside a class folder" if path.is_dir() else f"files that are no images ({suffix})"
            annotations.left_out[reason] += 1
        for path in images:
            try:
                width, height = image_size(path, upright=True)
            except ImageFileError as error:
                annotations.add_issue(path, str(error), self.mend_photograph)
                continue
            image = path.relative_to(root).as_posix()
            annotations.objects.append(AnnotatedObject(image, (1, 1, width, height), (), f"{name}/{path.name}"))
        if not images:
            suffixes = ", ".join(sorted(SUFFIXES))
            annotations.add_issue(folder, "holds no images", f"Images end in {suffixes}, and lie in no folder below.")
        return annotations


def leave_out_copies(folders: Sequence[Annotations], root: Path) -> None:
    """Leave out images that are byte for byte an earlier one of the same class folder, which would be in both splits;
    add an issue for those of another class folder."""
    sizes = Counter((root / item.image).stat().st_size for one in folders for item in one.objects)
    originals: dict[str, tuple[Annotations, str]] = {}
    for one in folders:
        kept = []
        for item in one.objects:
            path = root / item.image
            owner, image = one, item.image
            if sizes[path.stat().st_size] > 1:
                owner, image = originals.setdefault(sha256_of(path), (one, item.image))
            if image == item.image:
                kept.append(item)
                continue
            one.stamp(path)
            if owner is one:
                one.left_out["copies of an image of their class folder"] += 1
            else:
                one.add_issue(path, f"is the same image as {root / image}", "Keep it in one class folder.")
        one.objects = kept


def class_folders(base: Path) -> list[str]:
    """Return the names of the folders of a folder, without hidden ones. Raises DataError if there is no folder."""
    if not base.is_dir():
        raise DataError([Issue(str(base), "no such folder", "data.path names a folder below IPCNN_DATA.")])
    return sorted(path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder, by name: files with one of `SUFFIXES` that are not hidden."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
