"""How often a run was begun and did not end, by cause: lost workers do not use up the retries of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from ipcnn_ray.train.checkpoint import write_whole

Cause = Literal["lost", "memory", "error"]


@dataclass
class Attempts:
    """Counts of one run, in `attempts.json` of its folder."""

    lost: int = 0
    """The process, or another one of the same run, vanished without a word: killed, preempted, node gone."""
    memory: int = 0
    """Out of memory, of the device or of the machine, where the process lived to say so."""
    error: int = 0
    """Another error in the run itself."""
    open: bool = False
    """An attempt is going on, or was lost."""
    why: str = ""
    """What the error of the last attempt said; empty when it did not end in one."""

    @classmethod
    def read(cls, folder: Path) -> Attempts:
        """The count so far; an attempt that nothing closed is still open in it."""
        path = folder / "attempts.json"
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()

    @classmethod
    def begin(cls, folder: Path) -> Attempts:
        """Count the attempt before as lost if nothing closed it, and open the next one."""
        attempts = cls.read(folder)
        attempts.lost += attempts.open
        attempts.open, attempts.why = True, ""
        attempts._write(folder)
        return attempts

    def close(self, folder: Path, cause: Cause | None = None, why: str = "") -> None:
        """The attempt has ended: well, or by a cause that `why` tells in a sentence."""
        self.open, self.why = False, why
        self.lost += cause == "lost"
        self.memory += cause == "memory"
        self.error += cause == "error"
        self._write(folder)

    def _write(self, folder: Path) -> None:
        write_whole(folder / "attempts.json", json.dumps(asdict(self)).encode())


def cause_of(error: BaseException) -> Cause:
    """Which count an error belongs to. A worker that vanishes makes the others fail in their next exchange."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
        return "lost"
    return "error"
