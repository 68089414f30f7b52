"""Batches of items, each read, and copied to its device, while the one before is in use.

Rank r of W takes the r-th contiguous share of every global batch, so W workers together see the batches of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.core.seeds import generator
from ipcnn_ray.data.crop_store import rows_reader
from ipcnn_ray.data.split import Items

Read = Callable[[Items], Tensor]
"""Returns the rows (crops or features) of items [b, 2]."""
CHUNK_BYTES = 1 << 26
"""Bytes of one copy when an array is copied to a device."""


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch, on the device that it is used on."""

    rows: Tensor
    """Crops or features of the items."""
    mirrored: Tensor
    """[b] bool: whether the item is a mirror image."""
    labels: Tensor
    """[b] int64: index of the category, -1 for none."""


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of `count` items in an epoch. It depends on (seed, epoch) alone."""
    return torch.randperm(count, generator=generator("order", seed, epoch)).numpy()


def shares(order: NDArray[np.int64], batch_size: int, rank: int, world_size: int) -> list[NDArray[np.int64]]:
    """Return this rank's share of every full global batch. The remainder at the end of the order is dropped."""
    if batch_size % world_size:
        raise ValueError(f"batch_size = {batch_size}: expected a multiple of the {world_size} workers")
    local = batch_size // world_size
    return [
        order[start + rank * local : start + (rank + 1) * local]
        for start in range(0, len(order) - batch_size + 1, batch_size)
    ]


class Copies:
    """Copies to a device. On a GPU they run on a stream of their own, beside a training step, and nothing waits for
    them but what uses their result."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def batch(self, part: Items, labels_N: NDArray[np.int64], read: Read) -> tuple[Batch, torch.cuda.Event | None]:
        """Return the batch of a part, and what `arrived` takes."""
        with torch.cuda.stream(self._stream):  # None: no change
            tensors = (read(part), torch.from_numpy(part[:, 1] == 1), torch.from_numpy(labels_N[part[:, 0]]))
            batch = Batch(*(to_device(tensor, self.device) for tensor in tensors))
            return batch, self._stream.record_event() if self._stream else None

    def arrived(self, batch: Batch, copied: torch.cuda.Event | None) -> Batch:
        """Make the work that is queued from now on wait for the batch, and return it."""
        if copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copied)
            for tensor in (batch.rows, batch.mirrored, batch.labels):
                tensor.record_stream(stream)
        return batch


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device. The copy to a GPU is queued: this thread does not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def batches(
    parts: list[Items], labels_N: NDArray[np.int64], read: Read, copies: Copies | None = None
) -> Iterator[Batch]:
    """Yield the batch of each part, read one ahead in a thread that ends with the generator. copies: default: none, to
    the CPU."""
    copies = copies or Copies(torch.device("cpu"))

    def load(part: Items) -> tuple[Batch, torch.cuda.Event | None]:
        return copies.batch(part, labels_N, read)

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        ahead = [reader.submit(load, part) for part in parts[:1]]
        for following in [*parts[1:], None]:
            ready = ahead.pop() if ahead else None
            if following is not None:
                ahead.append(reader.submit(load, following))
            if ready is not None:
                yield copies.arrived(*ready.result())


class Rows:
    """Rows of an array by item, a `Read`: read from its file if it is mapped, or selected on a device that keeps it.

    row_of: Items [b, 2] -> their rows [b].
    """

    def __init__(self, array: NDArray[Any], row_of: Callable[[Items], NDArray[np.int64]]) -> None:
        self.nbytes = array.nbytes
        self._array, self._row_of, self._read = array, row_of, rows_reader(array)
        self._kept: Tensor | None = None

    def __call__(self, part: Items) -> Tensor:
        row_b = self._row_of(part)
        if self._kept is None:
            return torch.from_numpy(self._read(row_b))
        return self._kept.index_select(0, to_device(torch.from_numpy(np.ascontiguousarray(row_b)), self._kept.device))

    def keep(self, device: torch.device) -> None:
        """Copy the whole array to the device; from now on its rows are selected there, and are the same bytes."""
        count, step = len(self._array), max(1, CHUNK_BYTES // max(1, self._array[:1].nbytes))
        dtype = torch.from_numpy(self._read(np.zeros(0, np.int64))).dtype
        kept = torch.empty(self._array.shape, dtype=dtype, device=device)
        for start in range(0, count, step):
            rows = np.arange(start, min(start + step, count))
            kept[start : start + len(rows)] = torch.from_numpy(self._read(rows)).to(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # batches are selected on another stream
        self._kept = kept

    @property
    def kept(self) -> bool:
        """Whether a device keeps the array."""
        return self._kept is not None


def crops_reader(images_N3SS: NDArray[np.uint8]) -> Rows:
    """Return the crops of a mapped store; only the requested rows are read."""
    return Rows(images_N3SS, lambda part: part[:, 0])


def to_pixels(images_u8: Tensor, mirrored: Tensor, device: torch.device) -> Tensor:
    """Return the images as float32 on the device, values 0..255, mirrored where asked for."""
    images = images_u8.to(device, non_blocking=True)
    return torch.where(mirrored.to(device)[:, None, None, None], images.flip(3), images).float()


def to_input(images_u8: Tensor, mirrored: Tensor, mean_3SS: Tensor, scale: float, device: torch.device) -> Tensor:
    """Return network input, made on the device: mirrored where asked for, (pixel - mean) * scale."""
    return to_pixels(images_u8, mirrored, device).sub_(mean_3SS).mul_(scale)
