"""The Python API: every name exists, and importing the package imports none of its dependencies."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ipcnn_ray


def test_every_public_name_exists():
    for name in dir(ipcnn_ray):
        assert getattr(ipcnn_ray, name) is not None
    with pytest.raises(AttributeError, match="module 'ipcnn_ray' has no attribute 'lod'"):
        ipcnn_ray.lod  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used():
    code = "import sys, ipcnn_ray; sys.exit(' '.join({'ray', 'torch', 'mlflow', 'pydantic'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
