"""Pascal VOC Part: objects with landmarks, and the fixed negatives.

Layout under IPCNN_DATA: voc/VOCdevkit/VOC2010/{JPEGImages,Annotations_Part}, voc/landmarks/<category>/truth_partNN.mat,
voc/neg/NNNNN.JPEG. Everything is checked before anything is written, and all problems are reported at once.
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

from ipcnn_ray.data.image_io import Box, ImageFileError, image_size, square_crop
from ipcnn_ray.data.index import Stamps, stamps
from ipcnn_ray.data.voc_annotations import AGAIN, Annotations, from_landmark_files, from_part_masks
from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.spec.data import VocPart

VERSION = "1"
"""Of the crops that are made from the same files: a change here makes every store anew."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Crop:
    """One object, or one negative (no box, no landmarks)."""

    path: Path
    box: Box | None
    share_K2: NDArray[np.float64]
    """Landmarks (row, col) as shares of the box, 0 at the centre of its first pixel and 1 at that of its last."""
    name: str
    sizes_K2: NDArray[np.float64]
    """(height, width) of the parts' boxes as shares of the crop; NaN where unknown."""
    masks: list[NDArray[np.float32] | None]
    """Patch of each part, where masks are read."""

    @property
    def is_object(self) -> bool:
        return self.box is not None


@dataclass(frozen=True)
class Source:
    """What will be decoded, checked."""

    crops: tuple[Crop, ...]
    """Objects first, then negatives."""
    content_digest: str
    """sha256 over name, size and content of every image and annotation that is used."""
    made_from: Stamps
    """State of those files, and of the folders that they were found in, before they were read."""
    left_out: Mapping[str, int]
    """Why objects are not here -> how many."""


def read(data: VocPart, root: Path | None) -> Source:
    """The objects and negatives of a category; DataError with everything that is wrong."""
    if root is None:
        raise DataError(
            [Problem("data.kind = voc_part", "IPCNN_DATA is not set", "Set it to the folder that holds voc/.")]
        )
    voc = root / "voc"
    if not voc.is_dir():
        raise DataError([Problem(str(voc), "no such folder", "IPCNN_DATA must name the folder that holds voc/.")])
    found = from_landmark_files(data, voc) if data.annotation == "landmark_files" else from_part_masks(data, voc)
    photographs = voc / "VOCdevkit/VOC2010/JPEGImages"
    large = [one for one in found.objects if _area(one.box) >= data.min_side**2]
    if len(large) < len(found.objects):
        found.left_out[f"smaller than {data.min_side:g}^2 pixels"] += len(found.objects) - len(large)
    mask_sizes = {photographs / one.image: one.mask_size for one in large if one.mask_size}
    crops = [Crop(photographs / one.image, one.box, one.share_K2, one.name, one.sizes_K2, one.masks) for one in large]
    _check_use(data, voc, crops, found)
    crops += _negatives(data, voc, found)
    _check_images(crops, mask_sizes, found)
    if found.problems:
        found.problems.extend(_undecodable(crops))
        raise DataError(list(dict.fromkeys(found.problems)))
    photographs_used = list(dict.fromkeys(crop.path for crop in crops))
    made_from = {**found.made_from, **stamps(photographs_used)}
    digest = _content_digest([*found.files, *photographs_used], voc)
    return Source(tuple(crops), digest, made_from, dict(found.left_out))


def _area(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _content_digest(files: list[Path], voc: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(voc).as_posix()}\0{path.stat().st_size}\0{content}\n".encode())
    return total.hexdigest()


def _check_use(data: VocPart, voc: Path, crops: list[Crop], found: Annotations) -> None:
    """There are objects, and every landmark is seen on some; asked only of annotations that could be read."""
    if found.problems:
        return
    if not crops:
        what = f"no {data.category} with a box of at least {data.min_side:g}^2 pixels"
        advice = (
            f"{len(found.objects)} smaller ones were left out; lower data.min_side or choose another data.category."
        )
        found.wrong(voc, what, advice)
        return
    for k, landmark in enumerate(data.landmarks):
        seen = sum(not np.isnan(crop.share_K2[k]).any() for crop in crops)
        if seen < 2:
            what = f"landmark {landmark!r} is seen on {seen} of {len(crops)} objects of {data.category}"
            found.wrong(voc, what, "Location instability needs at least 2; take it out of data.landmarks.")


def _negatives(data: VocPart, voc: Path, found: Annotations) -> list[Crop]:
    paths = [voc / "neg" / f"{i:05}.JPEG" for i in range(1, data.negatives + 1)]
    there = [path for path in paths if path.is_file()]
    if len(there) < len(paths):
        first = next(path.name for path in paths if not path.is_file())
        what = f"{len(paths) - len(there)} of {data.negatives} negative images are missing, first {first}"
        usable = int(first.split(".")[0]) - 1
        lower = f", or set data.negatives to at most {usable}" if usable else ""
        found.wrong(voc / "neg", what, f"Add them{lower}.")
    nothing = np.full((len(data.landmarks), 2), np.nan)
    return [Crop(path, None, nothing, f"negative {path.stem}", nothing, []) for path in there]


def _check_images(crops: list[Crop], mask_sizes: Mapping[Path, tuple[int, int] | None], found: Annotations) -> None:
    """The photographs are there and the boxes lie in them; the pixels are decoded later."""
    for crop in crops:
        if not crop.path.is_file():
            found.wrong(crop.path, "no such image", f"The annotation of {crop.name!r} names it.")
            continue
        try:
            width, height = image_size(crop.path)
        except ImageFileError as error:
            found.wrong(crop.path, str(error), AGAIN)
            continue
        if (masks := mask_sizes.get(crop.path)) and masks != (width, height):
            what = f"is {width} x {height} pixels and the masks of {crop.name!r} are {masks[0]} x {masks[1]}"
            found.wrong(crop.path, what, "Photograph and annotation must be of one release of Pascal VOC.")
        if crop.box is None:
            continue
        xmin, ymin, xmax, ymax = crop.box
        if xmin < 1 or ymin < 1 or xmax > width or ymax > height:
            what = f"box (xmin, ymin, xmax, ymax) = {crop.box} of {crop.name!r} is not inside the image"
            found.wrong(crop.path, what, f"The image is {width} x {height} pixels, the first of them 1.")


def _undecodable(crops: list[Crop]) -> list[Problem]:
    """What decoding would say, so that it is told together with the rest."""
    paths = list(dict.fromkeys(crop.path for crop in crops if crop.path.is_file()))
    with closing(_in_threads(lambda path: _problem_of(path, None, 1)[1], paths)) as results:
        return [problem for problem in results if problem]


def _problem_of(path: Path, box: Box | None, size: int) -> tuple[NDArray[np.uint8] | None, Problem | None]:
    try:
        return square_crop(path, box, size), None
    except ImageFileError as error:
        return None, Problem(str(path), str(error), AGAIN)


def decode(source: Source, images_N3SS: NDArray[np.uint8], progress: Callable[[int, int], None] | None) -> None:
    """Decode every crop into the store's array; DataError with every file that does not decode to its end."""
    size, count = images_N3SS.shape[-1], len(source.crops)

    def one(i: int) -> Problem | None:
        image, problem = _problem_of(source.crops[i].path, source.crops[i].box, size)
        if image is not None:
            images_N3SS[i] = image
        return problem

    problems = []
    with closing(_in_threads(one, range(count))) as results:
        for done, problem in enumerate(results, start=1):
            if problem:
                problems.append(problem)
            if progress:
                progress(done, count)
    if problems:
        raise DataError(list(dict.fromkeys(problems)))


def _in_threads(work: Callable[[T], R], over: Sequence[T]) -> Generator[R, None, None]:
    """Results in order; what has not begun is dropped when the generator is closed."""
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        try:
            yield from pool.map(work, over)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
