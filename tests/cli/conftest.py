"""The `ipcnn` command in this process, without the settings of the environment in which the tests run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ipcnn_ray.cli import output
from ipcnn_ray.cli.app import main


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """IPCNN_HOME, the only setting; the folder is not made yet."""
    ours = [name for name in os.environ if name.startswith("IPCNN_")]
    for name in (*ours, "MLFLOW_TRACKING_URI", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IPCNN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def wide(monkeypatch) -> None:
    """Output that is so wide that no cell is wrapped."""
    monkeypatch.setattr(output.stdout, "width", 200)


@pytest.fixture
def ipcnn(capsys) -> Callable[..., tuple[object, str, str]]:
    """Runs `ipcnn ARGUMENTS`; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        streams = capsys.readouterr()
        return ended.value.code or 0, streams.out, streams.err

    return run
