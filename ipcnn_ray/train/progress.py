"""Progress of a run within an epoch: one small file in the run's directory, for `ipcnn submit` to show.

Progress is optional. A file that cannot be written or read is ignored, and it is written at most every
`write_interval_s` seconds.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train.run_dir import PROGRESS_FILE, Folder, local_path

LOCAL_INTERVAL_S, BUCKET_INTERVAL_S = 2.0, 15.0


@dataclass(frozen=True)
class ProgressUpdate:
    """A phase of a run and how far it is, such as `training epoch 3`, 10 of 56 steps."""

    what: str
    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        return f"{self.what}, {self.done} of {self.total} {self.unit}"


def write_interval_s(folder: Folder) -> float:
    """Return the seconds between two writes, or two reads, of the progress file in this directory."""
    return BUCKET_INTERVAL_S if local_path(folder) is None else LOCAL_INTERVAL_S


class ProgressFile:
    """The progress file of one run."""

    def __init__(self, folder: Folder) -> None:
        self._files = open_storage(str(folder))  # no retries: progress is not worth waiting for
        self._interval_s = write_interval_s(folder)
        self._next_write = 0.0

    def write(self, update: ProgressUpdate) -> None:
        """Store an update, unless the last one was stored less than the interval ago."""
        if time.monotonic() < self._next_write:
            return
        self._next_write = time.monotonic() + self._interval_s
        try:
            self._files.put_bytes(json.dumps(asdict(update)).encode(), PROGRESS_FILE)
        except IpcnnError:
            self._next_write += 10 * self._interval_s

    def read(self) -> ProgressUpdate | None:
        """Return the latest update, or None if there is none that can be read."""
        try:
            raw = self._files.get(PROGRESS_FILE) if self._files.exists(PROGRESS_FILE) else None
            return ProgressUpdate(**json.loads(raw)) if raw is not None else None
        except (IpcnnError, ValueError, TypeError):
            return None

    def clear(self) -> None:
        """Delete the file, when the run has ended or is about to be retried."""
        try:
            self._files.delete(PROGRESS_FILE)
        except IpcnnError:
            return
