"""Tiny runs on a device, without Ray and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fakes.training import MemoryTracker, tiny

from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import InProcess, Runtime, StopRun
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths


class StopAfter(InProcess):
    """A worker that is asked to stop after some epoch, to be resumed."""

    def __init__(self, device: str, epoch: int) -> None:
        super().__init__(device)
        self.epoch = epoch

    def report(self, metrics: Mapping[str, float]) -> None:
        if int(metrics["epoch"]) == self.epoch:
            raise StopRun("asked to", resumable=True)


def request(folder: Path, name: str, **sections: Mapping[str, Any]) -> RunRequest:
    """A tiny run in a folder; sections are merged into its spec."""
    paths = Paths.from_environment({"IPCNN_HOME": str(folder / "home")})
    return RunRequest(RunSummary(name, name), tiny(**sections), paths, "handle", str(folder / "runs" / name))


def run(
    folder: Path, name: str, device: str, runtime: Runtime | None = None, **sections: Mapping[str, Any]
) -> RunSummary:
    """Train it to its end, or until the runtime stops it."""
    return train_run(request(folder, name, **sections), runtime or InProcess(torch.device(device)), MemoryTracker())


def weights(folder: Path, name: str) -> bytes:
    """Bytes of the final weights."""
    return (folder / "runs" / name / "weights.safetensors").read_bytes()
