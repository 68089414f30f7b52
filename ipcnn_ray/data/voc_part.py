"""Pascal VOC Part: objects with landmarks, from either annotation source, and the fixed negatives.

Layout under IPCNN_DATA: voc/VOCdevkit/VOC2010/{JPEGImages,Annotations_Part}, voc/landmarks/<category>/truth_partNN.mat,
voc/neg/NNNNN.JPEG. Everything is checked before anything is written, and all problems are reported at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from ipcnn_ray.data.image_io import Box, image_size, square_crop
from ipcnn_ray.data.matfiles import MatFileError, read_mat
from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.spec.experiment import VocPart

FRAME = 224
"""Side of the frame that the landmark files give positions in."""
FILES = {"head": 1, "neck": 2, "torso": 3, "nose": 4}
"""Landmark -> NN of its truth_partNN.mat."""
PART_NAMES = {
    "head": ("head", "leye", "reye", "lear", "rear", "beak", "muzzle", "nose", "lhorn", "rhorn"),
    "neck": ("neck",),
    "torso": ("torso",),
    "nose": ("nose", "muzzle", "beak"),
}
"""Landmark -> names of the parts in Annotations_Part whose common box it is the centre of. `nose`: the first present."""


@dataclass(frozen=True)
class Crop:
    """One object, or one negative (no box, no landmarks)."""

    path: Path
    box: Box | None
    landmarks_K2: NDArray[np.float64]
    """(row, col) as shares of the crop, 0 at the centre of its first pixel and 1 at that of its last; NaN unseen."""
    name: str

    @property
    def is_object(self) -> bool:
        return self.box is not None


@dataclass(frozen=True)
class Source:
    """What will be decoded, checked."""

    crops: tuple[Crop, ...]
    content_digest: str
    """sha256 over every image and annotation that is used."""


def read(data: VocPart, root: Path | None) -> Source:
    """The objects and negatives of a category; DataError with everything that is wrong."""
    if root is None:
        raise DataError(
            [Problem("data.kind = voc_part", "IPCNN_DATA is not set", "Set it to the folder that holds voc/.")]
        )
    voc = root / "voc"
    if not voc.is_dir():
        raise DataError([Problem(str(voc), "no such folder", "IPCNN_DATA must name the folder that holds voc/.")])
    problems: list[Problem] = []
    read_objects = _from_landmark_files if data.annotation == "landmark_files" else _from_part_masks
    objects, annotations = read_objects(data, voc, problems)
    large = [crop for crop in objects if _area(crop.box) >= data.min_side**2]
    if not large and not problems:
        problems.append(
            Problem(
                str(voc),
                f"no {data.category} with a box of at least {data.min_side:g}^2 pixels",
                f"{len(objects)} smaller ones were left out; lower data.min_side or choose another category.",
            )
        )
    for k, landmark in enumerate(data.landmarks):
        if large and sum(not np.isnan(crop.landmarks_K2[k]).any() for crop in large) < 2:
            problems.append(
                Problem(
                    str(voc),
                    f"landmark {landmark!r} is seen on fewer than 2 objects of {data.category}",
                    "Location instability needs at least 2; take it out of data.landmarks.",
                )
            )
    crops = [*large, *_negatives(data, voc, problems)]
    _check_images(crops, problems)
    if problems:
        raise DataError(problems)
    digest = hashlib.sha256()
    for path in [*annotations, *dict.fromkeys(crop.path for crop in crops)]:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return Source(tuple(crops), digest.hexdigest())


def _area(box: Box | None) -> int:
    assert box is not None
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _negatives(data: VocPart, voc: Path, problems: list[Problem]) -> list[Crop]:
    paths = [voc / "neg" / f"{i:05}.JPEG" for i in range(1, data.negatives + 1)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        problems.append(
            Problem(
                str(voc / "neg"),
                f"{len(missing)} of {data.negatives} negative images are missing, first {missing[0].name}",
                f"Add them, or set data.negatives to at most {data.negatives - len(missing)}.",
            )
        )
    nothing = np.full((len(data.landmarks), 2), np.nan)
    return [Crop(path, None, nothing, f"neg {path.stem}") for path in paths if path.is_file()]


def _from_landmark_files(data: VocPart, voc: Path, problems: list[Problem]) -> tuple[list[Crop], list[Path]]:
    folder = voc / "landmarks" / data.category
    if not folder.is_dir():
        there = sorted(p.name for p in (voc / "landmarks").glob("*") if p.is_dir())
        problems.append(Problem(str(folder), "no such folder", f"Landmark files are there for {there}."))
        return [], []
    paths = {name: folder / f"truth_part{FILES[name]:02}.mat" for name in dict.fromkeys((*data.landmarks, *FILES))}
    truths: dict[str, list[Any]] = {}
    used: list[Path] = []
    for name, path in paths.items():
        if not path.is_file():
            if name in data.landmarks:
                problems.append(Problem(str(path), "no such file", f"It holds the landmark {name!r}."))
            continue
        try:
            truth = read_mat(path, "truth")
            truths[name] = truth if isinstance(truth, list) else [truth]
            used.append(path)
        except MatFileError as error:
            problems.append(Problem(str(path), str(error), "Fetch the landmark file again."))
    if problems:
        return [], used
    lengths = {name: len(truth) for name, truth in truths.items()}
    if len(set(lengths.values())) > 1:
        problems.append(
            Problem(str(folder), f"the files list different numbers of objects: {lengths}", "They must be of one release.")
        )
        return [], used
    crops = []
    for i in range(next(iter(lengths.values()))):
        where = f"{folder} object {i + 1}"
        # The object is written out only in the files of the parts that it shows.
        found = {str(t[i]["obj"]["filename"]): t[i]["obj"] for t in truths.values() if isinstance(t[i].get("obj"), dict)}
        if not found:
            continue
        if len(found) > 1:
            problems.append(Problem(where, f"the files name different images: {sorted(found)}", "They must be of one release."))
            continue
        filename, obj = next(iter(found.items()))
        try:
            box = tuple(int(float(obj["bndbox"][side])) for side in ("xmin", "ymin", "xmax", "ymax"))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(Problem(where, f"its bndbox cannot be read: {error}", "Fetch the landmark files again."))
            continue
        places = np.full((len(data.landmarks), 2), np.nan)
        for k, name in enumerate(data.landmarks):
            center = np.asarray(truths[name][i]["pHW_center"], np.float64).ravel()
            if center.size == 0:
                continue
            if center.size != 2 or not ((center >= 0) & (center <= FRAME)).all():
                problems.append(
                    Problem(
                        where,
                        f"landmark {name!r} at {center.tolist()} is outside the crop",
                        f"(row, col) lie in the {FRAME} x {FRAME} frame of the object's crop.",
                    )
                )
                continue
            places[k] = center / FRAME
        crops.append(Crop(voc / "VOCdevkit/VOC2010/JPEGImages" / filename, box, places, f"{filename} {i + 1}"))  # type: ignore[arg-type]
    return crops, used


def _from_part_masks(data: VocPart, voc: Path, problems: list[Problem]) -> tuple[list[Crop], list[Path]]:
    folder = voc / "VOCdevkit/VOC2010/Annotations_Part"
    paths = sorted(folder.glob("*.mat"))
    if not paths:
        problems.append(
            Problem(str(folder), "no .mat file", "Unpack Pascal-Part's Annotations_Part there, or use data.annotation: landmark_files.")
        )
    crops, used = [], []
    for path in paths:
        try:
            objects = read_mat(path, "anno")["objects"]
        except (MatFileError, KeyError, TypeError) as error:
            problems.append(Problem(str(path), f"cannot be read: {error}", "Fetch the annotation again."))
            continue
        mine = [o for o in _listed(objects) if o["class"] == data.category]
        if not mine:
            continue
        used.append(path)
        for number, obj in enumerate(mine, start=1):
            box = tuple(int(v) for v in np.asarray(obj["bbox"]).ravel())
            where = f"{path} {data.category} {number}"
            if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
                problems.append(Problem(where, f"bbox = {list(box)}", "Expected xmin < xmax and ymin < ymax."))
                continue
            parts = {str(p["part_name"]): np.atleast_2d(np.asarray(p["mask"])) for p in _listed(obj["parts"])}
            places = np.stack([_part_center(name, parts, box) for name in data.landmarks])  # type: ignore[arg-type]
            image = voc / "VOCdevkit/VOC2010/JPEGImages" / f"{path.stem}.jpg"
            crops.append(Crop(image, box, places, f"{path.stem} {number}"))  # type: ignore[arg-type]
    return crops, used


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, dict) else []


def _part_center(landmark: str, parts: dict[str, NDArray[Any]], box: Box) -> NDArray[np.float64]:
    """Centre of the box around the landmark's parts, as shares of the object's box; NaN when none is there."""
    names = [name for name in PART_NAMES[landmark] if name in parts and parts[name].any()]
    if landmark == "nose":
        names = names[:1]
    if not names:
        return np.full(2, np.nan)
    rows, cols = np.nonzero(np.logical_or.reduce([parts[name] > 0 for name in names]))
    row, col = (rows.min() + rows.max()) / 2 + 1, (cols.min() + cols.max()) / 2 + 1
    place = np.array([(row - box[1]) / (box[3] - box[1]), (col - box[0]) / (box[2] - box[0])])
    return place if ((place >= 0) & (place <= 1)).all() else np.full(2, np.nan)


def _check_images(crops: Iterable[Crop], problems: list[Problem]) -> None:
    """Headers and boxes; the pixels are decoded later."""
    for crop in crops:
        if not crop.path.is_file():
            problems.append(Problem(str(crop.path), "no such image", f"The annotation of {crop.name!r} names it."))
            continue
        try:
            width, height = image_size(crop.path)
        except (UnidentifiedImageError, OSError):
            problems.append(Problem(str(crop.path), "is not an image", "Fetch the file again."))
            continue
        if crop.box is None:
            continue
        xmin, ymin, xmax, ymax = crop.box
        if not (1 <= xmin < xmax <= width and 1 <= ymin < ymax <= height):
            problems.append(
                Problem(
                    str(crop.path),
                    f"box (xmin, ymin, xmax, ymax) = {crop.box} of {crop.name!r} does not fit",
                    f"The image is {width} x {height} pixels; boxes are 1-based with xmin < xmax and ymin < ymax.",
                )
            )


def decode(source: Source, images_N3SS: NDArray[np.uint8], progress: Callable[[int, int], None] | None) -> None:
    """Decode every crop into the store's array; DataError with every file that does not decode to its end."""
    size = images_N3SS.shape[-1]

    def one(i: int) -> Problem | None:
        crop = source.crops[i]
        try:
            images_N3SS[i] = square_crop(crop.path, crop.box, size)
        except OSError as error:
            return Problem(str(crop.path), f"does not decode to its end: {error}", "Fetch the file again.")
        return None

    problems = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, problem in enumerate(pool.map(one, range(len(source.crops))), start=1):
            if problem:
                problems.append(problem)
            if progress:
                progress(done, len(source.crops))
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
