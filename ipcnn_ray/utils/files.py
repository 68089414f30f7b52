"""Files and folders that appear whole or not at all, and hashes of files."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

PARTIAL = ".partial-"
"""Prefix of the name of a file that is being written."""


def write_atomic(target: Path, content: bytes | IO[bytes]) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    The content is written to a temporary file in the same folder, synced, and renamed; then the folder is synced.
    Missing parent folders are created. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{PARTIAL}{secrets.token_hex(4)}"
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with partial.open("wb") as out:
            shutil.copyfileobj(source, out, 8 << 20)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Build a folder that appears whole. Yields `.<name>` beside `target`; it is renamed when the block ends.

    What a killed process left of `.<name>` is deleted first, so only one process at a time may build the same target.
    An existing `target` is replaced. If the block raises, nothing is left. Files in the folder are not synced.
    """
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder. What disappears meanwhile counts as 0."""
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with suppress(OSError):
            total += file.lstat().st_size if not file.is_dir() else 0
    return total


def last_change(path: Path) -> float:
    """Return when a file, or anything in a folder, was changed last, in seconds since 1970; 0 if it is gone."""
    times = [0.0]
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with suppress(OSError):
            times.append(file.lstat().st_mtime)
    return max(times)


def mark_used(folder: Path) -> None:
    """Set the time of change of a cached folder, which `ipcnn gc` takes for the time of its last use."""
    with suppress(OSError):  # a cache that may only be read
        os.utime(folder)


Stamps = dict[str, list[int]]
"""Path -> [size, time of last change in ns]. The size of a folder says nothing and is 0."""


def stamps(paths: Iterable[Path]) -> Stamps:
    """Return the stamps of existing files and folders. Raises OSError."""
    return {
        str(path): [0 if path.is_dir() else status.st_size, status.st_mtime_ns]
        for path in paths
        for status in [path.stat()]
    }


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal characters."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def published_digits(name: str) -> str:
    """Return the first digits of a file's SHA-256 that its name carries, as in resnet18-f37072fd.pth; empty if none."""
    digits = re.search(r"-([0-9a-f]{8,})\.\w+$", name)
    return digits[1] if digits else ""


def checked_key(key: str) -> str:
    """Return the key of a file in a storage. Raises ValueError for one that is empty, absolute, or leaves its store."""
    if not key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"key = {key!r} must be a relative path without empty parts, '.' and '..'")
    return key


def leaves_its_folder(path: str) -> bool:
    """Return whether a path is absolute or has a part `..`."""
    parts = PurePosixPath(path)
    return parts.is_absolute() or ".." in parts.parts or bool(PureWindowsPath(path).drive)
