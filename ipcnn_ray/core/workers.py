"""Workers: the processes that train one network together, each on its share of every batch.

W workers. `gather` is the only collective; sums are computed from it in rank order, so that they are the same on every
rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Workers:
    """The workers of a training as one of them sees it; this class is the only worker, in this process."""

    rank = 0
    world_size = 1

    def gather(self, x: Tensor) -> Tensor:
        """Return the `x` of all workers, of equal shapes, as [world_size, *x.shape] on every worker."""
        return x.unsqueeze(0)


class WorkerGroup(Workers):
    """The workers of torch.distributed's default process group, which is initialised."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()

    def gather(self, x: Tensor) -> Tensor:
        return all_gather(x, self.world_size)


def current_workers() -> Workers:
    """Return the workers of torch.distributed's default process group; a single one where none is initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return WorkerGroup()
    return Workers()


def all_gather(x: Tensor, world_size: int) -> Tensor:
    """Return the `x` of all workers of the default process group, of equal shapes, as [world_size, *x.shape]."""
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size)]
    torch.distributed.all_gather(parts, x)
    return torch.stack(parts)


def gather_objects(value: Any, workers: Workers) -> list[Any]:
    """Return the pickled and unpickled `value` of every worker of the default process group, in rank order."""
    if workers.world_size == 1:
        return [value]
    values: list[Any] = [None] * workers.world_size
    torch.distributed.all_gather_object(values, value)
    return values
