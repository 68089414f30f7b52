"""Photographs to predict: found by names of files, folders, patterns and s3:// URLs, and the boxes of a table."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ipcnn_ray.core.crop_place import Edges
from ipcnn_ray.data.datasets.image_folder import SUFFIXES
from ipcnn_ray.data.datasets.own_photographs import raise_issues
from ipcnn_ray.data.datasets.table_rows import EDGES, TableRow, read_csv
from ipcnn_ray.data.photographs import Annotations
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.tracking.storage import is_url, open_storage
from ipcnn_ray.utils.text import counted

BUCKET = "s3://"
READ_TIMEOUT_S = 120.0
"""Seconds to retry while a bucket does not answer."""


@dataclass(frozen=True)
class ImageInput:
    """A photograph, or the box of one object in it."""

    path: str
    """A path, or an s3:// URL."""
    edges: Edges | None = None
    """xmin, ymin, xmax, ymax in pixels, 0 the left or upper edge; None for the whole image."""
    stamp: str = ""
    """Changes with the file."""


def find_images(names: Sequence[str], skip: Path | None = None) -> list[ImageInput]:
    """Return the images of some files, folders (with all folders below), patterns and s3:// URLs, each once.

    A file that is named is taken whatever its name ends in; of folders and patterns, files with one of `SUFFIXES`.
    skip: A folder whose images do not count, because they are written there.
    Raises DataError for names without any image.
    """
    found: dict[str, ImageInput] = {}
    issues = []
    for name in names:
        images = list(_in_bucket(name) if is_url(name) else _on_disk(name, skip))
        if not images:
            issues.append(_nothing(name))
        for image in images:
            found.setdefault(image.path if is_url(image.path) else os.path.abspath(image.path), image)
    if issues:
        raise DataError(issues)
    return list(found.values())


def _nothing(name: str) -> Issue:
    if is_url(name) or Path(name).expanduser().is_dir():
        return Issue(name, "holds no images", f"Images end in {', '.join(sorted(SUFFIXES))}.")
    advice = "Give files, folders, patterns such as 'photos/*.jpg', or s3:// URLs."
    return Issue(name, "no such file or folder", advice)


def _on_disk(name: str, skip: Path | None) -> Iterator[ImageInput]:
    path = Path(name).expanduser()
    if path.is_file():
        yield _input(path)
        return
    for match in [path] if path.is_dir() else map(Path, sorted(glob.glob(str(path), recursive=True))):
        for file in sorted(match.rglob("*")) if match.is_dir() else [match]:
            hidden = any(part.startswith(".") for part in file.relative_to(match).parts)
            written = skip is not None and file.absolute().is_relative_to(skip.absolute())
            if file.suffix.lower() in SUFFIXES and not hidden and not written and file.is_file():
                yield _input(file)


def _input(path: Path) -> ImageInput:
    status = path.stat()
    return ImageInput(str(path), stamp=f"{status.st_size}-{status.st_mtime_ns}")


def _in_bucket(url: str) -> Iterator[ImageInput]:
    """The images below a prefix, or the single object of this name."""
    folder, _, name = url.rstrip("/").rpartition("/")
    if Path(name).suffix.lower() in SUFFIXES and folder.removeprefix(BUCKET):
        stamps = {key: stamp for key, stamp in open_storage(folder, READ_TIMEOUT_S).checksums().items() if key == name}
        url = folder
    else:
        stamps = open_storage(url.rstrip("/"), READ_TIMEOUT_S).checksums()
    for key, stamp in sorted(stamps.items()):
        if Path(key).suffix.lower() in SUFFIXES:
            yield ImageInput(f"{url.rstrip('/')}/{key}", stamp=stamp)


def read_image(path: str) -> Path | bytes:
    """Return a file as `data.crops` opens it: its path, or the bytes of an object in a bucket."""
    if not is_url(path):
        return Path(path)
    bucket, _, key = path.removeprefix(BUCKET).partition("/")
    return open_storage(f"{BUCKET}{bucket}", READ_TIMEOUT_S).get(key)


def read_boxes(path: Path) -> list[TableRow]:
    """Return the rows of a CSV table with the columns image, xmin, ymin, xmax and ymax, and any others.

    Raises DataError with every issue.
    """
    table = Annotations()
    rows = read_csv(path, (), table, needed=("image", *EDGES)).rows
    raise_issues(table, path)
    return list(rows)


def images_of_boxes(path: Path, rows: Sequence[TableRow]) -> list[ImageInput]:
    """Return the images that a table names, below its own folder, each once. A missing file is one that cannot be read,
    as any other."""
    paths = dict.fromkeys(path.parent / row.image for row in rows)
    return [_input(file) if file.is_file() else ImageInput(str(file)) for file in paths]


def with_boxes(images: Sequence[ImageInput], rows: Sequence[TableRow], table: Path) -> tuple[list[ImageInput], str]:
    """Return an input for each box of each image, in the order of the images, and a remark on rows without an image.

    A row names an image by the end of its path, as far as it must to be the only one. Images without a row are taken as
    a whole, as those of rows without numbers.
    Raises DataError for rows whose image is one of several, and if no row has an image.
    """
    ends: dict[str, list[int]] = {}
    for position, image in enumerate(images):
        name = image.path.removeprefix(BUCKET) if is_url(image.path) else os.path.abspath(image.path)
        parts = PurePosixPath(name.lstrip("/")).parts
        for start in range(len(parts)):
            ends.setdefault("/".join(parts[start:]), []).append(position)
    boxes: dict[int, list[TableRow]] = {}
    issues, without = [], 0
    for row in rows:
        name = "/".join(part for part in PurePosixPath(row.image.removeprefix(BUCKET)).parts if part != "/")
        positions = ends.get(name, [])
        if len(positions) > 1:
            what = f"image {row.image!r} is the end of {images[positions[0]].path} and {images[positions[1]].path}"
            issues.append(Issue(row.where, what, "Name it with the folder that tells them apart."))
        elif positions:
            boxes.setdefault(positions[0], []).append(row)
        else:
            without += 1
    if not issues and rows and not boxes:
        what = f"names none of the {counted(len(images), 'image')}, such as {images[0].path}"
        issues.append(Issue(str(table), what, "Its column image holds the ends of their paths."))
    if issues:
        raise DataError(issues)
    given = [image for position, image in enumerate(images) for image in _of_rows(image, boxes.get(position))]
    return given, f"{counted(without, 'row')} of {table} name images that are not given" if without else ""


def _of_rows(image: ImageInput, rows: Sequence[TableRow] | None) -> list[ImageInput]:
    if not rows:
        return [image]
    return [ImageInput(image.path, _four(row), image.stamp) for row in rows]


def _four(row: TableRow) -> Edges | None:
    if row.edges is None:
        return None
    xmin, ymin, xmax, ymax = row.edges
    return xmin, ymin, xmax, ymax


def with_absolute_paths(images: Sequence[ImageInput]) -> list[ImageInput]:
    """Return the inputs as another process finds them."""
    return [
        image if is_url(image.path) else ImageInput(os.path.abspath(image.path), image.edges, image.stamp)
        for image in images
    ]


def as_rows(images: Sequence[ImageInput]) -> list[Mapping[str, object]]:
    """Return the inputs as JSON has them."""
    return [{"path": image.path, "edges": image.edges, "stamp": image.stamp} for image in images]
