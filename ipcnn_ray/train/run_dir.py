"""The directory of a run: its files, on a file system or in a bucket, its failed attempts, and its progress.

checkpoints/epoch-0007/   network, state of training and meta.json, one folder per epoch (checkpoint.py)
attempts.json             failed attempts by cause, and the owner of the directory (Attempts)
stage.json                progress of the run within an epoch (ProgressFile)
template.json             the template that a tailored template was fitted to (final_model.py)
weights.safetensors       final weights
result.json               state and metrics of a run that has ended
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ipcnn_ray.errors import IpcnnError, TrainingError
from ipcnn_ray.tracking.storage import Storage, is_url, open_storage

ATTEMPTS_FILE = "attempts.json"
PROGRESS_FILE = "stage.json"
TEMPLATE_FILE = "template.json"
WEIGHTS_FILE = "weights.safetensors"
"""Also the name of the artifact under `weights` of the tracked run."""
MEAN_KEY = "input_mean"
"""Key of the mean image among the tensors of `WEIGHTS_FILE`."""
FILTERS_FILE = "filters.json"
"""What each filter follows, after the last evaluation."""
RESULT_FILE = "result.json"

Folder = str | Path
"""A path, or an s3://bucket/prefix URL."""
STORAGE_TIMEOUT_S = 1800.0
"""Seconds that a run waits for a storage that does not answer before it fails."""
LOCAL_INTERVAL_S, BUCKET_INTERVAL_S = 2.0, 15.0
"""Seconds between two writes of the progress file."""


def open_run_dir(folder: Folder) -> Storage:
    """Return the storage of a run's files, whose keys are relative to the directory."""
    return open_storage(str(folder), STORAGE_TIMEOUT_S)


def read_file(folder: Folder, name: str) -> bytes | None:
    """Return the content of a small file, or None if it does not exist."""
    return open_run_dir(folder).find(name)


def read_json(folder: Folder, name: str, *keys: str) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if it does not exist. Raises TrainingError if it is no object with
    these keys."""
    if (content := read_file(folder, name)) is None:
        return None
    try:
        values: dict[str, Any] = json.loads(content)
        if missing := [key for key in keys if key not in values]:
            raise ValueError(f"it has no {', '.join(missing)}")
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{folder}/{name} is damaged: {error}\nDelete it, and submit again: the experiment goes on without it."
        ) from error
    return values


def write_file(folder: Folder, name: str, data: bytes) -> None:
    """Replace a file atomically."""
    open_run_dir(folder).put_bytes(data, name)


def local_path(folder: Folder) -> Path | None:
    """Return the directory as a path, or None if it is in a bucket."""
    return None if is_url(folder) else Path(folder)


Cause = Literal["lost", "memory", "error"]


class RunTakenOver(TrainingError):
    """Another process has started to train this run."""


@dataclass
class Attempts:
    """Number of failed attempts of one run by cause, and the attempt that owns the run's directory.

    Lost workers are counted apart from errors: they do not use up `compute.retries`.
    """

    lost: int = 0
    """The process, or another worker of the run, died without an error: killed, preempted, node lost."""
    memory: int = 0
    """Out of memory, on the device or on the host, in a process that survived to report it."""
    error: int = 0
    """Any other error."""
    open: bool = False
    """An attempt is under way, or was lost."""
    reason: str = ""
    """Error of the last attempt; empty if it had none."""
    token: str = field(default="", compare=False)
    """Identifies the attempt that owns the directory: the latest one."""

    @classmethod
    def read(cls, folder: Folder) -> Attempts:
        """Return the stored counts. A lost attempt that nothing has counted yet is still `open`."""
        values = read_json(folder, ATTEMPTS_FILE, "lost", "memory", "error")
        if values is None:
            return cls()
        return cls(reason=values.pop("why", ""), **values)

    @classmethod
    def begin(cls, folder: Folder) -> Attempts:
        """Start an attempt, which owns the directory from now on. An attempt that is still open counts as lost."""
        attempts = cls.read(folder)
        attempts.lost += attempts.open
        attempts.open, attempts.reason, attempts.token = True, "", secrets.token_hex(8)
        attempts._write(folder)
        return attempts

    def finish(self, folder: Folder, cause: Cause | None = None, reason: str = "") -> None:
        """End the attempt: in success, or for a cause. Raises RunTakenOver if a later attempt owns the directory."""
        self.check_owner(folder)
        self.open, self.reason = False, reason
        if cause:
            setattr(self, cause, getattr(self, cause) + 1)
        self._write(folder)

    def check_owner(self, folder: Folder) -> None:
        """Raise RunTakenOver if a later attempt owns the directory. This process was then taken for dead, because the
        network or the head node was, and must write no more."""
        if Attempts.read(folder).token != self.token:
            raise RunTakenOver(f"{folder} has been taken over by another process; this one writes no more")

    def tags(self) -> dict[str, str]:
        return {f"ipcnn.attempts_{cause}": str(getattr(self, cause)) for cause in get_args(Cause)}

    def _write(self, folder: Folder) -> None:
        values = asdict(self)
        values["why"] = values.pop("reason")
        write_file(folder, ATTEMPTS_FILE, json.dumps(values).encode())


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
    """The progress file of one run, for `ipcnn submit` to show; written at most every `write_interval_s` seconds.

    Progress is optional: a file that cannot be written or read is ignored.
    """

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
            raw = self._files.find(PROGRESS_FILE)
            return ProgressUpdate(**json.loads(raw)) if raw is not None else None
        except (IpcnnError, ValueError, TypeError):
            return None

    def clear(self) -> None:
        """Delete the file, when the run has ended or is about to be retried."""
        try:
            self._files.delete(PROGRESS_FILE)
        except IpcnnError:
            return
