"""How often a run was begun and did not end, by cause: lost workers do not use up the retries of a run."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.train.run_dir import Folder, read, write

NAME = "attempts.json"
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
    token: str = field(default="", compare=False)
    """Names the attempt that may write in the folder: the last one that was begun."""

    @classmethod
    def read(cls, folder: Folder) -> Attempts:
        """The count so far; an attempt that nothing closed is still open in it."""
        found = read(folder, NAME)
        return cls(**json.loads(found)) if found is not None else cls()

    @classmethod
    def begin(cls, folder: Folder) -> Attempts:
        """Count the attempt before as lost if nothing closed it, and open the next one."""
        attempts = cls.read(folder)
        attempts.lost += attempts.open
        attempts.open, attempts.why, attempts.token = True, "", secrets.token_hex(8)
        attempts._write(folder)
        return attempts

    def close(self, folder: Folder, cause: Cause | None = None, why: str = "") -> None:
        """The attempt has ended: well, or by a cause that `why` tells in a sentence."""
        self.open, self.why = False, why
        self.lost += cause == "lost"
        self.memory += cause == "memory"
        self.error += cause == "error"
        self._write(folder)

    def check(self, folder: Folder) -> None:
        """Raises TakenOver when another process has begun the run anew: one that was taken for lost, because its head
        or its network was, must not write beside it."""
        if Attempts.read(folder).token != self.token:
            raise TakenOver(f"{folder} has been taken over by another process; this one writes no more")

    def _write(self, folder: Folder) -> None:
        write(folder, NAME, json.dumps(asdict(self)).encode())


class TakenOver(TrainingError):
    """Another process trains this run."""


def cause_of(error: BaseException) -> Cause:
    """Which count an error belongs to. A worker that vanishes makes the others fail in their next exchange."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
        return "lost"
    return "error"
