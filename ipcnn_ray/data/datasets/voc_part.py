"""The two annotations of Pascal VOC Part: Zhang et al.'s landmark files, and the dataset's own part masks.

Both give the same: a landmark is the centre of the box around a part, as shares (row, col) of the object's box.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.crop_store import patch_of_mask, stamps
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
from ipcnn_ray.spec.data import VocPart
from ipcnn_ray.utils.matlab import MatFileError, read_mat

FRAME = 224
"""The landmark files write a share of the box times this."""
FILES = {"head": 1, "neck": 2, "torso": 3, "nose": 4}
"""Landmark -> NN of its truth_partNN.mat."""
NOSE = {"bird": "beak", "cat": "nose", "dog": "nose", "cow": "muzzle", "horse": "muzzle", "sheep": "muzzle"}
"""Category -> the part that the landmark files call number 4."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
ONE_RELEASE = "The truth_part*.mat of a category must all be of one release: fetch them again."


def from_landmark_files(data: VocPart, voc: Path, category: str = "") -> Annotations:
    """Objects of `voc/landmarks/<category>/truth_partNN.mat`: one struct array `truth` a file, one element an object.

    An element is empty where the part is not seen, so what an object is comes from any file that shows a part of it;
    an object that no file shows is left out.
    Deviations: the released metric takes `pHW_center` for 1-based pixels of a 224-pixel image at every image size.
    Its `readPartTruth` made it as a share of the box times 224, and so it is read here; the two differ by at most
    3 pixels of 224, for the smallest objects.
    """
    category = category or data.categories[0]
    found, folder = Annotations(), voc / "landmarks" / category
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in (voc / "landmarks").glob("*") if p.is_dir()))
        advice = f"Landmark files are there for: {there or 'no category'}. data.category names the folder."
        found.wrong(folder, "no such folder", advice)
        return found
    found.made_from |= stamps([folder])
    truths: dict[str, list[Any]] = {}
    for name, number in FILES.items():
        path = folder / f"truth_part{number:02}.mat"
        if path.is_file():
            _read_truth(path, truths, found)
        elif name in data.landmarks:
            found.wrong(
                path, "no such file", f"It holds the landmark {name!r}; take it out of data.landmarks, or add it."
            )
    for path in sorted(folder.glob("truth_part*.mat")):
        if path.name not in truths and any(_object(truths, i) is None for i in range(_length(truths))):
            _read_truth(path, truths, found)
    lengths = {name: len(truth) for name, truth in truths.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        found.wrong(folder, f"the files list different numbers of objects: {told}", ONE_RELEASE)
        return found
    if truths and not _length(truths):
        found.wrong(folder, f"the files list no object of {category}", AGAIN)
    for i in range(_length(truths)):
        _add_object(i, truths, data, folder, found)
    return found


def _read_truth(path: Path, truths: dict[str, list[Any]], found: Annotations) -> None:
    found.made_from |= stamps([path])
    try:
        truth = read_mat(path, "truth")
    except MatFileError as error:
        found.wrong(path, str(error), AGAIN)
        return
    listed = truth if isinstance(truth, list) else [truth] if isinstance(truth, dict) else list(np.ravel(truth))
    if not all(isinstance(one, dict) and {"obj", "pHW_center"} <= set(one) for one in listed):
        found.wrong(path, "'truth' is not a struct array with the fields obj and pHW_center", AGAIN)
        return
    truths[path.name] = listed
    found.files.append(path)


def _length(truths: dict[str, list[Any]]) -> int:
    return min((len(truth) for truth in truths.values()), default=0)


def _object(truths: dict[str, list[Any]], i: int) -> dict[str, Any] | None:
    return next((t[i]["obj"] for t in truths.values() if isinstance(t[i]["obj"], dict)), None)


def _add_object(i: int, truths: dict[str, list[Any]], data: VocPart, folder: Path, found: Annotations) -> None:
    where = f"{folder} object {i + 1}"
    if _object(truths, i) is None:
        found.left_out["none of its parts is in a landmark file"] += 1
        return
    described: set[tuple[str, Box]] = set()
    for truth in truths.values():
        if isinstance(obj := truth[i]["obj"], dict):
            try:
                box = box_of([obj["bndbox"][side] for side in SIDES])
                described.add((str(obj["filename"]), box))
            except (KeyError, TypeError, ValueError) as error:
                found.wrong(where, f"its filename or bndbox cannot be read: {error}", AGAIN)
                return
    if len(described) > 1:
        told = " and ".join(f"{image} {box}" for image, box in sorted(described))
        found.wrong(where, f"the files describe different objects: {told}", ONE_RELEASE)
        return
    image, box = described.pop()
    if not upright(where, box, found):
        return
    share, sizes = np.full((2, len(data.landmarks), 2), np.nan)
    for k, name in enumerate(data.landmarks):
        file = f"truth_part{FILES[name]:02}.mat"
        if file not in truths:
            continue
        center = np.asarray(truths[file][i]["pHW_center"], np.float64).ravel()
        if center.size == 0 or center.size > 2:
            continue  # not seen; of several instances the released code uses none
        if center.size == 1 or not ((center >= 0) & (center <= FRAME)).all():
            told = ", ".join(f"{v:g}" for v in center)
            advice = f"pHW_center is (row, col), each from 0 to {FRAME}: the object's box from edge to edge."
            found.wrong(where, f"landmark {name!r} at ({told}) is outside the crop", advice)
            continue
        share[k] = center / FRAME
        span = np.asarray(truths[file][i].get("pHW_scale", ()), np.float64).ravel()
        if span.size == 2 and ((span >= 0) & (span <= FRAME)).all():
            side = np.array([box[3] - box[1] + 1, box[2] - box[0] + 1])
            sizes[k] = (span / FRAME * (side - 1) + 1) / side  # from its first pixel's centre to its last one's
    found.objects.append(Annotated(image, box, share, f"{Path(image).stem} {i + 1}", sizes_K2=sizes))


def from_part_masks(data: VocPart, voc: Path, category: str = "") -> Annotations:
    """Objects of `VOCdevkit/VOC2010/Annotations_Part/*.mat`: `anno.objects(o)` with class, bbox and parts(p) with
    part_name and mask.

    The parts behind the landmark files were found in the released files: head is the part `head` alone (the boxes of
    ears and muzzle reach beyond its box in half of the objects), neck and torso are theirs, and number 4 is `NOSE`.
    What lies outside the object's box is not in its crop and does not count.
    """
    category = category or data.categories[0]
    found, folder = Annotations(), voc / "VOCdevkit/VOC2010/Annotations_Part"
    paths = sorted(folder.glob("*.mat"))
    if not paths:
        what = "has no .mat file" if folder.is_dir() else "no such folder"
        advice = "Unpack Pascal-Part's Annotations_Part there, or use data.annotation: landmark_files."
        found.wrong(folder, what, advice)
        return found
    found.made_from |= stamps([folder, *paths])
    for path in paths:
        try:
            objects = read_mat(path, "anno")["objects"]
            mine = [one for one in _listed(objects) if str(one["class"]) == category]
            for number, one in enumerate(mine, start=1):
                _add_masked(f"{path} {category} {number}", path.stem, number, one, data, category, found)
        except MatFileError as error:
            found.wrong(path, str(error), AGAIN)
            continue
        except (KeyError, IndexError, TypeError, ValueError) as error:
            found.wrong(path, f"is not an annotation of Pascal-Part: {error!r}", AGAIN)
            continue
        if mine:
            found.files.append(path)
    if not found.objects and not found.issues:
        found.wrong(folder, f"its {len(paths)} files hold no object of {category}", "Choose another data.category.")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def _add_masked(
    where: str, image: str, number: int, one: Any, data: VocPart, category: str, found: Annotations
) -> None:
    box = box_of(np.ravel(one["bbox"]))
    if not upright(where, box, found):
        return
    masks = {str(part["part_name"]): np.asarray(part["mask"]) > 0 for part in _listed(one["parts"])}
    shapes = {mask.shape for mask in masks.values()}
    if len(shapes) > 1:
        found.wrong(where, f"its masks have different sizes: {sorted(shapes)}", AGAIN)
        return
    parts = [_part(masks.get(NOSE[category] if n == "nose" else n), box) for n in data.landmarks]
    share, sizes = np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts])
    height, width = shapes.pop() if shapes else (0, 0)
    size = (width, height) if masks else None
    found.objects.append(
        Annotated(
            f"{image}.jpg",
            box,
            share,
            f"{image} {number}",
            sizes_K2=sizes,
            masks=[part[2] for part in parts],
            mask_size=size,
        )
    )


def _part(
    mask: NDArray[np.bool_] | None, box: Box
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32] | None]:
    """Centre and (height, width) of the box around a mask inside an object's box, as shares of that box, and its patch;
    NaN and None where nothing is seen."""
    xmin, ymin, xmax, ymax = box
    inside = np.empty((0, 0), np.bool_) if mask is None else mask[max(0, ymin - 1) : ymax, max(0, xmin - 1) : xmax]
    if not inside.any():
        return np.full(2, np.nan), np.full(2, np.nan), None
    rows, cols = np.nonzero(inside)
    row, col = (rows.min() + rows.max()) / 2, (cols.min() + cols.max()) / 2
    size = np.array([np.ptp(rows) + 1, np.ptp(cols) + 1]) / (ymax - ymin + 1, xmax - xmin + 1)
    return np.array([row / (ymax - ymin), col / (xmax - xmin)]), size, patch_of_mask(inside, (row, col))


VERSION = "1"
"""Of the crops that are made from the same files: a change here makes every store anew."""


def read(data: VocPart, root: Path | None) -> Source:
    """The objects of all categories, and the negatives; DataError with everything that is wrong."""
    voc = named(root, "voc", data.kind)
    annotated = from_landmark_files if data.annotation == "landmark_files" else from_part_masks
    return gather(
        [annotated(data, voc, category) for category in data.categories],
        Folder(voc, voc / "VOCdevkit/VOC2010/JPEGImages", voc / "neg"),
        categories=data.categories,
        landmarks=data.landmarks,
        min_side=data.min_side,
        negatives=data.negatives,
    )
