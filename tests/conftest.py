"""Places of real data, weights and check vectors; nothing here is copied into the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _place(variable: str, default: Path) -> Path | None:
    named = os.environ.get(variable)
    if named:
        path = Path(named).expanduser()
        if not path.is_dir():
            raise pytest.UsageError(f"{variable} = {named!r} is not a folder; unset it or name one that exists")
        return path
    return default if default.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real photographs and landmarks (IPCNN_DATA)."""
    path = _place("IPCNN_DATA", SHARED / "data")
    if path is None:
        pytest.skip("needs real photographs: set IPCNN_DATA to a folder that holds voc/")
    return path


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder with pretrained layers (IPCNN_WEIGHTS)."""
    path = _place("IPCNN_WEIGHTS", SHARED / "weights")
    if path is None:
        pytest.skip("needs pretrained layers: set IPCNN_WEIGHTS to their folder")
    return path


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


@pytest.fixture(scope="session")
def golden() -> list[Path]:
    """Folders of check vectors of the interpretable layer (IPCNN_GOLDEN)."""
    folders = golden_folders()
    if not folders:
        pytest.skip("needs check vectors: set IPCNN_GOLDEN to their folders")
    return folders
