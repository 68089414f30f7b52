"""Decoded crops, once, in a folder that every worker of a machine maps into memory.

The folder's name is the digest of the data, so a changed photograph or annotation is another store.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import DataError, Problem

FORMAT = 1


@dataclass(frozen=True)
class CropStore:
    """N square crops of side S and what is known of them; objects first, then negatives."""

    digest: str
    images_N3SS: NDArray[np.uint8]
    """RGB, mapped from disk: nothing is read before it is used."""
    labels_N: NDArray[np.float32]
    """1 for the category, 0 for a negative."""
    landmarks_NK2: NDArray[np.float32]
    """(row, col) in pixels of the crop, pixel centres at whole numbers; NaN where the landmark is not seen."""
    mean_3SS: NDArray[np.float32]
    """Mean over the training items, repeats and mirror images counted, 0..255."""
    train_items: Items
    val_items: Items
    names: tuple[str, ...]
    landmark_names: tuple[str, ...]
    tags: Mapping[str, str]
    """What a record of a run must say of its data."""

    @property
    def size(self) -> int:
        """Side S of a crop, pixels."""
        return int(self.images_N3SS.shape[-1])

    @property
    def objects(self) -> NDArray[np.int64]:
        """Indices of the crops that show an object."""
        return np.flatnonzero(self.labels_N > 0.5)


def folder_of(cache: Path, digest: str) -> Path:
    """Where the store of a digest lies."""
    return cache / "crops" / digest


def _sum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_store(
    cache: Path,
    digest: str,
    shape: tuple[int, int],
    fill: Callable[[NDArray[np.uint8]], None],
    *,
    labels: NDArray[np.float32],
    landmarks: NDArray[np.float32],
    train_items: Items,
    val_items: Items,
    names: list[str],
    landmark_names: tuple[str, ...],
    tags: Mapping[str, str],
) -> None:
    """Make the store whole or not at all. `shape` is (N, S); `fill` writes the crops into the mapped array [N, 3, S, S].

    Whatever `fill` raises leaves nothing behind.
    """
    count, size = shape
    final = folder_of(cache, digest)
    final.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(final.parent).free
    needed = count * 3 * size * size
    if needed > room:
        raise DataError(
            [
                Problem(
                    str(final.parent),
                    f"has {room / 1e9:.1f} GB free and the crops need {needed / 1e9:.1f} GB",
                    "Free some space, or set IPCNN_CACHE to a larger disk.",
                )
            ]
        )
    making = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=final.parent))
    try:
        images = np.lib.format.open_memmap(making / "images.npy", "w+", np.uint8, (count, 3, size, size))
        fill(images)
        mean = _mean(images, train_items)
        images.flush()
        del images
        arrays = {
            "labels": labels,
            "landmarks": landmarks,
            "mean": mean,
            "train_items": train_items,
            "val_items": val_items,
        }
        np.savez(making / "arrays.npz", allow_pickle=False, **arrays)
        meta = {
            "format": FORMAT,
            "digest": digest,
            "names": names,
            "landmark_names": list(landmark_names),
            "tags": dict(tags),
            "images_bytes": (making / "images.npy").stat().st_size,
            "arrays_sha256": _sum(making / "arrays.npz"),
        }
        (making / "meta.json").write_text(json.dumps(meta, indent=1))
        if final.exists():
            shutil.rmtree(final)
        os.rename(making, final)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _mean(images: NDArray[np.uint8], items: Items) -> NDArray[np.float32]:
    total = np.zeros(images.shape[1:], np.float64)
    distinct, counts = np.unique(items, axis=0, return_counts=True)
    for (index, mirrored), count in zip(distinct, counts, strict=True):
        image = images[index]
        total += count * (image[:, :, ::-1] if mirrored else image)
    return (total / max(1, len(items))).astype(np.float32)


def open_store(cache: Path, digest: str) -> CropStore | None:
    """The store of a digest, or None when there is none; a damaged one is a DataError."""
    folder = folder_of(cache, digest)
    if not folder.is_dir():
        return None
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        if meta["format"] != FORMAT or meta["digest"] != digest:
            raise ValueError(f"format {meta['format']} and digest {meta['digest']}, expected {FORMAT} and {digest}")
        size = (folder / "images.npy").stat().st_size
        if size != meta["images_bytes"]:
            raise ValueError(f"images.npy has {size} bytes, expected {meta['images_bytes']}")
        if _sum(folder / "arrays.npz") != meta["arrays_sha256"]:
            raise ValueError("arrays.npz has changed since it was written")
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            return CropStore(
                digest=digest,
                images_N3SS=images,
                labels_N=arrays["labels"],
                landmarks_NK2=arrays["landmarks"],
                mean_3SS=arrays["mean"],
                train_items=arrays["train_items"],
                val_items=arrays["val_items"],
                names=tuple(meta["names"]),
                landmark_names=tuple(meta["landmark_names"]),
                tags=meta["tags"],
            )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            [Problem(str(folder), f"this cache of crops is damaged: {error}", "Delete the folder; it is made anew.")]
        ) from error
