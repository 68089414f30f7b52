"""The store of crops: a folder with all images of a data section, written once and mapped by every worker of a machine.

The folder's name is the digest of the data, so a changed photograph or annotation gives another store. Masks of parts
are stored as their mean over the training objects (`MeanMasks` of crops.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.crops import G
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.utils.files import Stamps, atomic_folder, mark_used, sha256_of

FORMAT = 4
SAMPLES, SAMPLE_BYTES = 64, 4096
"""Number and size of the blocks of the images that are checked when a store is opened."""
ARRAYS = {
    "labels_N": ("labels", np.int64),
    "landmarks_NK2": ("landmarks", np.float32),
    "part_sizes_NK2": ("part_sizes", np.float32),
    "mean_masks_KGG": ("mean_masks", np.float32),
    "mean_3SS": ("mean", np.float32),
    "train_items": ("train_items", np.int64),
    "val_items": ("val_items", np.int64),
}
"""Field of `CropStore` -> its name and type in arrays.npz. All others but the images are in meta.json."""

Fill = Callable[[NDArray[np.uint8]], None]
"""Fills the mapped crops [N, 3, S, S]. May also fill the landmarks, part sizes and mean masks that it gave to
`Contents`, where they are known only then."""


@dataclass(frozen=True)
class Contents:
    """Everything in a store but its N crops, which are objects first, then negatives."""

    labels_N: NDArray[np.int64]
    """Index of the category, -1 for a negative."""
    categories: tuple[str, ...]
    landmarks_NK2: NDArray[np.float32]
    """(row, col) in pixels of the crop, pixel centers at whole numbers; NaN where the landmark is not seen."""
    train_items: Items
    val_items: Items
    names: tuple[str, ...]
    landmark_names: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of runs on this data."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of objects left out of the store, by reason."""
    part_sizes_NK2: NDArray[np.float32] | None = None
    """(height, width) of the box around each landmark's part, shares of the crop; NaN where it is not known."""
    mean_masks_KGG: NDArray[np.float32] | None = None
    """Mean mask of each landmark's part over the training objects, by offset from the center of its box (see
    `STEPS` of crops.py); NaN where no mask is known."""


@dataclass(frozen=True, kw_only=True)
class CropStore(Contents):
    """N square crops of side S with their annotations."""

    digest: str
    images_N3SS: NDArray[np.uint8]
    """RGB, memory-mapped."""
    mean_3SS: NDArray[np.float32]
    """Mean over the training items, repeats and mirror images counted, 0..255."""
    part_sizes_NK2: NDArray[np.float32]
    mean_masks_KGG: NDArray[np.float32]

    @property
    def size(self) -> int:
        """Side S of a crop, pixels."""
        return int(self.images_N3SS.shape[-1])

    @property
    def objects(self) -> NDArray[np.int64]:
        """Indices of the crops that show an object."""
        return np.flatnonzero(self.labels_N >= 0)

    def landmarks_of(self, items: Items) -> NDArray[np.float32]:
        """Return the landmarks [I, K, 2] of items [I, 2]. In a mirror image column c becomes column S - 1 - c."""
        landmarks_IK2 = self.landmarks_NK2[items[:, 0]]
        mirrored = items[:, 1] == 1
        landmarks_IK2[mirrored, :, 1] = self.size - 1 - landmarks_IK2[mirrored, :, 1]
        return landmarks_IK2


@dataclass(frozen=True)
class StorePlan:
    """How a store is made, checked but not begun."""

    content: str
    """Identifies what the crops are made from: a digest of files, or the name of a drawing."""
    contents: Contents
    fill: Fill
    made_from: Stamps = field(default_factory=dict)
    """Stamps of the source's files; as long as they hold, the store is found without reading the source."""


def folder_of(cache: Path, digest: str) -> Path:
    """Return the folder of the store with this digest."""
    return cache / "crops" / digest


def write_store(cache: Path, digest: str, size: int, contents: Contents, fill: Fill) -> None:
    """Write a store of crops of side `size` (pixels), completely or not at all. The caller holds the digest's lock.

    Raises DataError if the disk is too small. Exceptions of `fill` pass through and leave nothing behind.
    """
    final, count = folder_of(cache, digest), len(contents.labels_N)
    with atomic_folder(final) as making:
        needed, free = count * 3 * size * size, shutil.disk_usage(making).free
        if needed > free:
            what = f"has {free / 1e9:.1f} GB free and the crops need {needed / 1e9:.1f} GB"
            advice = "Free some space, or set IPCNN_CACHE to a folder on a larger disk."
            raise DataError([Issue(str(final.parent), what, advice)])
        images = np.lib.format.open_memmap(making / "images.npy", "w+", np.uint8, (count, 3, size, size))
        fill(images)
        images.flush()
        values = {**vars(contents), "mean_3SS": _mean(images, contents.train_items)}
        shape = contents.landmarks_NK2.shape
        for name, unknown in (("part_sizes_NK2", shape), ("mean_masks_KGG", (shape[1], G, G))):
            if values[name] is None:
                values[name] = np.full(unknown, np.nan)
        arrays = {key: np.asarray(values[name], dtype) for name, (key, dtype) in ARRAYS.items()}
        np.savez(making / "arrays.npz", allow_pickle=False, **arrays)
        del images
        meta = {
            "format": FORMAT,
            "digest": digest,
            "categories": contents.categories,
            "names": contents.names,
            "landmark_names": contents.landmark_names,
            "tags": dict(contents.tags),
            "left_out": dict(contents.left_out),
            "images_bytes": (making / "images.npy").stat().st_size,
            "images_samples_sha256": _samples_sum(making / "images.npy"),
            "arrays_sha256": sha256_of(making / "arrays.npz"),
        }
        (making / "meta.json").write_text(json.dumps(meta, indent=1))


def open_store(cache: Path, digest: str) -> CropStore | None:
    """Open the store with this digest; return None if there is none. Raises DataError if it is damaged.

    The images are checked by their length and a sample of their bytes.
    """
    folder = folder_of(cache, digest)
    if not folder.is_dir():
        return None
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        _check(folder, digest, meta)
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        mark_used(folder)
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            return CropStore(
                digest=digest,
                images_N3SS=images,
                **{name: arrays[key] for name, (key, _) in ARRAYS.items()},
                categories=tuple(meta["categories"]),
                names=tuple(meta["names"]),
                landmark_names=tuple(meta["landmark_names"]),
                tags=meta["tags"],
                left_out=meta["left_out"],
            )
    except FileNotFoundError as error:
        damage = f"{Path(error.filename).name} is missing"
    except KeyError as error:
        damage = f"{error} is missing"
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        damage = str(error)
    advice = "Delete the folder; it will be written again."
    raise DataError([Issue(str(folder), f"this cache of crops is damaged: {damage}", advice)])


def _check(folder: Path, digest: str, meta: dict[str, Any]) -> None:
    if meta["format"] != FORMAT or meta["digest"] != digest:
        raise ValueError(f"it says format {meta['format']}, digest {meta['digest']}; expected {FORMAT}, {digest}")
    images = folder / "images.npy"
    size = images.stat().st_size
    if size != meta["images_bytes"]:
        raise ValueError(f"images.npy has {size} bytes, expected {meta['images_bytes']}")
    if _samples_sum(images) != meta["images_samples_sha256"]:
        raise ValueError("images.npy has changed since it was written")
    if sha256_of(folder / "arrays.npz") != meta["arrays_sha256"]:
        raise ValueError("arrays.npz has changed since it was written")


def rows_reader(array: NDArray[Any]) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
    """Return a function that copies rows out of an array. Rows of a mapped file are read from the file.

    Pages touched through a mapping count as resident memory of the process, as if the dataset were loaded; pages of a
    file that is read do not.
    """
    mapped = _whole_file(array)
    if mapped is None:
        return lambda rows: array[rows]
    path, first_byte = mapped
    row_bytes = array[:1].nbytes

    def read(rows: NDArray[np.int64]) -> NDArray[Any]:
        out = np.empty((len(rows), *array.shape[1:]), array.dtype)
        target = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with path.open("rb", buffering=0) as file:
            for k, row in enumerate(rows.tolist()):
                part = target[k * row_bytes : (k + 1) * row_bytes]
                if os.preadv(file.fileno(), [part], first_byte + row * row_bytes) != row_bytes:
                    raise OSError(f"{path} ends before its row {row}")
        return out

    return read


def _whole_file(array: NDArray[Any]) -> tuple[Path, int] | None:
    """Return file and offset of the rows of a complete mapping; None for a part of one, or for an array in memory."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    path = Path(array.filename)
    return (path, array.offset) if path.stat().st_size == array.offset + array.nbytes else None


def _samples_sum(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as stream:
        last = max(0, path.stat().st_size - SAMPLE_BYTES)
        for k in range(SAMPLES):
            stream.seek(last * k // (SAMPLES - 1))
            total.update(stream.read(SAMPLE_BYTES))
    return total.hexdigest()


def _mean(images: NDArray[np.uint8], items: Items) -> NDArray[np.float32]:
    total = np.zeros(images.shape[1:], np.float64)
    distinct, counts = np.unique(items, axis=0, return_counts=True)
    for (index, mirrored), count in zip(distinct, counts, strict=True):
        image = images[index]
        total += count * (image[:, :, ::-1] if mirrored else image)
    return (total / len(items)).astype(np.float32)
