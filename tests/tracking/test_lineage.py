"""From what code and hardware a run comes."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipcnn_ray import __version__
from ipcnn_ray.tracking import lineage as module
from ipcnn_ray.tracking.lineage import code, environment, host, lineage


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True, env=env
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_commit_and_changes_of_a_checkout(checkout, tmp_path, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    clean = {"code.commit": commit, "code.dirty": "false"}
    assert code(checkout) == clean
    (checkout.parent / "notes.txt").write_text("not of the package")
    assert code(checkout) == clean
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(tmp_path / "another"))
        assert code(checkout) == clean

    installed = checkout.parent / ".venv" / "package"  # inside a repository that does not track it
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert code(installed)["code.commit"] != commit and code(installed)["code.dirty"] == "unknown"

    for name in ("__init__.py", "new.py"):
        (checkout / name).write_text("x = 1\n")
        assert code(checkout) == {"code.commit": commit, "code.dirty": "true"}
        git(checkout, "checkout", "-q", "__init__.py")
    monkeypatch.setenv("PATH", "")
    assert code(checkout)["code.dirty"] == "unknown"


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        (
            "NVIDIA H200, 570.86\nNVIDIA H200, 570.86\nNVIDIA L4, 570.86",
            "2 x NVIDIA H200 (driver 570.86), 1 x NVIDIA L4 (driver 570.86)",
        ),
        (None, "none"),
    ],
)
def test_gpus_are_counted_by_kind(monkeypatch, listed, gpus):
    monkeypatch.setattr(module, "_output", lambda command: listed)
    assert host()["host.gpu"] == gpus


def test_versions_are_those_that_are_imported():
    import torch

    tags = environment()
    assert tags["env.torch"] == torch.__version__.partition("+")[0]
    assert tags["env.cuda"] == (torch.version.cuda or "none")
    assert tags["env.python"] == sys.version.split()[0]


def test_every_tag_says_something_and_nothing_about_the_person():
    tags = lineage()
    assert tags["code.version"] == __version__
    assert {name.partition(".")[0] for name in tags} == {"code", "env", "host"}
    assert all(tags.values())
    assert int(tags["host.cores"]) >= 1
    text = " ".join(tags.values())
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text
    assert getpass.getuser() not in text.split()
