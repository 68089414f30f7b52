"""Runtime: what the training loop needs from its process, device and worker group; causes of failures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ipcnn_ray.core.workers import Workers, all_gather
from ipcnn_ray.train.run_dir import Cause


class StopRun(Exception):
    """Raised by `Runtime.report` to stop the run after the epoch that was just reported.

    Args:
        reason: A sentence for the tracked run.
        resumable: Whether the run continues when it is submitted again (it was interrupted). Otherwise it has ended
            (the search stopped it).
    """

    def __init__(self, reason: str, *, resumable: bool = False) -> None:
        self.reason = reason
        self.resumable = resumable
        super().__init__(reason)


def failure_cause(error: BaseException) -> Cause:
    """Classify an error. A worker that dies makes the others fail in their next collective."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
        return "lost"
    return "error"


def format_error(error: BaseException) -> str:
    """Return the type and text of an error in one sentence, marked if memory ran out."""
    prefix = "out of memory: " if failure_cause(error) == "memory" else ""
    return f"{prefix}{type(error).__name__}: {error}"


class Runtime(Workers):
    """One worker of a run; this class is the only worker of a run, in this process."""

    gpus = 1.0
    """GPUs of this worker, below 1 where several runs share one; without a meaning on a CPU."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module in DDP, which averages gradients over the workers; for one worker the module itself."""
        return module

    def report(self, metrics: Mapping[str, float]) -> None:
        """Called on every rank when an epoch is complete and its checkpoint stored. May raise StopRun, on any rank."""

    def spare_cores(self) -> int:
        """Return how many cores of this machine, besides those of the run, this worker may use for a while."""
        return 0

    def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Called often, on every rank, with progress within an epoch: `training epoch 3`, 10 of 56 `steps`."""


class ProcessGroup(Runtime):
    """One worker of an initialised torch.distributed process group (gloo on CPUs, NCCL on GPUs)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.world_size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        ids = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed in torch 2.15; 2.11 has only this name
            return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def gather(self, x: Tensor) -> Tensor:
        return all_gather(x, self.world_size)
