"""What the training loop needs to know of the machine it runs on, and nothing more."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class StopRun(Exception):
    """Raised by `Runtime.report`: the run is to end after the epoch that was just recorded.

    resumable: the run goes on from there when it is executed again (somebody interrupted it); else it has ended (its
    search gave up on it). `why` is a sentence for the record.
    """

    def __init__(self, why: str, *, resumable: bool = False) -> None:
        self.why = why
        self.resumable = resumable
        super().__init__(why)


class Runtime(Protocol):
    """One worker's view of a run. `gather` is the only collective: all else is computed from it in rank order,
    so that sums are the same on every rank."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are averaged over the workers (DDP), or the module itself for one worker."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """All workers' `x` (same shape everywhere) as [world_size, *x.shape], on every worker."""
        ...

    def report(self, metrics: Mapping[str, float]) -> None:
        """An epoch is over and recorded; called on every rank, in the same order. May raise StopRun, on any rank."""
        ...

    def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Where the run is: `training epoch 3`, 10 of 56 `steps`. For whoever watches; called often, on every rank."""
        ...


class InProcess:
    """One worker in this process: tests, and the base of the cheap one-worker trials."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.reported: list[dict[str, float]] = []

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def report(self, metrics: Mapping[str, float]) -> None:
        self.reported.append(dict(metrics))

    def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Nobody watches."""


class ProcessGroup:
    """A worker of an initialised torch.distributed group (gloo on CPUs, NCCL on GPUs)."""

    def __init__(self, device: torch.device) -> None:
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.device = device

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.world_size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        ids = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 has another name for this, 2.11 only this one
            return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, x)
        return torch.stack(parts)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody listens beyond the record."""

    def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Nobody watches."""
