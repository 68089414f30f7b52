"""What a run leaves in its folder: a checkpoint per epoch, its result, and a count of attempts.

Files appear whole or not at all (written beside, synced, renamed), and are read without unpickling.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.tracking.protocol import State

KEEP = 2


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    run_id: str
    state: State
    why: str
    """Cause of a failure or stop, in a sentence; empty otherwise."""
    epochs: int
    """Epochs that were trained."""
    metrics: Mapping[str, float]
    """Metrics of the last epoch."""


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(folder: Path, epoch: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of an epoch and forget all but the newest two."""
    path = folder / "checkpoints" / f"epoch-{epoch:04}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, path)
    for old in _checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def _checkpoints(folder: Path) -> list[Path]:
    found = (folder / "checkpoints").glob("epoch-*.pt")
    return sorted(path for path in found if re.fullmatch(r"epoch-\d{4,}\.pt", path.name))


@dataclass(frozen=True)
class Restored:
    """The newest readable checkpoint, and the names of newer ones that could not be read."""

    state: dict[str, Any] | None
    damaged: tuple[str, ...]


def newest(folder: Path, digest: str, device: torch.device) -> Restored:
    """The checkpoint to go on from. One that another experiment wrote is a TrainingError."""
    damaged = []
    for path in reversed(_checkpoints(folder)):
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds on a damaged file
            damaged.append(f"{path.name} ({type(error).__name__})")
            continue
        if state["digest"] != digest:
            raise TrainingError(
                f"{path} belongs to the experiment {state['digest']}, this one is {digest}: "
                "submit with --fresh, or under another name"
            )
        return Restored(state, tuple(damaged))
    return Restored(None, tuple(damaged))


def write_result(folder: Path, result: RunResult) -> None:
    """Say that the run has ended; from now on it is not trained again."""
    write_whole(folder / "result.json", json.dumps(asdict(result), indent=1).encode())


def read_result(folder: Path) -> RunResult | None:
    """The result of a run that has ended, or None."""
    path = folder / "result.json"
    return RunResult(**json.loads(path.read_text())) if path.is_file() else None


@dataclass
class Attempts:
    """How often a run was begun and did not end, by cause."""

    lost: int = 0
    """The process vanished without a word: killed, preempted, out of memory, node gone."""
    error: int = 0
    """An error in the run itself."""
    open: bool = False
    why: str = ""
    """What the last error said; empty when the last attempt did not end in one."""

    @classmethod
    def read(cls, folder: Path) -> Attempts:
        """The count so far."""
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

    def close(self, folder: Path, why: str = "") -> None:
        """The attempt has ended: well, or by the error that `why` tells."""
        self.open, self.why = False, why
        self.error += bool(why)
        self._write(folder)

    def _write(self, folder: Path) -> None:
        write_whole(folder / "attempts.json", json.dumps(asdict(self)).encode())
