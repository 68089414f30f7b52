"""The folder of a run: on a disk that all of its workers see, or in a bucket. Its small files are the same in both."""

from __future__ import annotations

from pathlib import Path

from ipcnn_ray.tracking.storage import Storage, is_url, open_storage

Folder = str | Path
"""A path, or an s3://bucket/prefix URL."""
PATIENCE_S = 1800.0
"""Seconds that a run waits for a storage that does not answer; it goes on as if nothing had happened."""


def store(folder: Folder) -> Storage:
    """The files of a folder, by their names in it."""
    return open_storage(str(folder), PATIENCE_S)


def read(folder: Folder, name: str) -> bytes | None:
    """A small file's content; None where there is none."""
    files = store(folder)
    return files.get(name) if files.exists(name) else None


def write(folder: Folder, name: str, data: bytes) -> None:
    """Replace a file: readers see the old content or the new, never a part."""
    store(folder).put_bytes(data, name)


def on_disk(folder: Folder) -> Path | None:
    """Where the folder lies in the file system; None of one in a bucket."""
    return None if is_url(folder) else Path(folder)
