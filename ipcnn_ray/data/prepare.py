"""From a data section of a spec to a store of crops, made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ipcnn_ray.data import drawn_animals, index, voc_part
from ipcnn_ray.data.image_io import place_in_crop
from ipcnn_ray.data.part_masks import G, MeanMasks
from ipcnn_ray.data.split import items
from ipcnn_ray.data.store import FORMAT, Contents, CropStore, Fill, open_store, write_store
from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.spec.data import Data, DrawnAnimals, VocPart
from ipcnn_ray.spec.places import Places

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class Recipe:
    """How a store is made, checked and not yet begun."""

    content: str
    """What the crops are made from: a digest of files, or the version of a drawing."""
    contents: Contents
    fill: Fill
    made_from: index.Stamps


def prepare(data: Data, image_size: int, places: Places, progress: Progress | None = None) -> CropStore:
    """The store of this data at this crop size (pixels); decoded or drawn first if this machine does not have it yet.

    Raises DataError with every problem of the source at once; then nothing has been written.
    """
    key = _sha(data.model_dump(mode="json"), image_size, _version(data), str(places.data))
    known = index.recall(places.cache, key)
    if known and (store := open_store(places.cache, known)):
        return store
    recipe = (
        _drawn(data, image_size, progress)
        if isinstance(data, DrawnAnimals)
        else _voc(data, image_size, places, progress)
    )
    digest = _sha(data.model_dump(mode="json"), image_size, _version(data), recipe.content)[:16]
    store = open_store(places.cache, digest) or _make(recipe, digest, image_size, places.cache)
    if recipe.made_from:
        index.remember(places.cache, key, digest, recipe.made_from)
    return store


def _sha(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _version(data: Data) -> str:
    return f"{FORMAT}/{drawn_animals.VERSION if isinstance(data, DrawnAnimals) else voc_part.VERSION}"


def _make(recipe: Recipe, digest: str, image_size: int, cache: Path) -> CropStore:
    folder = cache / "crops"
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{digest}.lock"
    with FileLock(lock):
        if (store := open_store(cache, digest)) is None:
            try:
                write_store(cache, digest, image_size, recipe.contents, recipe.fill)
            except DataError:
                lock.unlink()
                for parent in made:
                    if not any(parent.iterdir()):
                        parent.rmdir()
                raise
            store = open_store(cache, digest)
    assert store is not None, "write_store has just made it"
    return store


def _drawn(data: DrawnAnimals, size: int, progress: Progress | None) -> Recipe:
    count = data.objects + data.negatives
    train, validation = items(data.objects, data.negatives, data.train_share, None)
    trained = set(train[:, 0].tolist())
    sizes = np.full((count, len(data.landmarks), 2), np.nan, np.float32)
    masks = np.full((len(data.landmarks), G, G), np.nan, np.float32)

    def fill(images: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> None:
        mean = MeanMasks(len(data.landmarks))
        for i in range(count):
            if i < data.objects:
                animal = drawn_animals.draw_one(data, size, i)
                image, landmarks[i], sizes[i] = animal.image, animal.landmarks_K2, animal.sizes_K2
                if i in trained:
                    mean.add(animal.masks)
            else:
                image = drawn_animals.draw_negative(data, size, i - data.objects)
            images[i] = image.transpose(2, 0, 1)
            if progress:
                progress(i + 1, count)
        masks[:] = mean.mean()

    _check_split("data.train_share", train, validation, data.objects)
    contents = Contents(
        labels_N=(np.arange(count) < data.objects).astype(np.float32),
        landmarks_NK2=np.full((count, len(data.landmarks), 2), np.nan, np.float32),
        train_items=train,
        val_items=validation,
        names=tuple(
            [f"{data.category}-{i:05}" for i in range(data.objects)]
            + [f"negative-{i:05}" for i in range(data.negatives)]
        ),
        landmark_names=data.landmarks,
        tags={"data.kind": "drawn_animals", "data.drawn": "true"},
        part_sizes_NK2=sizes,
        mean_masks_KGG=masks,
    )
    return Recipe("drawn", contents, fill, {})


def _voc(data: VocPart, size: int, places: Places, progress: Progress | None) -> Recipe:
    source = voc_part.read(data, places.data)
    objects = sum(crop.is_object for crop in source.crops)
    train, validation = items(objects, len(source.crops) - objects, data.train_share, data.positive_share)
    _check_split("data.train_share", train, validation, objects)
    landmarks = np.full((len(source.crops), len(data.landmarks), 2), np.nan, np.float32)
    sizes, mean, trained = np.full_like(landmarks, np.nan), MeanMasks(len(data.landmarks)), set(train[:, 0].tolist())
    for i, crop in enumerate(source.crops):
        if crop.box is not None:
            landmarks[i] = place_in_crop(crop.share_K2, crop.box, size)
            sizes[i] = crop.sizes_K2
            if i in trained:
                mean.add(crop.masks)
    contents = Contents(
        labels_N=np.array([crop.is_object for crop in source.crops], np.float32),
        landmarks_NK2=landmarks,
        train_items=train,
        val_items=validation,
        names=tuple(crop.name for crop in source.crops),
        landmark_names=data.landmarks,
        tags={"data.kind": "voc_part", "data.drawn": "false"},
        left_out=source.left_out,
        part_sizes_NK2=sizes,
        mean_masks_KGG=mean.mean(),
    )
    return Recipe(
        source.content_digest,
        contents,
        lambda images, _landmarks: voc_part.decode(source, images, progress),
        source.made_from,
    )


def _check_split(where: str, train: NDArray[np.int64], validation: NDArray[np.int64], objects: int) -> None:
    """Both splits hold both kinds of image."""
    problems = []
    for split, part in (("training", train), ("validation", validation)):
        for kind, there in (("object", part[:, 0] < objects), ("negative", part[:, 0] >= objects)):
            if not there.any():
                what = f"leaves no {kind} in the {split} split"
                problems.append(Problem(where, what, "Use more images, or another data.train_share."))
    if problems:
        raise DataError(problems)
