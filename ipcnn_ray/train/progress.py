"""Where a run is right now, beside its record: one small file in its folder, for whoever watches.

Nothing depends on it: a stage that cannot be written or read is left out, and it is written so seldom that it costs
nothing beside what it tells of.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train.run_dir import Folder, on_disk

FILE = "stage.json"
EVERY_S, EVERY_S_IN_A_BUCKET = 2.0, 15.0
"""Seconds between two writes, or two looks."""


@dataclass(frozen=True)
class Stage:
    """`training epoch 3`, 10 of 56 steps."""

    what: str
    done: int
    total: int
    unit: str

    def words(self) -> str:
        return f"{self.what}, {self.done} of {self.total} {self.unit}"


def seconds_between(folder: Folder) -> float:
    """How often a stage is written to this folder, and looked for."""
    return EVERY_S_IN_A_BUCKET if on_disk(folder) is None else EVERY_S


class StageFile:
    """The stage of the run in a folder."""

    def __init__(self, folder: Folder) -> None:
        self._files = open_storage(str(folder))  # without patience: a stage is not worth waiting for
        self._every = seconds_between(folder)
        self._due = 0.0

    def tell(self, stage: Stage) -> None:
        """The run is there; may be called often."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._every
        try:
            self._files.put_bytes(json.dumps(asdict(stage)).encode(), FILE)
        except IpcnnError:
            self._due += 10 * self._every

    def look(self) -> Stage | None:
        """Where the run is; None where nothing is told, or nothing can be read."""
        try:
            return Stage(**json.loads(self._files.get(FILE))) if self._files.exists(FILE) else None
        except (IpcnnError, ValueError, TypeError):
            return None

    def forget(self) -> None:
        """The run has ended, or is not at work any more."""
        try:
            self._files.delete(FILE)
        except IpcnnError:
            return
