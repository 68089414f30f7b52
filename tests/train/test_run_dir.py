"""The progress file of a run: seldom written, never in the way."""

from __future__ import annotations

import pytest

from ipcnn_ray.train.run_dir import PROGRESS_FILE, ProgressFile, ProgressUpdate


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 50.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("ipcnn_ray.train.run_dir.time", clock)
    return clock


def test_progress_is_written_every_two_seconds_and_cleared(tmp_path, clock):
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
