"""Where the check vectors of the interpretable layer lie, and how closely they were met."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


ERRORS: dict[str, tuple[int, float]] = {}
"""Of each kind of check vector: how many numbers were compared, and the largest error as a share of the largest."""


def record_error(kind: str, error: float, arrays: int = 1) -> None:
    """Keep the largest error of this kind for the summary."""
    count, largest = ERRORS.get(kind, (0, 0.0))
    ERRORS[kind] = (count + arrays, max(largest, error))


def golden_folders() -> list[Path]:
    """Folders of check vectors: IPCNN_GOLDEN, separated by colons. A folder that is named but missing is an error."""
    named = os.environ.get("IPCNN_GOLDEN")
    if not named:
        default = SHARED / "reference" / "golden"
        return [default] if default.is_dir() else []
    folders = [Path(part).expanduser() for part in named.split(":") if part]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise pytest.UsageError(f"IPCNN_GOLDEN names folders that do not exist: {missing}")
    return folders
