"""A run that kills its own process, as a node that is lost would: `python -m fakes.killed_run FOLDER CACHE WHEN`.

WHEN: the optimiser step, counted over the run, in which SIGKILL comes; `checkpoint` for the middle of the second
checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from fakes.training import Bench, MemoryTracker, tiny
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train.runtime import InProcess
from ipcnn_ray.train.trainer import train_run


def kill_at(call: int, real: Any) -> Any:
    """`real`, and SIGKILL when it is called for the `call`-th time."""
    calls = 0

    def killing(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    return killing


if __name__ == "__main__":
    folder, cache, when = sys.argv[1:]
    if when == "checkpoint":
        checkpoint.sha256_of = kill_at(2, checkpoint.sha256_of)
    else:
        torch.optim.SGD.step = kill_at(int(when), torch.optim.SGD.step)
    bench = Bench(Path(folder), Path(cache))
    train_run(bench.request(tiny(), f"killed-{when}"), InProcess(), MemoryTracker())
