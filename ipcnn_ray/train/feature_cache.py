"""Outputs of frozen layers, computed once per machine and mapped from disk: the same numbers as running the layers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.data.batches import Batch, Read, batches, crops_reader, to_input
from ipcnn_ray.data.crop_store import CropStore, rows_reader
from ipcnn_ray.data.datasets.dataset import Progress
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.utils.files import atomic_folder
from ipcnn_ray.utils.locks import file_lock

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
    report_progress = progress or _nobody
    if not folder.is_dir():
        report_progress(0, len(items))
    with file_lock(folder.parent / f"{key}.lock"):
        if not folder.is_dir():
            _build(folder, items, shape, compute, report_progress)
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
    folder: Path, items: Items, shape: tuple[int, ...], compute: Callable[[Items], Tensor], report_progress: Progress
) -> None:
    with atomic_folder(folder) as partial:
        needed = len(items) * int(np.prod(shape)) * 4
        free = shutil.disk_usage(partial).free - SPARE
        if needed > free:
            raise TrainingError(
                f"the outputs of the frozen layers for {len(items)} images need {needed / 1e9:.2f} GB, and "
                f"{folder.parent} has {max(0, free) / 1e9:.2f} GB to spare: free some space, set IPCNN_CACHE to a "
                "folder on a larger disk, or compute them anew every epoch with --set compute.cache_frozen=false"
            )
        features = np.lib.format.open_memmap(partial / "features.npy", "w+", np.float32, (len(items), *shape))
        for start in range(0, len(items), CHUNK):
            features[start : start + CHUNK] = compute(items[start : start + CHUNK]).cpu().numpy()
            report_progress(min(start + CHUNK, len(items)), len(items))
        features.flush()
        del features


class InputPipeline:
    """Batches of a store, and what of them enters `net(rows, from_features=True)`.

    Frozen layers run here, in float32 whatever the precision of training, so that reading their outputs from disk
    gives the same numbers.
    """

    def __init__(self, store: CropStore, net: InterpretableNet, scale: float, device: torch.device) -> None:
        self.store = store
        self.net = net
        self.scale = scale
        self.device = device
        self.mean_3SS = torch.from_numpy(store.mean_3SS).to(device)
        self._crops = crops_reader(store.images_N3SS)
        self._features: Read | None = None

    def cache(self, folder: Path, items: Items, progress: Progress | None = None) -> None:
        """From now on read the frozen layers' outputs for `items` from `folder`, where they are put if absent."""

        def compute(part: Items) -> Tensor:
            return self._frozen(self._crops(part), torch.from_numpy(part[:, 1] == 1))

        key = feature_key(self.store.digest, self.net, self.scale, self.device.type, items)
        self._features = features_reader(folder, key, items, self.net.feature_shape(), compute, progress)

    def loader(self, parts: list[Items]) -> closing[Generator[Batch, None, None]]:
        """Batches of these items, for a `with` block: their reading thread ends with it, whatever happens there."""
        generator = batches(parts, self.store.labels_N, self._features or self._crops)
        return closing(cast("Generator[Batch, None, None]", generator))

    def rows(self, batch: Batch) -> Tensor:
        """What of a batch enters the first layer that is trained, on the device."""
        if self._features is not None:
            return batch.rows.to(self.device)
        return self._frozen(batch.rows, batch.mirrored)

    def images(self, parts: list[Items]) -> closing[Generator[Batch, None, None]]:
        """As `loader`, but always the crops themselves, for `changed_rows`."""
        generator = batches(parts, self.store.labels_N, self._crops)
        return closing(cast("Generator[Batch, None, None]", generator))

    def changed_rows(self, batch: Batch, added_b3SS: Tensor) -> Tensor:
        """As `rows`, of a batch of `images` with something added to their pixels (0..255)."""
        images = to_input(batch.rows, batch.mirrored, self.mean_3SS, self.scale, self.device)
        return self.net.frozen_features(images + added_b3SS.to(self.device) * self.scale)

    def _frozen(self, crops_u8: Tensor, mirrored: Tensor) -> Tensor:
        return self.net.frozen_features(to_input(crops_u8, mirrored, self.mean_3SS, self.scale, self.device))


def distinct_items(*items: Items) -> Items:
    """Each (crop, mirrored) pair once, in order."""
    return np.unique(np.concatenate(items), axis=0)
