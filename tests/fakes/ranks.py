"""Several workers as threads that meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def on_ranks(world: int, work: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """Run `work(rank, gather)` on every rank at once and return what each returned; the first error is raised."""
    barrier, slots = threading.Barrier(world, timeout=60), [torch.empty(0)] * world

    def rank_work(rank: int) -> Any:
        def gather(x: Tensor) -> Tensor:
            slots[rank] = x.clone()
            barrier.wait()
            gathered = torch.stack(slots)
            barrier.wait()
            return gathered

        try:
            return work(rank, gather)
        except threading.BrokenBarrierError:
            raise
        except BaseException as error:
            errors.append(error)
            barrier.abort()
            raise

    errors: list[BaseException] = []
    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(rank_work, rank) for rank in range(world)]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
