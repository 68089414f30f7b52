"""Batches of items, each read while the one before is in use.

Rank r of W takes the r-th contiguous share of every global batch, so W workers together see the batches of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.core.seeds import generator
from ipcnn_ray.data.crop_store import rows_reader
from ipcnn_ray.data.split import Items

Read = Callable[[Items], Tensor]
"""Returns the rows (crops or features) of items [b, 2], on the CPU."""


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch."""

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


def batches(parts: list[Items], labels_N: NDArray[np.int64], read: Read) -> Iterator[Batch]:
    """Yield the batch of each part, read one ahead in a thread that ends with the generator."""

    def load(part: Items) -> Batch:
        return Batch(read(part), torch.from_numpy(part[:, 1] == 1), torch.from_numpy(labels_N[part[:, 0]]))

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        ahead = [reader.submit(load, part) for part in parts[:1]]
        for following in [*parts[1:], None]:
            ready = ahead.pop() if ahead else None
            if following is not None:
                ahead.append(reader.submit(load, following))
            if ready is not None:
                yield ready.result()


def crops_reader(images_N3SS: NDArray[np.uint8]) -> Read:
    """Return a function that reads crops of a mapped store; only the requested rows are read."""
    read = rows_reader(images_N3SS)
    return lambda part: torch.from_numpy(read(part[:, 0]))


def to_pixels(images_u8: Tensor, mirrored: Tensor, device: torch.device) -> Tensor:
    """Return the images as float32 on the device, values 0..255, mirrored where asked for."""
    images = images_u8.to(device, non_blocking=True)
    return torch.where(mirrored.to(device)[:, None, None, None], images.flip(3), images).float()


def to_input(images_u8: Tensor, mirrored: Tensor, mean_3SS: Tensor, scale: float, device: torch.device) -> Tensor:
    """Return network input, made on the device: mirrored where asked for, (pixel - mean) * scale."""
    return to_pixels(images_u8, mirrored, device).sub_(mean_3SS).mul_(scale)
