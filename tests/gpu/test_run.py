"""The command that checks a GPU runs with the CPU in its place; nothing here says anything about a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ON_CPU = ["--device", "cpu", "--small"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, as a module; what its folders add to the path is taken back."""
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    monkeypatch.delitem(sys.modules, "run", raising=False)
    return importlib.import_module("run")


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The rows that a part has printed."""
    line = capsys.readouterr().out.splitlines()[-1]
    found: list[dict[str, Any]] = json.loads(line.removeprefix("ROWS "))
    return found


@pytest.mark.slow
def test_numbers_and_resuming(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    compared = set()
    for part in ("agreement", "resume"):
        assert run.main(["--part", part, *ON_CPU]) == 0
        part_rows = rows(capsys)
        assert {row["state"] for row in part_rows} == {"ok"}
        compared |= {row["what"] for row in part_rows}
    assert {"filter loss exact: gradient", "filter loss single: value", "metric instability"} <= compared


@pytest.mark.slow
def test_collectives_in_a_process_of_their_own(run: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    assert run.main(["--only", "nccl", "--out", str(out), *ON_CPU]) == 0
    assert {row["state"] for row in json.loads(out.read_text())["results"]["nccl"]} == {"ok"}


def test_what_cannot_run_says_why(
    run: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("IPCNN_DATA", raising=False)
    assert run.main(["--part", "voc", *ON_CPU]) == 0
    assert rows(capsys) == [{"what": "not run", "value": "IPCNN_DATA is not set", "state": "skipped"}]
    out = tmp_path / "rows.json"
    assert run.main(["--only", "nccl", "--minutes", "0.2", "--out", str(out), *ON_CPU]) == 0
    no_time = [{"what": "not run", "value": "no time left", "state": "skipped"}]
    assert json.loads(out.read_text())["results"] == {"nccl": no_time}
    assert "no time left" in capsys.readouterr().out


def test_a_part_that_fails_fails_the_command(
    run: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ModuleType("training")

    def nccl(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
        raise RuntimeError("no such collective")

    broken.nccl = nccl  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "training", broken)
    assert run.main(["--part", "nccl", *ON_CPU]) == 1
    printed = capsys.readouterr()
    assert "no such collective" in printed.err and "ROWS" not in printed.out
    failed = [{"what": "failed", "value": "no output", "state": "failed"}]
    monkeypatch.setattr(run, "in_process", lambda name, args, seconds: failed)
    assert run.main(["--only", "nccl", *ON_CPU]) == 1
