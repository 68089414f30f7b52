"""What a running experiment tells where nobody can redraw a line, and how wide its table is where somebody can."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ipcnn_ray.cli import live, output
from ipcnn_ray.cli.live import Progress
from ipcnn_ray.on_ray.events import EpochDone, PhaseStarted, RunEnded, RunStarted, StageReached
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_dir import ProgressUpdate

METRICS = {
    "epoch": 1.0,
    "train_loss": 0.693,
    "filter_loss": -123.45,
    "val_error": 0.237,
    "instability": 0.1382,
    "images_per_second": 1234.0,
    "seconds": 90.0,
}


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    found = Clock()
    monkeypatch.setattr(live, "time", found)
    monkeypatch.setattr(output, "time", found)
    return found


def test_a_piped_run_is_heard_of_at_once_and_in_its_first_epoch(clock):
    out = io.StringIO()
    with Progress(Console(file=out, width=80), epochs=3) as told:
        told(PhaseStarted("training", 1))
        told(RunStarted("l1", 3))
        for seconds, stage in (
            (5, ProgressUpdate("frozen layers", 640, 4200, "images")),
            (1, ProgressUpdate("frozen layers", 960, 4200, "images")),  # heard of a second ago
            (19, ProgressUpdate("frozen layers", 4100, 4200, "images")),
            (4, ProgressUpdate("training epoch 1", 3, 56, "steps")),
        ):
            clock.now += seconds
            told(StageReached("l1", stage))
        told(EpochDone("l1", METRICS))
        clock.now += 6
        told(StageReached("l1", ProgressUpdate("training epoch 2", 1, 56, "steps")))  # the first epoch is over
        told(RunEnded(RunSummary("a-1-l1", "l1", state="succeeded", metrics=METRICS)))
        told(RunStarted("l1", 3))
    lines = out.getvalue().splitlines()
    assert lines[:5] == [
        "training: 1 run",
        "l1           started",
        "l1           frozen layers, 640 of 4200 images",
        "l1           frozen layers, 4100 of 4200 images",
        "l1           training epoch 1, 3 of 56 steps",
    ]
    assert lines[5].startswith("l1           epoch 1/3  loss 0.693  filter -123.45  error 23.7%")
    assert lines[6].startswith("l1           succeeded")
    assert len(lines) == 8


def test_the_live_table_fits_into_80_columns_without_losing_a_number(clock):
    out = io.StringIO()
    told = Progress(Console(file=out, width=80), epochs=120)
    told(PhaseStarted("named runs", 25))
    told(EpochDone("uniform_l1.seed0", {**METRICS, "epoch": 100.0}))
    told(StageReached("uniform_l1.seed0", ProgressUpdate("evaluating epoch 101", 640, 1600, "images")))
    out.seek(0)
    out.truncate()
    told.console.print(told._view())
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("named runs: 0 of 25 done")
    assert "…" not in out.getvalue() and max(map(len, lines)) <= 80
    shown = lines[2].split()
    assert shown == [
        "uniform_l1.seed0",
        "100/120",
        "evaluating",
        "40%",
        "0.693",
        "-123.45",
        "23.7%",
        "0.1382",
        "1234",
        "30:00",
    ]


def test_long_work_is_told_by_tenths_but_not_all_the_time(clock, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(output, "print_note", said.append)
    told = output.CountedProgress("  read", "runs")
    for done in range(1, 1001):
        clock.now += 2**-6
        told(done, 1000)
    assert said == [
        f"  read {output.format_count(done)} of 1 000 runs" for done in (128, 256, 384, 512, 640, 768, 896, 1000)
    ]


def test_a_run_has_its_own_number_of_epochs(clock):
    out = io.StringIO()
    with Progress(Console(file=out, width=80), epochs=3) as told:
        told(RunStarted("longer", 50))
        told(EpochDone("longer", {**METRICS, "epoch": 2.0, "seconds": 10.0}))
    assert "epoch 2/50" in out.getvalue() and "8:00 left" in out.getvalue()


def test_an_epoch_that_is_not_evaluated_has_no_error(clock):
    trained = {name: value for name, value in METRICS.items() if name not in ("val_error", "instability")}
    out = io.StringIO()
    with Progress(Console(file=out, width=80), epochs=3) as told:
        told(EpochDone("l1", trained))
    assert out.getvalue().startswith("l1           epoch 1/3  loss 0.693  filter -123.45  1234 img/s")


def test_without_landmarks_there_is_no_instability(clock):
    blind = {name: value for name, value in METRICS.items() if name != "instability"}
    out = io.StringIO()
    with Progress(Console(file=out, width=80), epochs=3, goals=("val_error",)) as told:
        told(EpochDone("l1", blind))
        told(RunEnded(RunSummary("a-1-l1", "l1", state="succeeded", metrics=blind)))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("l1           epoch 1/3  loss 0.693  filter -123.45  error 23.7%  1234 img/s")
    assert lines[1] == "l1           succeeded  error 23.7%"
    with Progress(Console(file=out, width=80), epochs=3) as told:
        told(EpochDone("l1", blind))
        told.console.print(told._view())
    assert "img/s" in out.getvalue() and "instab" not in out.getvalue()
