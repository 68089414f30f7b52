"""From a data section of a spec to a store of crops, made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ipcnn_ray.data import drawn_animals, voc_part
from ipcnn_ray.data.split import items
from ipcnn_ray.data.store import CropStore, open_store, write_store
from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.spec.experiment import Data, DrawnAnimals, VocPart
from ipcnn_ray.spec.places import Places

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


def _digest(data: Data, image_size: int, content: str) -> str:
    text = json.dumps([data.model_dump(mode="json"), image_size, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare(data: Data, image_size: int, places: Places, progress: Progress | None = None) -> CropStore:
    """The store of this data at this crop size; decoded or drawn first if this machine does not have it yet.

    Raises DataError with every problem of the source at once; then nothing has been written.
    """
    if isinstance(data, VocPart):
        source = voc_part.read(data, places.data)
        digest = _digest(data, image_size, source.content_digest)
    else:
        digest = _digest(data, image_size, drawn_animals.VERSION)
    if store := open_store(places.cache, digest):
        return store
    lock = places.cache / "crops" / f"{digest}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if store := open_store(places.cache, digest):
            return store
        if isinstance(data, VocPart):
            _make_voc(data, source, digest, image_size, places.cache, progress)
        else:
            _make_drawn(data, digest, image_size, places.cache, progress)
    store = open_store(places.cache, digest)
    assert store is not None, "write_store has just made it"
    return store


def _check_split(where: str, train: NDArray[np.int64], validation: NDArray[np.int64], objects: int) -> None:
    problems = [
        Problem(where, f"{objects} objects leave no positive image in the {name} split", "Use more objects or another train_share.")
        for name, part in (("training", train), ("validation", validation))
        if not (part[:, 0] < objects).any()
    ]
    if problems:
        raise DataError(problems)


def _make_drawn(data: DrawnAnimals, digest: str, size: int, cache: Path, progress: Progress | None) -> None:
    count = data.objects + data.negatives
    landmarks = np.full((count, len(data.landmarks), 2), np.nan, np.float32)
    train, validation = items(data.objects, data.negatives, data.train_share, None)
    _check_split("data", train, validation, data.objects)

    def fill(images: NDArray[np.uint8]) -> None:
        for i in range(count):
            if i < data.objects:
                image, landmarks[i] = drawn_animals.draw_animal(data, size, i)
            else:
                image = drawn_animals.draw_negative(data, size, i - data.objects)
            images[i] = image.transpose(2, 0, 1)
            if progress:
                progress(i + 1, count)

    write_store(
        cache,
        digest,
        (count, size),
        fill,
        labels=(np.arange(count) < data.objects).astype(np.float32),
        landmarks=landmarks,
        train_items=train,
        val_items=validation,
        names=[f"{data.category} {i}" if i < data.objects else f"clutter {i - data.objects}" for i in range(count)],
        landmark_names=data.landmarks,
        tags={"data.kind": "drawn_animals", "data.drawn": "true"},
    )


def _make_voc(
    data: VocPart, source: voc_part.Source, digest: str, size: int, cache: Path, progress: Progress | None
) -> None:
    crops = source.crops
    objects = sum(crop.is_object for crop in crops)
    train, validation = items(objects, len(crops) - objects, data.train_share, data.positive_share)
    _check_split(data.category, train, validation, objects)
    landmarks = np.stack([crop.landmarks_K2 for crop in crops]) * (size - 1)

    def fill(images: NDArray[np.uint8]) -> None:
        voc_part.decode(source, images, progress)

    write_store(
        cache,
        digest,
        (len(crops), size),
        fill,
        labels=np.array([crop.is_object for crop in crops], np.float32),
        landmarks=landmarks.astype(np.float32),
        train_items=train,
        val_items=validation,
        names=[crop.name for crop in crops],
        landmark_names=data.landmarks,
        tags={"data.kind": "voc_part", "data.drawn": "false"},
    )
