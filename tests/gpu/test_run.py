"""The command that checks a GPU runs with the CPU in its place; nothing here says anything about a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def rows(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, list[dict[str, str]]], str]:
    """Exit code, rows by part, and the printed text."""
    out = tmp_path / "rows.json"
    command = [sys.executable, str(RUN), "--device", "cpu", "--small", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(out.read_text())["results"], done.stdout + done.stderr


@pytest.mark.slow
def test_numbers_collectives_and_resuming(tmp_path: Path) -> None:
    code, results, text = rows(tmp_path, "--only", "agreement", "nccl", "resume")
    assert code == 0, text
    assert {name: {row["state"] for row in part} for name, part in results.items()} == {
        name: {"ok"} for name in results
    }
    compared = {row["what"] for row in results["agreement"]}
    assert {"filter loss exact: gradient", "filter loss single: value", "metric instability"} <= compared


@pytest.mark.slow
def test_what_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPCNN_DATA", raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    code, results, text = rows(tmp_path, "--only", "voc")
    assert code == 0, text
    assert results["voc"] == [{"what": "not run", "value": "IPCNN_DATA is not set", "state": "skipped"}]


@pytest.mark.slow
def test_a_part_without_time_is_named(tmp_path: Path) -> None:
    code, results, text = rows(tmp_path, "--only", "nccl", "--minutes", "0.2")
    assert code == 0, text
    assert results["nccl"] == [{"what": "not run", "value": "no time left", "state": "skipped"}]


@pytest.mark.slow
def test_a_part_that_fails_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "training.py"
    broken.write_text("def nccl(device, small, seconds):\n    raise RuntimeError('no such collective')\n")
    script = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.argv[0] = {str(RUN)!r}; "
    script += "import runpy; sys.argv[1:] = ['--part', 'nccl', '--device', 'cpu', '--small']; "
    script += f"import training; runpy.run_path({str(RUN)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no such collective" in done.stderr
    assert "ROWS" not in done.stdout
