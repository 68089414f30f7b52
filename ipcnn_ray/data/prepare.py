"""From the data section of a spec to a store of crops, made once per machine."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ipcnn_ray.data.crop_store import FORMAT, CropStore, StorePlan, open_store, write_store
from ipcnn_ray.data.datasets.dataset import Dataset, Progress, as_dataset
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.spec.data import DataSection
from ipcnn_ray.utils.files import Stamps, stamps, write_atomic
from ipcnn_ray.utils.locks import file_lock
from ipcnn_ray.utils.paths import Paths

FRESH_SECONDS = 2
"""A file changed this recently can change again without a new time of change: file systems have coarse clocks."""


def prepare(section: DataSection, image_size: int, paths: Paths, progress: Progress | None = None) -> CropStore:
    """Return the store of a data section at this crop size (pixels); decode or draw it first if it is not in the cache.

    Raises DataError with every issue of the source. Nothing has been written then.
    """
    data = as_dataset(section)
    fields, version = _image_fields(data), f"{FORMAT}/{data.version}"
    key = _sha(fields, image_size, version, str(paths.data))
    known = recall(paths.cache, key)
    if known and (store := open_store(paths.cache, known)):
        return store
    plan = data.store_plan(paths.data, image_size, progress)
    _check_plan(data, plan)
    digest = _sha(fields, image_size, version, plan.content)[:16]
    store = open_store(paths.cache, digest) or _make(data, plan, digest, image_size, paths)
    if plan.made_from:
        remember(paths.cache, key, digest, plan.made_from)
    return store


def _image_fields(data: Dataset) -> dict[str, Any]:
    """Return the fields that the images and their split depend on, without later ones at their default."""
    fields = data.model_dump(mode="json", exclude={"augment"})
    defaults = type(data).model_fields
    return {key: value for key, value in fields.items() if key not in data.later or value != defaults[key].default}


def _sha(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _make(data: Dataset, plan: StorePlan, digest: str, image_size: int, paths: Paths) -> CropStore:
    cache = paths.cache
    folder = cache / "crops"
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    if paths.home in created:
        paths.make_home()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{digest}.lock"
    tags = {"data.kind": data.kind, "data.drawn": str(data.drawn).lower()}
    with file_lock(lock):
        if (store := open_store(cache, digest)) is None:
            try:
                write_store(cache, digest, image_size, replace(plan.contents, tags=tags), plan.fill)
            except DataError:
                lock.unlink()
                for parent in created:
                    if not any(parent.iterdir()):
                        parent.rmdir()
                raise
            store = open_store(cache, digest)
    assert store is not None, "write_store has just made it"
    return store


def _check_plan(data: Dataset, plan: StorePlan) -> None:
    """Raise DataError for arrays of the wrong shape, and for a split that lacks one kind of image."""
    contents, reader = plan.contents, f"{type(data).__module__}.{type(data).__qualname__}.store_plan"
    labels_N = contents.labels_N
    count, size = len(labels_N), len(data.categories)
    shapes = {
        "landmarks_NK2": (contents.landmarks_NK2.shape, (count, len(data.landmarks), 2)),
        "names": ((len(contents.names),), (count,)),
        "train_items": (contents.train_items.shape, (len(contents.train_items), 2)),
        "val_items": (contents.val_items.shape, (len(contents.val_items), 2)),
    }
    issues = [
        Issue(reader, f"returned {name} of shape {shape}, expected {expected}", "The class of this dataset is wrong.")
        for name, (shape, expected) in shapes.items()
        if shape != expected
    ]
    if not np.isin(labels_N, range(-1, size)).all():
        what = f"returned labels {sorted(set(labels_N.tolist()) - set(range(-1, size)))}"
        issues.append(Issue(reader, what, f"A label is the index of one of {size} categories, or -1."))
    if issues:
        raise DataError(issues)
    kinds = {"object" if size == 1 else name: label for label, name in enumerate(data.categories)}
    for split, items in (("training", contents.train_items), ("validation", contents.val_items)):
        for kind, label in (kinds | {"negative": -1}).items():
            if not (labels_N[items[:, 0]] == label).any() and (label >= 0 or data.negatives):
                what = f"leaves no {kind} in the {split} split"
                issues.append(Issue(data.split_source, what, "Use more images, or another data.train_share."))
    if issues:
        raise DataError(issues)


def recall(cache: Path, key: str) -> str | None:
    """Return the digest remembered under `key`; None if there is none or a stamp of its files has changed."""
    try:
        entry = json.loads(_file(cache, key).read_text())
        return str(entry["digest"]) if stamps(map(Path, entry["stamps"])) == entry["stamps"] else None
    except (OSError, ValueError, KeyError):
        return None


def remember(cache: Path, key: str, digest: str, made_from: Stamps) -> None:
    """Remember the digest under `key`. `made_from` are stamps taken before the files were read."""
    if any(changed > (time.time() - FRESH_SECONDS) * 1e9 for _, changed in made_from.values()):
        return
    write_atomic(_file(cache, key), json.dumps({"digest": digest, "stamps": made_from}).encode())


def _file(cache: Path, key: str) -> Path:
    return cache / "crops" / "index" / f"{key}.json"
