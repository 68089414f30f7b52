"""From annotated objects to crops of photographs: checked together first, decoded later.

Everything is checked before anything is written, and all issues are reported at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ipcnn_ray.data.annotations import AGAIN, AnnotatedObject, Annotations, Box
from ipcnn_ray.data.crop_store import Contents, G, MeanMasks, StorePlan
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.utils.files import Stamps, sha256_of, stamps

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Crop:
    """One object, or one negative."""

    path: Path
    name: str
    label: int
    """Index of the category, -1 for a negative."""
    item: AnnotatedObject | None = None
    """None for a negative, which is the whole photograph."""

    @property
    def box(self) -> Box | None:
        return self.item.box if self.item else None


@dataclass(frozen=True)
class Source:
    """Crops to decode, checked."""

    categories: tuple[str, ...]
    landmarks: tuple[str, ...]
    crops: tuple[Crop, ...]
    """The objects of each category, then the negatives."""
    objects_L: tuple[int, ...]
    """Number of objects of each category."""
    content_digest: str
    """SHA-256 over name, size and content of every image and annotation that is used."""
    made_from: Stamps
    """Stamps of those files, and of the folders that they were found in, before they were read."""
    left_out: Mapping[str, int]
    """Number of objects left out, by reason."""

    @property
    def negatives(self) -> int:
        return len(self.crops) - sum(self.objects_L)


def gather(
    annotations_L: Sequence[Annotations],
    *,
    digest_root: Path,
    photographs: Path,
    negatives_folder: Path,
    categories: tuple[str, ...],
    landmarks: tuple[str, ...],
    min_side: float,
    negatives: int,
    reader: str,
) -> Source:
    """Collect the objects whose boxes cover at least min_side^2 pixels, and the first negatives, and check them.

    Raises DataError with every issue of the annotations of each category and of the images that they name.

    Args:
        annotations_L: The annotations of each category.
        digest_root: Folder that the names of files in the digest begin in.
        photographs: Folder of the photographs.
        negatives_folder: Folder of the negatives, 00001.JPEG and so on.
        categories: Names of the categories.
        landmarks: Names of the landmarks.
        min_side: Root of the smallest area of a box, pixels.
        negatives: Number of negatives.
        reader: Name of the method that made the annotations, for messages.
    """
    if len(annotations_L) != len(categories):
        what = f"returned annotations of {len(annotations_L)} categories, expected {len(categories)}"
        raise DataError([Issue(reader, what, "Return one for each of self.categories.")])
    total = Annotations()
    crops: list[Crop] = []
    objects_L = []
    for label, (category, read) in enumerate(zip(categories, annotations_L, strict=True)):
        total.files += read.files
        total.made_from |= read.made_from
        total.left_out += read.left_out
        large = [item for item in read.objects if _area(item.box) >= min_side**2]
        if len(large) < len(read.objects):
            total.left_out[f"smaller than {min_side:g}^2 pixels"] += len(read.objects) - len(large)
        for item in large:
            if what := _wrong_shape(item, len(landmarks)):
                advice = "Return one entry for each of self.landmarks."
                raise DataError([Issue(reader, f"returned for {item.name!r} {what}", advice)])
        if not read.issues:
            _check_use(category, landmarks, min_side, read, large, digest_root)
        total.issues += read.issues
        crops += [Crop(photographs / item.image, item.name, label, item) for item in large]
        objects_L.append(len(large))
    crops += _negatives(negatives_folder, negatives, total)
    _check_images(crops, total)
    if total.issues:
        raise DataError(list(dict.fromkeys([*total.issues, *_decoding_issues(crops)])))
    used = list(dict.fromkeys(crop.path for crop in crops))
    digest = _content_digest([*dict.fromkeys(total.files), *used], digest_root)
    made_from = {**total.made_from, **stamps(used)}
    return Source(categories, landmarks, tuple(crops), tuple(objects_L), digest, made_from, dict(total.left_out))


def plan_of_photographs(
    source: Source, image_size: int, progress: Callable[[int, int], None] | None, train: Items, validation: Items
) -> StorePlan:
    """Return the plan of a store of a checked source; its crops are decoded when the store is written."""
    landmarks_NK2 = np.full((len(source.crops), len(source.landmarks), 2), np.nan, np.float32)
    sizes_NK2, mean = np.full_like(landmarks_NK2, np.nan), MeanMasks(len(source.landmarks))
    in_training = set(train[:, 0].tolist())
    for i, crop in enumerate(source.crops):
        if item := crop.item:
            landmarks_NK2[i] = place_in_crop(np.asarray(item.landmarks_K2, np.float64), item.box, image_size)
            if item.sizes_K2 is not None:
                sizes_NK2[i] = np.asarray(item.sizes_K2, np.float64)
            if i in in_training:
                mean.add(item.masks)
    contents = Contents(
        labels_N=np.array([crop.label for crop in source.crops], np.int64),
        categories=source.categories,
        landmarks_NK2=landmarks_NK2,
        train_items=train,
        val_items=validation,
        names=tuple(crop.name for crop in source.crops),
        landmark_names=source.landmarks,
        left_out=source.left_out,
        part_sizes_NK2=sizes_NK2,
        mean_masks_KGG=mean.mean(),
    )
    return StorePlan(
        source.content_digest, contents, lambda images, _landmarks: decode(source, images, progress), source.made_from
    )


def _wrong_shape(item: AnnotatedObject, count: int) -> str:
    """Return what has the wrong shape in an object that a reader returned; empty if nothing has."""
    for name, values in (("landmarks", item.landmarks_K2), ("sizes", item.sizes_K2)):
        try:
            shape = (count, 2) if values is None else np.asarray(values, np.float64).shape
        except (TypeError, ValueError):
            return f"{name} that are not an array of numbers, expected shape {(count, 2)}"
        if shape != (count, 2):
            return f"{name} of shape {shape}, expected {(count, 2)}"
    shapes = [None if mask is None else np.shape(mask) for mask in item.masks]
    if shapes and (len(shapes) != count or not {None, (G, G)}.issuperset(shapes)):
        return f"masks of shapes {shapes}, expected {count} of {(G, G)} or None"
    return ""


def _area(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _content_digest(files: list[Path], root: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()


def _check_use(
    category: str,
    landmarks: Sequence[str],
    min_side: float,
    annotations: Annotations,
    large: list[AnnotatedObject],
    where: Path,
) -> None:
    """Add an issue if there is no object, and for each landmark of the category that is hardly seen."""
    if not large:
        what = f"no {category} with a box of at least {min_side:g}^2 pixels"
        smaller = f"{len(annotations.objects)} smaller ones were left out"
        annotations.add_issue(where, what, f"{smaller}; lower data.min_side or choose another data.category.")
        return
    unseen_NK2 = np.isnan(np.array([item.landmarks_K2 for item in large], np.float64))
    for landmark, seen in zip(landmarks, (~unseen_NK2.any(2)).sum(0).tolist(), strict=True):
        if seen < 2 and landmark not in annotations.lacks:
            what = f"landmark {landmark!r} is seen on {seen} of {len(large)} objects of {category}"
            annotations.add_issue(where, what, "Location instability needs at least 2; take it out of data.landmarks.")


def _negatives(folder: Path, count: int, total: Annotations) -> list[Crop]:
    paths = [folder / f"{i:05}.JPEG" for i in range(1, count + 1)]
    existing = [path for path in paths if path.is_file()]
    if len(existing) < len(paths):
        first = next(i for i, path in enumerate(paths, start=1) if not path.is_file())
        what = f"{len(paths) - len(existing)} of {count} negative images are missing, first {first:05}.JPEG"
        fewer = f", or set data.negatives to at most {first - 1}" if first > 1 else ""
        total.add_issue(folder, what, f"Add them{fewer}.")
    return [Crop(path, f"negative {path.stem}", -1) for path in existing]


def _check_images(crops: list[Crop], total: Annotations) -> None:
    """Add an issue for each photograph that is not there, and each box that leaves its own."""
    for crop in crops:
        if not crop.path.is_file():
            total.add_issue(crop.path, "no such image", f"The annotation of {crop.name!r} names it.")
            continue
        try:
            width, height = image_size(crop.path)
        except ImageFileError as error:
            total.add_issue(crop.path, str(error), AGAIN)
            continue
        if crop.item is None:
            continue
        if (masks := crop.item.mask_size) and masks != (width, height):
            what = f"is {width} x {height} pixels and the masks of {crop.name!r} are {masks[0]} x {masks[1]}"
            total.add_issue(crop.path, what, "Photograph and annotation must be of one release of Pascal VOC.")
        xmin, ymin, xmax, ymax = crop.item.box
        if xmin < 1 or ymin < 1 or xmax > width or ymax > height:
            what = f"box (xmin, ymin, xmax, ymax) = {crop.item.box} of {crop.name!r} is not inside the image"
            total.add_issue(crop.path, what, f"The image is {width} x {height} pixels, the first of them 1.")


def _decoding_issues(crops: list[Crop]) -> list[Issue]:
    """Return the issues that decoding would raise later, to report them with the others."""
    paths = list(dict.fromkeys(crop.path for crop in crops if crop.path.is_file()))
    with closing(_in_threads(lambda path: _decode_one(path, None, 1)[1], paths)) as results:
        return [issue for issue in results if issue]


def _decode_one(path: Path, box: Box | None, size: int) -> tuple[NDArray[np.uint8] | None, Issue | None]:
    try:
        return square_crop(path, box, size), None
    except ImageFileError as error:
        return None, Issue(str(path), str(error), AGAIN)


def decode(source: Source, images_N3SS: NDArray[np.uint8], progress: Callable[[int, int], None] | None) -> None:
    """Decode every crop into the store's array. Raises DataError with every file that does not decode to its end."""
    size, count = images_N3SS.shape[-1], len(source.crops)

    def decode_into(i: int) -> Issue | None:
        image, issue = _decode_one(source.crops[i].path, source.crops[i].box, size)
        if image is not None:
            images_N3SS[i] = image
        return issue

    issues = []
    with closing(_in_threads(decode_into, range(count))) as results:
        for done, issue in enumerate(results, start=1):
            if issue:
                issues.append(issue)
            if progress:
                progress(done, count)
    if issues:
        raise DataError(list(dict.fromkeys(issues)))


def _in_threads(function: Callable[[T], R], arguments: Sequence[T]) -> Generator[R, None, None]:
    """Yield results in order. Calls that have not begun are dropped when the generator is closed."""
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        try:
            yield from pool.map(function, arguments)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class ImageFileError(ValueError):
    """A file that does not decode to an image. The text says how it fails, without the path."""


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from the file's header. Raises ImageFileError."""
    with _opened(path) as image:
        return image.size


def square_crop(path: Path, box: Box | None, size: int) -> NDArray[np.uint8]:
    """Return the box of a photograph (all of it for None) as [3, size, size] RGB; gray becomes RGB.

    Bilinear, antialiased when it shrinks, the aspect ratio not kept (released `getI`). Raises ImageFileError for a
    file that does not decode to its end.
    """
    with _opened(path) as image:
        try:
            rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageFileError(f"does not decode to its end: {error}") from error
    if box is not None:
        xmin, ymin, xmax, ymax = box
        rgb = rgb.crop((xmin - 1, ymin - 1, xmax, ymax))
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def place_in_crop(landmarks_K2: NDArray[np.float64], box: Box, size: int) -> NDArray[np.float64]:
    """Map positions in a box to its `square_crop`: (row, col) in crop pixels, pixel centers at whole numbers.

    `landmarks_K2` are (row, col) as shares of the box, 0 at the center of its first pixel and 1 at that of its last.
    """
    extent = np.array([box[3] - box[1] + 1, box[2] - box[0] + 1], np.float64)
    return (landmarks_K2 * (extent - 1) + 0.5) * size / extent - 0.5


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageFileError("is not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageFileError(f"cannot be opened as an image: {error}") from error
