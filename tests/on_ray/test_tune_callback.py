"""The callback reads the stage of each run from its folder at intervals, and reports each stage once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from ipcnn_ray.on_ray import tune_callback
from ipcnn_ray.on_ray.events import RunStarted, StageReached
from ipcnn_ray.on_ray.tune_callback import TuneCallback
from ipcnn_ray.train.run_dir import ProgressFile, ProgressUpdate


class ExperimentContext:
    """The part of the context that the callback uses."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def run(self, config: dict[str, str]) -> SimpleNamespace:
        return SimpleNamespace(label=config["label"], spec=SimpleNamespace(train=SimpleNamespace(epochs=5)))

    def folder(self, run: SimpleNamespace) -> str:
        return f"{self.root}/{run.label}"


def test_each_stage_is_reported_once(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(tune_callback, "time", clock)
    events: list[object] = []
    callback = TuneCallback(ExperimentContext(tmp_path), None, events.append)  # type: ignore[arg-type]
    callback.on_trial_start(
        0, [], SimpleNamespace(trial_id="t1", config={"label": "l1"}, num_failures=0, max_failures=0)
    )
    assert events == [RunStarted("l1", 5)]
    first = ProgressUpdate("frozen layers", 640, 4200, "images")
    ProgressFile(tmp_path / "l1").write(first)
    callback.on_step_begin(0, [])
    assert events[1:] == [StageReached("l1", first)]
    second = ProgressUpdate("training epoch 1", 3, 56, "steps")
    ProgressFile(tmp_path / "l1").write(second)
    for _ in range(19):
        clock.now += 0.1
        callback.on_step_begin(0, [])
    assert len(events) == 2  # the file is read every two seconds
    for _ in range(40):
        clock.now += 0.1
        callback.on_step_begin(0, [])
    assert events[2:] == [StageReached("l1", second)]
    callback.training.discard("t1")
    ProgressFile(tmp_path / "l1").write(ProgressUpdate("training epoch 2", 3, 56, "steps"))
    clock.now += 3
    callback.on_step_begin(0, [])
    assert len(events) == 3
