"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import IO

PARTIAL = ".partial-"
"""Prefix of the name of a file that is being written."""


def write_atomic(target: Path, source: IO[bytes]) -> None:
    """Write `source` to `target` so that readers see the old content or the new, never a part.

    The content is written to a temporary file in the same folder, synced, and renamed; then the folder is synced.
    Missing parent folders are created. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{PARTIAL}{secrets.token_hex(4)}"
    try:
        with partial.open("wb") as out:
            shutil.copyfileobj(source, out, 8 << 20)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal characters."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checked_key(key: str) -> str:
    """Return the key of a file in a storage. Raises ValueError for one that is empty, absolute, or leaves its store."""
    if not key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"key = {key!r} must be a relative path without empty parts, '.' and '..'")
    return key
