"""Outputs of frozen layers, computed once and mapped from disk: the same numbers as running the layers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from ipcnn_ray.data.batches import Read
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import TrainingError

CHUNK = 32
"""Items per forward pass while building."""


def feature_key(*parts: str) -> str:
    """Name of a cache: what its numbers depend on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def features_reader(
    cache: Path,
    key: str,
    items: Items,
    shape: tuple[int, ...],
    compute: Callable[[Items], torch.Tensor],
    store_size: int,
) -> Read:
    """A reader of the features of `items` [I, 2], built with `compute` (items -> [b, *shape] float32) if absent.

    One process of a machine builds, the others wait. Raises TrainingError when the disk is too small.
    """
    folder = cache / "features" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = np.unique(items, axis=0)
    with FileLock(folder.parent / f"{key}.lock"):
        if not folder.is_dir():
            _build(folder, wanted, shape, compute)
    features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    rows = _rows(np.load(folder / "items.npy", allow_pickle=False), store_size)
    return lambda part: torch.from_numpy(features[rows[part[:, 0] * 2 + part[:, 1]]])


def _rows(items: Items, store_size: int) -> NDArray[np.int64]:
    rows = np.full(2 * store_size, -1, np.int64)
    rows[items[:, 0] * 2 + items[:, 1]] = np.arange(len(items))
    return rows


def _build(folder: Path, items: Items, shape: tuple[int, ...], compute: Callable[[Items], torch.Tensor]) -> None:
    needed = len(items) * int(np.prod(shape)) * 4
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise TrainingError(
            f"the outputs of the frozen layers need {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB: "
            "free some space, set IPCNN_CACHE to a larger disk, or --set compute.cache_frozen=false"
        )
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        features = np.lib.format.open_memmap(making / "features.npy", "w+", np.float32, (len(items), *shape))
        for start in range(0, len(items), CHUNK):
            features[start : start + CHUNK] = compute(items[start : start + CHUNK]).float().cpu().numpy()
        features.flush()
        del features
        np.save(making / "items.npy", items)
        os.rename(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
