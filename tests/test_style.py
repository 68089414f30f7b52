"""Lint and types: ruff on everything, mypy (strict) on the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("ruff", "check", "ipcnn_ray", "tests"),
        ("ruff", "format", "--check", "ipcnn_ray", "tests"),
        pytest.param(("mypy", "ipcnn_ray"), marks=pytest.mark.slow),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_style(arguments: tuple[str, ...]):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
