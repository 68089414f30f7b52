"""The directory of a run: the names of its files, and access to them on a file system or in a bucket.

checkpoints/epoch-0007/   state.pt and meta.json, one folder per epoch (checkpoint.py)
attempts.json             failed attempts by cause, and the owner of the directory (retry_state.py)
stage.json                what the run does at the moment (progress.py)
template.json             the template that a tailored template was fitted to (tailored_template.py)
weights.safetensors       final weights
result.json               state and metrics of a run that has ended
"""

from __future__ import annotations

from pathlib import Path

from ipcnn_ray.tracking.storage import Storage, is_url, open_storage

ATTEMPTS_FILE = "attempts.json"
PROGRESS_FILE = "stage.json"
TEMPLATE_FILE = "template.json"
WEIGHTS_FILE = "weights.safetensors"
"""Also the name of the artifact under `weights` of the tracked run."""
MEAN_KEY = "input_mean"
"""Key of the mean image among the tensors of `WEIGHTS_FILE`."""
RESULT_FILE = "result.json"

Folder = str | Path
"""A path, or an s3://bucket/prefix URL."""
STORAGE_TIMEOUT_S = 1800.0
"""Seconds that a run waits for a storage that does not answer before it fails."""


def open_run_dir(folder: Folder) -> Storage:
    """Return the storage of a run's files, whose keys are relative to the directory."""
    return open_storage(str(folder), STORAGE_TIMEOUT_S)


def read_file(folder: Folder, name: str) -> bytes | None:
    """Return the content of a file, or None if it does not exist."""
    files = open_run_dir(folder)
    return files.get(name) if files.exists(name) else None


def write_file(folder: Folder, name: str, data: bytes) -> None:
    """Replace a file atomically."""
    open_run_dir(folder).put_bytes(data, name)


def local_path(folder: Folder) -> Path | None:
    """Return the directory as a path, or None if it is in a bucket."""
    return None if is_url(folder) else Path(folder)
