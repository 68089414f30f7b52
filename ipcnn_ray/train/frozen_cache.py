"""Outputs of frozen layers, computed once per machine and mapped from disk: the same numbers as running the layers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.data.batches import Read
from ipcnn_ray.data.prepare import Progress
from ipcnn_ray.data.split import Items
from ipcnn_ray.data.store import rows_reader
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.net import InterpretableNet

CHUNK = 32
"""Items per forward pass while building."""
SPARE = 1 << 28
"""Bytes that stay free on the disk."""


def feature_key(data_digest: str, net: InterpretableNet, scale: float, device_type: str, items: Items) -> str:
    """Name of a cache: a sum over all that its numbers depend on, the frozen layers' among them."""
    frozen = list(net.body.items())[: net.cut]
    what = [data_digest, [[name, repr(module)] for name, module in frozen], scale, device_type, torch.__version__]
    total = hashlib.sha256(json.dumps(what).encode())
    for _, module in frozen:
        for tensor in module.state_dict().values():  # statistics of batch normalisation among them
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    total.update(items.tobytes())
    return total.hexdigest()[:16]


def features_reader(
    cache: Path,
    key: str,
    items: Items,
    shape: tuple[int, ...],
    compute: Callable[[Items], Tensor],
    progress: Progress | None = None,
) -> Read:
    """A reader of the features of `items` [I, 2], distinct and in order; built with `compute` if absent.

    compute: items [b, 2] -> features [b, *shape] float32. progress: called with (items done, items in all) while they
    are built, and with (0, items in all) before a wait for another process that builds them: one process of a machine
    builds, the others wait for it.
    Raises TrainingError when the disk is too small, or when what lies there is not what was written.
    """
    folder = cache / "features" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    tell = progress or _nobody
    if not folder.is_dir():
        tell(0, len(items))
    with FileLock(folder.parent / f"{key}.lock"):
        if not folder.is_dir():
            _build(folder, items, shape, compute, tell)
    features = rows_reader(_open(folder, (len(items), *shape)))
    row = np.full(2 * (int(items[:, 0].max()) + 1), -1, np.int64)
    row[items[:, 0] * 2 + items[:, 1]] = np.arange(len(items))

    def read(part: Items) -> Tensor:
        rows = row[part[:, 0] * 2 + part[:, 1]]
        assert (rows >= 0).all(), "an item that the cache was not built for"
        return torch.from_numpy(features(rows))

    return read


def _open(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        features: NDArray[np.float32] = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        if features.shape != shape or features.dtype != np.float32:
            raise ValueError(f"it holds {features.dtype} {features.shape}, expected float32 {shape}")
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the cached outputs of frozen layers in {folder} are damaged ({error}): delete the folder; it is made anew"
        ) from error
    return features


def _nobody(done: int, total: int) -> None:
    """Progress that nobody hears of."""


def _build(
    folder: Path, items: Items, shape: tuple[int, ...], compute: Callable[[Items], Tensor], tell: Progress
) -> None:
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)  # of a process that was killed while it built
    needed = len(items) * int(np.prod(shape)) * 4
    free = shutil.disk_usage(folder.parent).free - SPARE
    if needed > free:
        raise TrainingError(
            f"the outputs of the frozen layers for {len(items)} images need {needed / 1e9:.2f} GB, and {folder.parent} "
            f"has {max(0, free) / 1e9:.2f} GB to spare: free some space, set IPCNN_CACHE to a folder on a larger disk, "
            "or compute them anew every epoch with --set compute.cache_frozen=false"
        )
    making.mkdir()
    try:
        features = np.lib.format.open_memmap(making / "features.npy", "w+", np.float32, (len(items), *shape))
        for start in range(0, len(items), CHUNK):
            features[start : start + CHUNK] = compute(items[start : start + CHUNK]).cpu().numpy()
            tell(min(start + CHUNK, len(items)), len(items))
        features.flush()
        del features
        os.replace(making, folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
