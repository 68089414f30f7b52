"""Where a run is right now, for whoever watches: seldom written, never in the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes.training import InProcess, tiny

from ipcnn_ray.train.feature_cache import features_reader
from ipcnn_ray.train.run_dir import PROGRESS_FILE, ProgressFile, ProgressUpdate


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 50.0

        def monotonic(self) -> float:
            return self.now

    found = Clock()
    monkeypatch.setattr("ipcnn_ray.train.run_dir.time", found)
    return found


def test_a_stage_is_written_every_two_seconds_and_forgotten(tmp_path, clock):
    file, other = ProgressFile(tmp_path), ProgressFile(tmp_path)
    assert other.read() is None
    for step in range(10):
        file.write(ProgressUpdate("training epoch 1", step, 56, "steps"))
        clock.now += 0.5
    assert other.read() == ProgressUpdate("training epoch 1", 8, 56, "steps")  # written at 0, 2 and 4 seconds
    assert str(other.read()) == "training epoch 1, 8 of 56 steps"
    file.clear()
    assert other.read() is None and list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_written_is_left_out(tmp_path, clock):
    (tmp_path / PROGRESS_FILE).write_text("{")
    assert ProgressFile(tmp_path).read() is None
    (tmp_path / PROGRESS_FILE).write_text('{"of another": "version"}')
    assert ProgressFile(tmp_path).read() is None
    (tmp_path / "file").write_text("")
    away = ProgressFile(tmp_path / "file")
    away.write(ProgressUpdate("data", 1, 2, "images"))
    away.clear()
    assert away.read() is None


def test_frozen_layers_tell_how_far_they_are(tmp_path):
    items, told = np.stack([np.arange(70), np.zeros(70, np.int64)], 1), []
    for _ in range(2):
        features_reader(tmp_path, "key", items, (1,), lambda part: torch.zeros(len(part), 1), lambda *x: told.append(x))
    assert told == [(0, 70), (32, 70), (64, 70), (70, 70)]  # once: the second time they are there


def test_an_epoch_tells_its_steps_and_its_evaluation(bench):
    said: list[tuple[str, int, int, str]] = []

    class Told(InProcess):
        def report_progress(self, what: str, done: int, total: int, unit: str) -> None:
            said.append((what, done, total, unit))

    from fakes.training import MemoryTracker

    from ipcnn_ray.train.trainer import train_run

    train_run(bench.request(tiny(train={"epochs": 1})), Told(), MemoryTracker())
    steps = [one for one in said if one[0] == "training epoch 1"]
    assert [one[1] for one in steps] == list(range(steps[0][2])) and {one[3] for one in steps} == {"steps"}
    looked = [one for one in said if one[0] == "evaluating epoch 1"]
    assert looked[0][1] == 0 and all(one[1] < one[2] for one in looked)
