"""Which store belongs to a folder that has not changed, so that opening it reads no photograph.

One small file per (data section, crop size, folder): the digest, and size and time of every file it was made from.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

Stamps = dict[str, list[int]]
"""Path -> [size, time of change in ns]; a folder's size says nothing and is 0."""

FRESH_SECONDS = 2
"""A file changed this lately may change again without a new time of change (the clock of a file system is coarse)."""


def stamps(paths: Iterable[Path]) -> Stamps:
    """The stamps of files and folders, all of which exist."""
    found = {}
    for path in paths:
        status = path.stat()
        found[str(path)] = [0 if path.is_dir() else status.st_size, status.st_mtime_ns]
    return found


def recall(cache: Path, key: str) -> str | None:
    """The digest remembered under `key`, if every file it was made from is as it was."""
    try:
        entry = json.loads(_file(cache, key).read_text())
        return str(entry["digest"]) if stamps(map(Path, entry["stamps"])) == entry["stamps"] else None
    except (OSError, ValueError, KeyError):
        return None


def remember(cache: Path, key: str, digest: str, made_from: Stamps) -> None:
    """Write an entry, whole; `made_from` was taken before the files were read."""
    if any(changed > (time.time() - FRESH_SECONDS) * 1e9 for _, changed in made_from.values()):
        return
    file = _file(cache, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    making = file.with_suffix(f".{os.getpid()}")
    making.write_text(json.dumps({"digest": digest, "stamps": made_from}))
    making.rename(file)


def _file(cache: Path, key: str) -> Path:
    return cache / "crops" / "index" / f"{key}.json"
