"""A real SIGKILL, in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.training import InProcess, MemoryTracker, timeless, tiny, train_run

from ipcnn_ray.train.run_dir import Attempts

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("when", "lasted"), [("5", 1), ("checkpoint", 1)])
def test_a_killed_run_ends_as_if_it_had_not_been(bench, when, lasted):
    killed = subprocess.run(
        [sys.executable, "-m", "fakes.killed_run", str(bench.root), str(bench.cache), when],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    request = bench.request(tiny(), f"killed-{when}")
    names = sorted(path.name for path in (Path(request.folder) / "checkpoints").glob("epoch-*"))
    assert names == [f"epoch-{epoch:04}" for epoch in range(1, lasted + 1)]

    trackers = {name: MemoryTracker() for name in (f"killed-{when}", "whole")}
    for name, tracker in trackers.items():
        train_run(bench.request(tiny(), name), InProcess(), tracker)
    resumed, whole = (timeless(tracker.record.epochs.values()) for tracker in trackers.values())
    assert resumed == whole
    assert bench.weights(f"killed-{when}") == bench.weights("whole")
    assert Attempts.read(request.folder) == Attempts(lost=1)
    assert trackers[f"killed-{when}"].record.said_tags["ipcnn.attempts_lost"] == "1"
