"""Several workers, played by threads that meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def on_ranks(world: int, work: Callable[[int, Callable[[Tensor], Tensor]], object]) -> list:
    """`work(rank, gather)` on every rank at once; what each returned."""
    barrier, slots = threading.Barrier(world, timeout=30), [torch.empty(0)] * world

    def rank_work(rank: int) -> object:
        def gather(x: Tensor) -> Tensor:
            slots[rank] = x.clone()
            barrier.wait()
            everything = torch.stack(slots)
            barrier.wait()
            return everything

        return work(rank, gather)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(rank_work, range(world)))
