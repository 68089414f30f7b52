"""What `python -m build` makes: a source distribution with every file, a wheel with the package alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ipcnn_ray

ROOT = Path(__file__).resolve().parents[1]
NAME = f"ipcnn_ray-{ipcnn_ray.__version__}"
OF_THE_REPOSITORY = {".gitignore", ".ci/run"}
"""Files that serve the repository only."""


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the repository, with those that are not committed yet."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory) -> Path:
    """A folder with both distributions, made from a copy by the backend that pip and `build` call."""
    folder = tmp_path_factory.mktemp("build")
    for name in tracked:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    make = "import sys, setuptools.build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
    command = [sys.executable, "-c", make, str(folder)]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_source_distribution_has_every_file(built, tracked):
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {entry.name.removeprefix(f"{NAME}/") for entry in archive if entry.isfile()}
    made = {name for name in names if name.startswith("ipcnn_ray.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == tracked - OF_THE_REPOSITORY


def test_the_wheel_has_the_package_alone(built, tracked):
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        assert f"{NAME}.dist-info/licenses/LICENSE" in archive.namelist()
    assert names == {name for name in tracked if name.startswith("ipcnn_ray/")}
