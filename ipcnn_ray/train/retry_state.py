"""Failed attempts of a run by cause, and which attempt owns the run's directory.

Lost workers are counted apart from errors: they do not use up `compute.retries`.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.train.run_dir import ATTEMPTS_FILE, Folder, read_file, write_file

Cause = Literal["lost", "memory", "error"]


class RunTakenOver(TrainingError):
    """Another process has started to train this run."""


@dataclass
class Attempts:
    """Number of failed attempts of one run by cause, stored in its directory."""

    lost: int = 0
    """The process, or another worker of the run, died without an error: killed, preempted, node lost."""
    memory: int = 0
    """Out of memory, on the device or on the host, in a process that survived to report it."""
    error: int = 0
    """Any other error."""
    open: bool = False
    """An attempt is under way, or was lost."""
    why: str = ""
    """Error of the last attempt; empty if it had none."""
    token: str = field(default="", compare=False)
    """Identifies the attempt that owns the directory: the latest one."""

    @classmethod
    def read(cls, folder: Folder) -> Attempts:
        """Return the stored counts. A lost attempt that nothing has counted yet is still `open`."""
        raw = read_file(folder, ATTEMPTS_FILE)
        return cls(**json.loads(raw)) if raw is not None else cls()

    @classmethod
    def begin(cls, folder: Folder) -> Attempts:
        """Start an attempt, which owns the directory from now on. An attempt that is still open counts as lost."""
        attempts = cls.read(folder)
        attempts.lost += attempts.open
        attempts.open, attempts.why, attempts.token = True, "", secrets.token_hex(8)
        attempts._write(folder)
        return attempts

    def finish(self, folder: Folder, cause: Cause | None = None, why: str = "") -> None:
        """End the attempt: in success, or for a cause."""
        self.open, self.why = False, why
        self.lost += cause == "lost"
        self.memory += cause == "memory"
        self.error += cause == "error"
        self._write(folder)

    def check_owner(self, folder: Folder) -> None:
        """Raise RunTakenOver if a later attempt owns the directory. This process was then taken for dead, because the
        network or the head node was, and must write no more."""
        if Attempts.read(folder).token != self.token:
            raise RunTakenOver(f"{folder} has been taken over by another process; this one writes no more")

    def tags(self) -> dict[str, str]:
        return {f"ipcnn.attempts_{cause}": str(getattr(self, cause)) for cause in ("lost", "memory", "error")}

    def _write(self, folder: Folder) -> None:
        write_file(folder, ATTEMPTS_FILE, json.dumps(asdict(self)).encode())


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
