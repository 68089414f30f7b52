"""From a data section of a spec to a store of crops, made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data import crop_store as index
from ipcnn_ray.data.crop_store import FORMAT, Contents, CropStore, Fill, G, MeanMasks, open_store, write_store
from ipcnn_ray.data.datasets import cub200, ilsvrc_animal_part, voc_part
from ipcnn_ray.data.datasets.drawn import drawn_animals
from ipcnn_ray.data.photographs import Source, decode, place_in_crop
from ipcnn_ray.data.split import Items, items, items_as_given, items_of_categories
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.spec.data import Cub200, Data, DrawnAnimals, IlsvrcAnimalPart, VocPart, train_items
from ipcnn_ray.utils.locks import file_lock
from ipcnn_ray.utils.paths import Paths

Photographs = VocPart | IlsvrcAnimalPart | Cub200
READERS: dict[str, Any] = {
    "voc_part": voc_part,
    "ilsvrc_animal_part": ilsvrc_animal_part,
    "cub200": cub200,
}
"""Modules that read photographs, by the kind of the data section: `read` and `VERSION`."""

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


def prepare(data: Data, image_size: int, paths: Paths, progress: Progress | None = None) -> CropStore:
    """The store of this data at this crop size (pixels); decoded or drawn first if this machine does not have it yet.

    Raises DataError with every problem of the source at once; then nothing has been written.
    """
    key = _sha(data.model_dump(mode="json"), image_size, _version(data), str(paths.data))
    known = index.recall(paths.cache, key)
    if known and (store := open_store(paths.cache, known)):
        return store
    recipe = (
        _drawn(data, image_size, progress)
        if isinstance(data, DrawnAnimals)
        else _photographs(data, image_size, paths, progress)
    )
    digest = _sha(data.model_dump(mode="json"), image_size, _version(data), recipe.content)[:16]
    store = open_store(paths.cache, digest) or _make(recipe, digest, image_size, paths.cache)
    if recipe.made_from:
        index.remember(paths.cache, key, digest, recipe.made_from)
    return store


def _sha(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _version(data: Data) -> str:
    return f"{FORMAT}/{drawn_animals.VERSION if isinstance(data, DrawnAnimals) else READERS[data.kind].VERSION}"


def _make(recipe: Recipe, digest: str, image_size: int, cache: Path) -> CropStore:
    folder = cache / "crops"
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{digest}.lock"
    with file_lock(lock):
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
    labels_N, names = drawn_animals.contents(data)
    count = len(labels_N)
    objects_L = [data.objects] * len(data.categories)
    train, validation = items_of_categories(objects_L, data.negatives, data.train_share, repeat=False)
    trained = set(train[:, 0].tolist())
    sizes = np.full((count, len(data.landmarks), 2), np.nan, np.float32)
    masks = np.full((len(data.landmarks), G, G), np.nan, np.float32)

    def fill(images: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> None:
        mean = MeanMasks(len(data.landmarks))
        for i in range(count):
            animal = drawn_animals.draw_one(data, size, i)
            image, landmarks[i], sizes[i] = animal.image, animal.landmarks_K2, animal.sizes_K2
            if i in trained and labels_N[i] >= 0:
                mean.add(animal.masks)
            images[i] = image.transpose(2, 0, 1)
            if progress:
                progress(i + 1, count)
        masks[:] = mean.mean()

    _check_split("data.train_share", data, labels_N, train, validation)
    contents = Contents(
        labels_N=labels_N,
        categories=data.categories,
        landmarks_NK2=np.full((count, len(data.landmarks), 2), np.nan, np.float32),
        train_items=train,
        val_items=validation,
        names=tuple(names),
        landmark_names=data.landmarks,
        tags={"data.kind": "drawn_animals", "data.drawn": "true"},
        part_sizes_NK2=sizes,
        mean_masks_KGG=masks,
    )
    return Recipe("drawn", contents, fill, {})


def _photographs(data: Photographs, size: int, paths: Paths, progress: Progress | None) -> Recipe:
    source = READERS[data.kind].read(data, paths.data)
    labels_N = np.array([crop.label for crop in source.crops], np.int64)
    train, validation = split_of(data, source)
    where = "train_test_split.txt" if isinstance(data, Cub200) else "data.train_share"
    _check_split(where, data, labels_N, train, validation)
    landmarks = np.full((len(source.crops), len(data.landmarks), 2), np.nan, np.float32)
    sizes, mean, trained = np.full_like(landmarks, np.nan), MeanMasks(len(data.landmarks)), set(train[:, 0].tolist())
    for i, crop in enumerate(source.crops):
        if crop.box is not None:
            landmarks[i] = place_in_crop(crop.share_K2, crop.box, size)
            if crop.sizes_K2 is not None:
                sizes[i] = crop.sizes_K2
            if i in trained:
                mean.add(crop.masks)
    contents = Contents(
        labels_N=labels_N,
        categories=data.categories,
        landmarks_NK2=landmarks,
        train_items=train,
        val_items=validation,
        names=tuple(crop.name for crop in source.crops),
        landmark_names=data.landmarks,
        tags={"data.kind": data.kind, "data.drawn": "false"},
        left_out=source.left_out,
        part_sizes_NK2=sizes,
        mean_masks_KGG=mean.mean(),
    )
    return Recipe(
        source.content_digest,
        contents,
        lambda images, _landmarks: decode(source, images, progress),
        source.made_from,
    )


def split_of(data: Photographs, source: Source) -> tuple[Items, Items]:
    """Training and validation items of photographs that have been read."""
    objects_L = source.objects_of(len(data.categories))
    negatives = len(source.crops) - sum(objects_L)
    if isinstance(data, Cub200):
        trained = [bool(crop.trained) for crop in source.crops[: sum(objects_L)]]
        return items_as_given(trained, negatives, data.negative_repeats)
    if len(objects_L) == 1:
        return items(objects_L[0], negatives, data.train_share, data.positive_share)
    return items_of_categories(objects_L, negatives, data.train_share, repeat=True, split=data.split)


def training_items(data: Data, paths: Paths) -> int | None:
    """How many items a run will train on; None for photographs while IPCNN_DATA is not set. DataError as `prepare`."""
    if isinstance(data, DrawnAnimals) or paths.data is None:
        return train_items(data)
    return len(split_of(data, READERS[data.kind].read(data, paths.data))[0])


def _check_split(where: str, data: Data, labels_N: NDArray[np.int64], train: Items, validation: Items) -> None:
    """Both splits hold every kind of image that there is."""
    kinds = {"object" if len(data.categories) == 1 else name: k for k, name in enumerate(data.categories)}
    issues = []
    for split, part in (("training", train), ("validation", validation)):
        for kind, label in (kinds | {"negative": -1}).items():
            if not (labels_N[part[:, 0]] == label).any() and (label >= 0 or data.negatives):
                what = f"leaves no {kind} in the {split} split"
                issues.append(Issue(where, what, "Use more images, or another data.train_share."))
    if issues:
        raise DataError(issues)
