"""The callback reads the stage of each run from its folder at intervals, and reports each stage once."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace

from ray.tune.experiment import Trial

from ipcnn_ray.on_ray import tune_callback
from ipcnn_ray.on_ray.events import STOPPED, RunStarted, StageReached
from ipcnn_ray.on_ray.tune_callback import TuneCallback
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_dir import ProgressFile, ProgressUpdate


class ExperimentContext:
    """The part of the context that the callback uses."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def run(self, config: dict[str, str]) -> SimpleNamespace:
        return SimpleNamespace(label=config["label"], spec=SimpleNamespace(train=SimpleNamespace(epochs=5)))

    def folder(self, run: SimpleNamespace) -> str:
        return f"{self.root}/{run.label}"


def steps(callback: TuneCallback) -> None:
    """Two steps of Tune's loop; the first begins to read, and the second has what was read."""
    callback.on_step_begin(0, [])
    wait(callback._reading.values())
    callback.on_step_begin(0, [])


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
    steps(callback)
    assert events[1:] == [StageReached("l1", first)]
    second = ProgressUpdate("training epoch 1", 3, 56, "steps")
    ProgressFile(tmp_path / "l1").write(second)
    for _ in range(19):
        clock.now += 0.1
        steps(callback)
    assert len(events) == 2  # the file is read every two seconds
    for _ in range(40):
        clock.now += 0.1
        steps(callback)
    assert events[2:] == [StageReached("l1", second)]
    callback.training.discard("t1")
    ProgressFile(tmp_path / "l1").write(ProgressUpdate("training epoch 2", 3, 56, "steps"))
    clock.now += 3
    steps(callback)
    assert len(events) == 3


def test_nothing_is_kept_of_the_metrics_of_an_ended_trial(tmp_path):
    """But its last result. `Trial` is Tune's own."""
    for end in ("on_trial_complete", "on_trial_error"):
        lock = SimpleNamespace(release=lambda trial_id: None)
        callback = TuneCallback(ExperimentContext(tmp_path), lock, lambda event: None)  # type: ignore[arg-type]
        trial = Trial("none", config={"label": "l1"}, stub=True)
        callback.ended["l1"] = RunSummary("l1", "l1")
        trial.update_last_result({STOPPED: True, **{f"metric_{number}": float(number) for number in range(90)}})
        assert len(trial.metric_analysis) > 90 and len(trial.get_json_state()[1]) > 40_000
        getattr(callback, end)(0, [], trial)
        assert not trial.metric_analysis and not trial.metric_n_steps
        assert len(trial.get_json_state()[1]) < 10_000
        assert trial.last_result["metric_89"] == 89


def test_the_loop_does_not_wait_for_a_slow_storage(tmp_path, monkeypatch):
    answer, asked = threading.Event(), []

    def read(file: ProgressFile) -> ProgressUpdate:
        asked.append(file)
        assert answer.wait(30)
        return ProgressUpdate("training epoch 1", 3, 56, "steps")

    monkeypatch.setattr(ProgressFile, "read", read)
    events: list[object] = []
    callback = TuneCallback(ExperimentContext(tmp_path), None, events.append)  # type: ignore[arg-type]
    for name in ("t1", "t2"):
        trial = SimpleNamespace(trial_id=name, config={"label": name}, num_failures=0, max_failures=0)
        callback.on_trial_start(0, [], trial)
    for _ in range(3):
        callback._next_read = 0.0
        callback.on_step_begin(0, [])  # returns at once, and asks once for each run
    callback.training.discard("t2")  # ends meanwhile
    answer.set()
    steps(callback)
    assert events[2:] == [StageReached("t1", ProgressUpdate("training epoch 1", 3, 56, "steps"))]
    assert len(asked) == 2
