"""The command that checks a GPU runs with the CPU in its place; nothing here says anything about a GPU."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
import time
from collections.abc import Callable
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
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line.removeprefix("ROW ")) for line in lines if line.startswith("ROW ")]


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


@pytest.mark.slow
def test_profile_of_a_step(
    run: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IPCNN_GPU_OUT", str(tmp_path))
    assert run.main(["--part", "profile", *ON_CPU]) == 0
    found = {row["what"]: row["value"] for row in rows(capsys)}
    assert float(found["compact: wall of a step, not profiled"].removesuffix(" ms")) > 0
    assert any("convolution_backward" in what for what in found)
    assert "aten::convolution_backward" in (tmp_path / "profile_compact_from_conv2.txt").read_text()


@pytest.mark.slow
def test_fast_against_exact(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--part", "fast", *ON_CPU]) == 0
    found = rows(capsys)
    assert {row["what"] for row in found if row.get("state") == "ok"} >= {"fast: train_loss", "fast: val_loss"}


@pytest.mark.parametrize("part", ["layer_cost", "step_cost", "graphs", "grid", "memory"])
@pytest.mark.slow
def test_other_parts(part: str, run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--part", part, *ON_CPU]) == 0
    found = rows(capsys)
    assert found and "failed" not in {row.get("state") for row in found}


def test_every_part_is_there(run: ModuleType) -> None:
    for name, (module, *_) in run.PARTS.items():
        assert callable(getattr(importlib.import_module(module), name))


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


@pytest.fixture
def own_parts(run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, str]], int]:
    """Run the command with these bodies of parts, each in its process; the rows go to rows.json."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(run, "environment", lambda device: [])
    monkeypatch.setattr(run, "COMMON", ())

    def call(bodies: dict[str, str]) -> int:
        for name, body in bodies.items():
            monkeypatch.setitem(run.PARTS, name, (f"own_{name}", 60, ()))
            text = f"import os, pathlib, subprocess, sys, time\ndef {name}(device, small, seconds):\n"
            (tmp_path / f"own_{name}.py").write_text(text + textwrap.indent(textwrap.dedent(body), "    "))
        return int(run.main(["--only", *bodies, "--out", str(tmp_path / "rows.json"), *ON_CPU]))

    return call


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each part in rows.json."""
    results: dict[str, list[dict[str, Any]]] = json.loads((folder / "rows.json").read_text())["results"]
    return results


def test_timed_parts_run_alone_and_the_others_side_by_side(
    own_parts: Callable[[dict[str, str]], int], tmp_path: Path
) -> None:
    # A timed part notes the others that run; agreement and resume each wait for the other.
    timed = f"""
        file = pathlib.Path({str(tmp_path)!r}) / "running"
        yield {{"what": "alone", "value": str(not file.exists()), "state": "ok"}}
        file.touch(); time.sleep(0.5); file.unlink()
    """
    meeting = f"""
        folder = pathlib.Path({str(tmp_path)!r})
        assert not (folder / "running").exists()
        (folder / "NAME").touch()
        while not (folder / "OTHER").exists(): time.sleep(0.01)
        return [{{"what": "threads", "value": os.environ["OMP_NUM_THREADS"], "state": "ok"}}]
    """
    agreement = meeting.replace("NAME", "a").replace("OTHER", "b")
    resume = meeting.replace("NAME", "b").replace("OTHER", "a")
    parts = {"resume": resume, "step_cost": timed, "agreement": agreement, "layer_cost": timed}
    assert own_parts(parts) == 0
    results = written(tmp_path)
    assert list(results)[:2] == ["layer_cost", "step_cost"] and set(results) == set(parts)
    assert [results[name][0]["value"] for name in ("layer_cost", "step_cost")] == ["True", "True"]


def test_a_failing_part_keeps_its_rows_and_its_log(
    own_parts: Callable[[dict[str, str]], int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failing = """
        yield {"what": "measured", "value": "1 ms"}
        print("told")
        raise RuntimeError("no such kernel")
    """
    assert own_parts({"layer_cost": failing, "nccl": "return []"}) == 1
    failed = {"what": "failed", "value": "exit code 1", "state": "failed"}
    assert written(tmp_path) == {"layer_cost": [{"what": "measured", "value": "1 ms"}, failed], "nccl": []}
    printed = capsys.readouterr().out
    assert "RuntimeError: no such kernel" in printed and "1 ms" in printed and "1 failed" in printed
    log = (tmp_path / "rows.log").read_text()
    assert "told\nTraceback" in log and "no such kernel" in log and "===== nccl" in log


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_part_that_does_not_end_is_ended_with_its_processes(
    run: ModuleType, own_parts: Callable[[dict[str, str]], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "GRACE_S", -55.0)  # with its share of 60 s: 5 s
    hanging = f"""
        child = subprocess.Popen(["sleep", "1000"])
        (pathlib.Path({str(tmp_path)!r}) / "child").write_text(str(child.pid))
        yield {{"what": "measured", "value": "1 ms"}}
        child.wait()
    """
    assert own_parts({"ray": hanging}) == 1
    assert [row["value"] for row in written(tmp_path)["ray"]] == ["1 ms", "did not end within 5 s"]
    assert "own_ray.py" in (tmp_path / "rows.log").read_text()  # where it was
    pid = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


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
    assert "no such collective" in printed.err and "ROW" not in printed.out
