"""A run that kills its own process, as a lost node would."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from fakes.training import Bench, tiny
from ipcnn_ray.train import checkpoint


def kill_at(call: int, real: Any) -> Any:
    """Return `real`, with SIGKILL when it is called for the `call`-th time."""
    calls = 0

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return killing


def killed_run(folder: Path, cache: Path, when: str) -> None:
    """Train until SIGKILL: in an optimizer step, counted over the run, or in the middle of the second `checkpoint`."""
    if when == "checkpoint":
        checkpoint.sha256_of = kill_at(4, checkpoint.sha256_of)  # a checkpoint has two files
    else:
        torch.optim.SGD.step = kill_at(int(when), torch.optim.SGD.step)  # type: ignore[method-assign]
    Bench(folder, cache).run(tiny(), f"killed-{when}")
