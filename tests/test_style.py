"""Lint and types: ruff on everything, mypy strict for core/, spec/ and errors.py."""

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
        pytest.param(
            ("mypy", "--strict", "ipcnn_ray/core", "ipcnn_ray/spec", "ipcnn_ray/errors.py"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_style(arguments: tuple[str, ...]):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
