"""Cache of the outputs of frozen layers, and the batches that training and evaluation read from it.

    <cache>/features/<key>/features.npy     float32 [I, C, H, W], one row per (crop, mirrored) pair

A cache is computed once per machine and memory-mapped. Reading it gives the numbers of the frozen layers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.data.augmentation import colored, cropped, mirrors
from ipcnn_ray.data.batches import Batch, Copies, Rows, batches, crops_reader, to_device, to_input, to_pixels
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.datasets.dataset import Progress
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.named_weights import Colour
from ipcnn_ray.models.net import InterpretableNet, NetOutput
from ipcnn_ray.spec.data import Augment
from ipcnn_ray.utils.files import mark_used, sync_folder
from ipcnn_ray.utils.locks import ChunkClaims, file_lock

CHUNK = 32
"""Items per forward pass when the cache is computed. The numbers depend on it."""
CHUNK_BYTES = 2 << 30
"""Memory that the forward pass of a chunk may take. The first layers of VGG-16 take about half."""
SPARE = 1 << 28
"""Bytes that stay free on the disk."""
POLL_S = 0.05
"""Seconds between two looks at the chunks that other processes compute."""
KEPT_SHARE = 0.25
"""Share of the free memory of a GPU that crops and features may take, of all runs that share it."""
FEATURES, CHUNKS = "features.npy", "chunks"


def feature_key(data_digest: str, net: InterpretableNet, scale: float, how: str, items: Items) -> str:
    """Return the name of a cache: a hash of all that its numbers depend on, including the weights of frozen layers.

    how: Type of the device, `fast` with `compute.speed: fast`, and the mean if it is not that of the data.
    """
    frozen = list(net.body.items())[: net.cut]
    config = [data_digest, [[name, repr(module)] for name, module in frozen], scale, how, torch.__version__]
    sha256 = hashlib.sha256(json.dumps(config).encode())
    for _, module in frozen:
        for tensor in module.state_dict().values():  # includes the statistics of batch normalisation
            sha256.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    sha256.update(items.tobytes())
    return sha256.hexdigest()[:16]


def features_reader(
    cache: Path,
    key: str,
    items: Items,
    shape: tuple[int, ...],
    compute: Callable[[Items], Tensor],
    progress: Progress = lambda done, total: None,
    threads: int = 1,
) -> Rows:
    """Return the rows of the features of `items` [I, 2], distinct and sorted. Features that are missing are computed.

    All processes that need the same missing features compute them together, chunk by chunk, each in one or several
    threads. The numbers do not depend on how many they are: every chunk is one forward pass of the same items. A chunk
    of a process that is killed is computed by another one, or by the next run.

    Args:
        compute: Items [b, 2] -> features [b, *shape] float32.
        progress: Called with the number of items that are done and in all; not if the features exist.
        threads: Chunks that this process computes at the same time.

    Raises:
        TrainingError: If the disk is too small, or the file in the cache is damaged.
    """
    folder = cache / "features" / key
    while not folder.is_dir():
        _build(folder, items, shape, compute, progress, threads)
    row = np.full(2 * (int(items[:, 0].max()) + 1), -1, np.int64)
    row[items[:, 0] * 2 + items[:, 1]] = np.arange(len(items))

    def row_of(part: Items) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = row[part[:, 0] * 2 + part[:, 1]]
        assert (rows >= 0).all(), "an item that the cache was not built for"
        return rows

    return Rows(_open(folder, (len(items), *shape)), row_of)


def _open(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        features: NDArray[np.float32] = np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False)
        if features.shape != shape or features.dtype != np.float32:
            raise ValueError(f"it holds {features.dtype} {features.shape}, expected float32 {shape}")
        mark_used(folder)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the cached outputs of frozen layers in {folder} are damaged ({error}): delete the folder; it is made anew"
        ) from error
    return features


def _build(
    folder: Path,
    items: Items,
    shape: tuple[int, ...],
    compute: Callable[[Items], Tensor],
    progress: Progress,
    threads: int,
) -> None:
    """Compute the missing chunks of `.<key>`, together with other processes, and rename it to `<key>` when complete.

    `.<key>` has features.npy at its full size, and `chunks`, which is written last and says which of them are done.
    """
    lock, partial = folder.with_name(f"{folder.name}.lock"), folder.with_name(f".{folder.name}")
    with file_lock(lock):
        if folder.is_dir():
            return
        if not (partial / CHUNKS).is_file():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _allocate(partial, len(items), shape)
        claims = ChunkClaims(partial / CHUNKS)
    try:
        _compute_chunks(partial / FEATURES, claims, items, compute, progress, threads)
        with file_lock(lock):
            if claims.is_of(partial / CHUNKS):
                partial.replace(folder)
                (folder / CHUNKS).unlink()
                sync_folder(folder.parent)
    except BaseException:
        with file_lock(lock):
            if claims.is_of(partial / CHUNKS) and claims.is_last():
                shutil.rmtree(partial)
        raise
    finally:
        claims.close()


def _allocate(partial: Path, count: int, shape: tuple[int, ...]) -> None:
    needed = count * math.prod(shape) * 4
    free = shutil.disk_usage(partial).free - SPARE
    if needed > free:
        partial.rmdir()
        raise TrainingError(
            f"the outputs of the frozen layers for {count} images need {needed / 1e9:.2f} GB, and "
            f"{partial.parent} has {max(0, free) / 1e9:.2f} GB to spare: free some space, set IPCNN_CACHE to a "
            "folder on a larger disk, or compute them anew every epoch with --set compute.cache_frozen=false"
        )
    np.lib.format.open_memmap(partial / FEATURES, "w+", np.float32, (count, *shape)).flush()
    ChunkClaims.create(partial / CHUNKS, -(-count // CHUNK))


def _compute_chunks(
    file: Path,
    claims: ChunkClaims,
    items: Items,
    compute: Callable[[Items], Tensor],
    progress: Progress,
    threads: int,
) -> None:
    """Compute chunks that nobody else works on, until all are done. An error in one thread ends all."""
    features, of_torch, failed = np.load(file, mmap_mode="r"), torch.get_num_threads(), threading.Event()

    def work(progress: Progress) -> None:
        torch.set_num_threads(of_torch)  # new threads of Python would take all cores
        try:
            with file.open("r+b") as out:
                while not failed.is_set() and (done := claims.done()) < claims.count:
                    progress(min(done * CHUNK, len(items)), len(items))
                    chunk = claims.claim()
                    if chunk is None:  # others compute the last chunks
                        time.sleep(POLL_S)
                        continue
                    start = chunk * CHUNK
                    rows = compute(items[start : start + CHUNK]).cpu().numpy()
                    out.seek(features.offset + start * features.strides[0])
                    out.write(rows.tobytes())
                    out.flush()
                    os.fsync(out.fileno())
                    claims.mark_done(chunk)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(threads) as pool:
        others = [pool.submit(work, lambda done, total: None) for _ in range(threads - 1)]
        work(progress)
    for other in others:
        other.result()
    progress(len(items), len(items))


class InputPipeline:
    """Batches of a store as input of the first trained layer, `net(rows, from_features=True)`.

    Frozen layers run here, always in float32, so that outputs read from the cache are the same numbers.

    Crops and features that fit stay on a GPU from their first batch on; others are copied from pinned memory while the
    step before runs. The numbers are the same.

    fast: As `compute.speed` says; part of the name of the cache.
    gpu_share: Share of the GPU that the run has.
    mean: Subtracted from the images, red, green, blue, 0..255. Default: the mean image of the training split.
    room: Bytes that crops and features may take on the device. Default: `KEPT_SHARE` of what is free on a GPU when
        they are first used, times `gpu_share`; 0 on a CPU.
    """

    def __init__(
        self,
        store: CropStore,
        net: InterpretableNet,
        scale: float,
        device: torch.device,
        *,
        fast: bool = False,
        gpu_share: float = 1.0,
        mean: Colour | None = None,
        room: int | None = None,
    ) -> None:
        self.store = store
        self.net = net
        self.scale = scale
        self.device = device
        self.fast = fast
        self.gpu_share = gpu_share
        self.mean = mean
        self.mean_3SS = torch.from_numpy(store.mean_3SS).to(device)
        if mean:
            self.mean_3SS = torch.tensor(mean, device=device)[:, None, None].expand_as(self.mean_3SS).contiguous()
        self._crops = crops_reader(store.images_N3SS)
        self._features: Rows | None = None
        self.features_key = ""
        """Name of the cache of the frozen layers' outputs; empty without one."""
        self._copies = Copies(device)
        self._room = room
        self._placed: set[Rows] = set()

    def use_cache(
        self, folder: Path, items: Items, progress: Progress = lambda done, total: None, *, spare_cores: int = 0
    ) -> None:
        """Read the frozen layers' outputs for `items` from the cache in `folder`, which is computed if missing.

        spare_cores: Cores of this machine besides those of the run that may help, as far as there is memory. The
            numbers are the same.
        """

        def compute(part: Items) -> Tensor:
            return self._frozen(self._crops(part), torch.from_numpy(part[:, 1] == 1))

        how = f"{self.device.type} fast" if self.fast else self.device.type
        if self.mean:
            how += f", mean {self.mean}"
        key = feature_key(self.store.digest, self.net, self.scale, how, items)
        self.features_key = key
        threads = 1
        if self.device.type == "cpu":
            with_memory = psutil.virtual_memory().available // CHUNK_BYTES
            threads += int(min(spare_cores // torch.get_num_threads(), with_memory))
        self._features = features_reader(folder, key, items, self.net.feature_shape(), compute, progress, threads)

    def loader(self, parts: list[Items], *, crops: bool = False) -> closing[Generator[Batch, None, None]]:
        """Return a generator of batches as a context manager, which ends its reader thread.

        crops: The batches hold crops even if there is a cache, for `augmented_input`, and `output` with `added_b3SS`.
        """
        read = self._crops if crops or self._features is None else self._features
        self._place(read)
        generator = batches(parts, self.store.labels_N, read, self._copies)
        return closing(cast("Generator[Batch, None, None]", generator))

    def _place(self, rows: Rows) -> None:
        """Keep an array on the device if it fits, the first time that it is used."""
        if rows in self._placed:
            return
        self._placed.add(rows)
        if self._room is None:
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
            self._room = int(KEPT_SHARE * self.gpu_share * free)
        if rows.nbytes <= self._room:
            self._room -= rows.nbytes
            rows.keep(self.device)

    def net_input(self, batch: Batch) -> Tensor:
        """Return the input of the first trained layer, on the device."""
        if self._features is not None:
            return batch.rows
        return self._frozen(batch.rows, batch.mirrored)

    def augmented_input(self, batch: Batch, draws_bD: Tensor, augment: Augment) -> Tensor:
        """Return the input of the first trained layer for a batch of crops, changed at random.

        draws_bD: random numbers of the batch's items (`augmentation.draws`).
        """
        draws_bD = to_device(draws_bD, self.device)
        mirrored = batch.mirrored ^ mirrors(draws_bD) if augment.mirror else batch.mirrored
        images = to_pixels(batch.rows, mirrored, self.device)
        images = colored(cropped(images, draws_bD, augment.crop or (1.0, 1.0)), draws_bD, augment.color)
        return self.net.frozen_features((images - self.mean_3SS) * self.scale)

    def output(self, batch: Batch, added_b3SS: Tensor | None = None) -> NetOutput:
        """Return the output of the network for a batch.

        added_b3SS: Added to the pixels (0..255) of a batch of crops.
        """
        if added_b3SS is None:
            rows = self.net_input(batch)
        else:
            images = to_input(batch.rows, batch.mirrored, self.mean_3SS, self.scale, self.device)
            rows = self.net.frozen_features(images + to_device(added_b3SS, self.device) * self.scale)
        return cast(NetOutput, self.net(rows, from_features=True, full=True))

    def _frozen(self, crops_u8: Tensor, mirrored: Tensor) -> Tensor:
        return self.net.frozen_features(to_input(crops_u8, mirrored, self.mean_3SS, self.scale, self.device))


def distinct_items(*items: Items) -> Items:
    """Return each (crop, mirrored) pair once, sorted."""
    return np.unique(np.concatenate(items), axis=0)
