"""SIGKILL of a worker, of one of two workers, and of the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray_bench import EventLog, equal_metrics, equal_weights, kill_second_worker, kill_trainer_of, tiny, wait_for_epoch
from safetensors.torch import load_file

from ipcnn_ray.on_ray.events import EpochDone, Warned
from ipcnn_ray.train.run_dir import WEIGHTS_FILE, Attempts

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.slow]


def test_a_run_with_a_killed_worker_equals_an_undisturbed_run(bench):
    spec = tiny("killed", train={"epochs": 6})
    folder = bench.folder(spec)
    events = EventLog(epoch=2, action=lambda: kill_trainer_of(folder))
    outcome = bench.submit(spec, events)
    assert outcome.runs[0].state == "succeeded"
    assert Attempts.read(folder).lost == 1 and Attempts.read(folder).error == 0
    result, undisturbed = bench.train_in_process(spec)
    assert equal_metrics(outcome.runs[0].metrics, result.metrics)
    assert equal_weights(folder, undisturbed)


SEARCH = {
    "kind": "space",
    "trials": 2,
    "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}],
    "space": {"template.beta": {"log_uniform": [1.0, 8.0]}},
}


@pytest.mark.parametrize("search", [None, SEARCH])
def test_a_worker_lost_during_start_up_is_restarted(bench, monkeypatch, search):
    """As on a dead node that its cluster still counts as alive: the next worker is lost during start-up, which is final
    for Tune."""
    spec = tiny(f"unlucky_{'search' if search else 'run'}", **({"search": search} if search else {}))
    process, lost = TuneController._process_trial_failure, []

    def fail_final(controller, trial, exception):
        if not lost:
            controller._set_trial_status(trial, Trial.PENDING)
        lost.append(trial)
        process(controller, trial, exception)

    monkeypatch.setattr(TuneController, "_process_trial_failure", fail_final)
    killed = []

    def kill(event):
        events(event)
        if isinstance(event, EpochDone) and event.label != "plain" and not killed:
            killed.append(event.label)
            kill_trainer_of(bench.folder(spec, event.label))

    events = EventLog()
    outcome = bench.submit(spec, kill)
    assert len(lost) == 1
    assert [run.state for run in outcome.runs] == ["succeeded"] * (3 if search else 1)
    warnings = [event.text for event in events.events if isinstance(event, Warned)]
    assert warnings == [f"{killed[0]}: its worker was lost while it started; it is started again later"]
    assert Attempts.read(bench.folder(spec, killed[0])).lost == 1
    assert len(set(events.ended())) == len(events.ended()) == len(outcome.runs)


def test_two_workers_with_one_killed_equal_one_worker(bench):
    spec = tiny("two", train={"epochs": 6}, compute={"workers": 2})
    outcome = bench.submit(spec, EventLog(epoch=2, action=kill_second_worker))
    (run,) = outcome.runs
    assert run.state == "succeeded" and run.metrics["epoch"] == 6
    assert bench.recorded(spec)["run"].tags["ipcnn.workers"] == "2"
    result, reference = bench.train_in_process(spec)
    for name in ("train_loss", "filter_loss", "val_loss", "instability"):
        assert run.metrics[name] == pytest.approx(result.metrics[name], rel=1e-4), name
    assert run.metrics["val_error"] == result.metrics["val_error"]
    trained, expected = load_file(bench.folder(spec) / WEIGHTS_FILE), load_file(reference / WEIGHTS_FILE)
    for name in expected:
        torch.testing.assert_close(trained[name], expected[name], rtol=1e-3, atol=1e-5)
    assert Attempts.read(bench.folder(spec)).error == 0


def test_an_experiment_with_a_killed_driver_resumes(bench, tmp_path):
    spec = tiny("orphan", train={"epochs": 20})
    written = tmp_path / "spec.json"
    written.write_text(spec.model_dump_json())
    script = Path(__file__).with_name("killed_driver.py")
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # it starts its own Ray
    driver = subprocess.Popen(
        [sys.executable, str(script), str(bench.paths.home), str(written)],
        env={**env, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    try:
        wait_for_epoch(bench.folder(spec), 2)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    events = EventLog()
    outcome = bench.submit(spec, events)
    assert min(events.epochs()) > 1
    result, undisturbed = bench.train_in_process(spec)
    assert equal_metrics(outcome.runs[0].metrics, result.metrics)
    assert equal_weights(bench.folder(spec), undisturbed)
