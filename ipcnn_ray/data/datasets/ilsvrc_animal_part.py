"""The animal part of ILSVRC 2013 DET: thirty categories, head and limbs (Zhang et al.'s released data layout).

Layout under IPCNN_DATA: detanimalpart/<category>_obj/img/{data.mat,img/NNNNN.jpg}, one photograph an object;
detanimalpart/landmarks/<category>/truth_partNN.mat, element i of it photograph i; voc/neg/NNNNN.JPEG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.crop_store import stamps
from ipcnn_ray.data.photographs import (
    AGAIN,
    Annotated,
    Annotations,
    Box,
    Folder,
    Source,
    box_of,
    gather,
    named,
    upright,
)
from ipcnn_ray.spec.data import WITHOUT_LIMBS, IlsvrcAnimalPart
from ipcnn_ray.utils.matlab import MatFileError, read_mat

VERSION = "1"
"""Of the crops that are made from the same files: a change here makes every store anew."""
FRAME = 224
"""Side of the crop in whose 1-based pixels the landmark files write positions."""
FILES = {"head": 1, "limbs": 2}
"""Landmark -> NN of its truth_partNN.mat."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
ONE_RELEASE = "data.mat and the truth_part*.mat of a category must be of one release: fetch them again."


def read(data: IlsvrcAnimalPart, root: Path | None) -> Source:
    """The objects of all categories, and the negatives; DataError with everything that is wrong."""
    folder = named(root, "detanimalpart", data.kind)
    return gather(
        [from_samples(data, folder, category) for category in data.categories],
        Folder(folder.parent, folder, folder.parent / "voc/neg"),
        categories=data.categories,
        landmarks=data.landmarks,
        min_side=data.min_side,
        negatives=data.negatives,
    )


def from_samples(data: IlsvrcAnimalPart, folder: Path, category: str) -> Annotations:
    """The objects of one category: `samples(i).obj.bndbox` of its data.mat, and `truth(i).pHW_center` of its files.

    A landmark with several instances in an image (two heads) is taken as not seen, as the released `getDistSqrtVar`
    does: none of them is the landmark more than the others.
    Deviations: positions are read as 1-based pixels of the crop at 224 x 224, which the released metric takes them
    for at every image size. The boxes of the landmark files count from 0 and those of data.mat from 1: data.mat's
    are the crops, and both may differ by one pixel.
    """
    lacks = tuple(name for name in data.landmarks if category == WITHOUT_LIMBS and name == "limbs")
    found = Annotations(lacks=lacks)
    photographs = f"{category}_obj/img/img"
    boxes = _boxes(folder / f"{category}_obj/img/data.mat", found)
    truths = {
        name: _truth(folder / f"landmarks/{category}/truth_part{FILES[name]:02}.mat", name, found)
        for name in data.landmarks
        if name not in lacks
    }
    if found.issues:
        return found
    there = len(list((folder / photographs).glob("*.jpg")))
    lengths = {"photographs": there, "data.mat": len(boxes)} | {
        f"truth_part{FILES[name]:02}.mat": len(truth) for name, truth in truths.items()
    }
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        found.wrong(folder / category, f"the files hold different numbers of objects: {told}", ONE_RELEASE)
        return found
    for i, box in enumerate(boxes):
        where = f"{folder / photographs} object {i + 1}"
        if not upright(where, box, found):
            continue
        share = np.full((len(data.landmarks), 2), np.nan)
        for k, name in enumerate(data.landmarks):
            if name in truths:
                share[k] = _place(truths[name][i], box, f"{where} landmark {name!r}", found)
        found.objects.append(Annotated(f"{photographs}/{i + 1:05}.jpg", box, share, f"{category} {i + 1}"))
    return found


def _boxes(path: Path, found: Annotations) -> list[Box]:
    samples = _structs(path, "samples", ("obj",), found)
    try:
        return [box_of(sample["obj"]["bndbox"][side] for side in SIDES) for sample in samples]
    except (KeyError, TypeError, ValueError) as error:
        found.wrong(path, f"its samples(i).obj.bndbox cannot be read: {error!r}", AGAIN)
        return []


def _truth(path: Path, name: str, found: Annotations) -> list[dict[str, Any]]:
    if not path.is_file():
        advice = f"It holds the landmark {name!r}; take it out of data.landmarks, or add it."
        found.wrong(path, "no such file", advice)
        return []
    return _structs(path, "truth", ("obj", "pHW_center"), found)


def _structs(path: Path, variable: str, fields: tuple[str, ...], found: Annotations) -> list[dict[str, Any]]:
    """The elements of a struct array; empty, and told in `found`, where there is none."""
    if path.is_file():
        found.made_from |= stamps([path])
    try:
        content = read_mat(path, variable)
    except MatFileError as error:
        found.wrong(path, str(error), AGAIN)
        return []
    listed = content if isinstance(content, list) else [content]
    if not all(isinstance(one, dict) and all(name in one for name in fields) for one in listed):
        found.wrong(path, f"{variable!r} is not a struct array with the fields {' and '.join(fields)}", AGAIN)
        return []
    found.files.append(path)
    return listed


def _place(truth: dict[str, Any], box: Box, where: str, found: Annotations) -> NDArray[np.float64]:
    """(row, col) of a landmark as shares of its object's box; NaN where it is not seen, or more than once."""
    unseen = np.full(2, np.nan)
    center = np.asarray(truth["pHW_center"], np.float64)
    if center.size == 0 or center.size > 2:
        return unseen
    try:
        theirs = box_of(truth["obj"]["bndbox"][side] for side in SIDES)
    except (KeyError, TypeError, ValueError) as error:
        found.wrong(where, f"its bndbox cannot be read: {error!r}", AGAIN)
        return unseen
    if max(abs(a - b) for a, b in zip(theirs, box, strict=True)) > 1:
        found.wrong(where, f"its file describes another object: box {theirs}, in data.mat {box}", ONE_RELEASE)
        return unseen
    if center.size == 1 or not ((center >= 0) & (center <= FRAME + 1)).all():
        told = ", ".join(f"{v:g}" for v in center.ravel())
        advice = f"pHW_center is (row, col) in pixels of the crop, 1 to {FRAME}. {AGAIN}"
        found.wrong(where, f"is at ({told}), outside the crop", advice)
        return unseen
    extent = np.array([box[3] - box[1] + 1, box[2] - box[0] + 1], np.float64)
    return ((center.ravel() - 0.5) / FRAME * extent - 0.5) / (extent - 1)
