"""SIGKILL of a worker, of one of two workers, and of the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes.ray_bench import (
    EventLog,
    equal_metrics,
    equal_weights,
    kill_controller,
    kill_second_worker,
    kill_trainer_of,
    tiny,
    wait_for_epoch,
)
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from safetensors.torch import load_file

from ipcnn_ray.on_ray.events import EpochDone, Warned
from ipcnn_ray.train.run_dir import WEIGHTS_FILE, Attempts

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.slow]


SEARCH = {
    "kind": "space",
    "trials": 2,
    "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}, {"name": "l1"}],
    "space": {"template.beta": {"log_uniform": [1.0, 8.0]}},
}


def test_runs_whose_workers_are_killed_go_on(bench, monkeypatch):
    """Of `l1`, of the control and of one sampled run.

    For the last two as on a dead node that its cluster still counts as alive: the next worker is lost during start-up,
    which is final for Tune.
    """
    spec = tiny("unlucky", search=SEARCH)
    process, lost = TuneController._process_trial_failure, []

    def fail_final(controller, trial, exception):
        if trial.config.get("label") != "l1":
            lost.append(trial)
            controller._set_trial_status(trial, Trial.PENDING)
        process(controller, trial, exception)

    monkeypatch.setattr(TuneController, "_process_trial_failure", fail_final)
    killed = []

    def kill(event):
        events(event)
        if isinstance(event, EpochDone) and event.label not in killed and len(killed) < 3:
            killed.append(event.label)
            kill_trainer_of(bench.folder(spec, event.label))

    events = EventLog()
    outcome = bench.submit(spec, kill)
    assert {"plain", "l1"} < set(killed) and len(lost) == 2
    assert [run.state for run in outcome.runs] == ["succeeded"] * 4
    warnings = {event.text for event in events.events if isinstance(event, Warned)}
    again = "its worker was lost while it started; it is started again later"
    assert warnings == {f"{label}: {again}" for label in killed if label != "l1"}
    for label in killed:
        attempts = Attempts.read(bench.folder(spec, label))
        assert (attempts.lost, attempts.error) == (1, 0)
    assert len(set(events.ended())) == len(events.ended()) == len(outcome.runs)

    (l1,) = [run for run in outcome.runs if run.label == "l1"]
    result, undisturbed = bench.train_in_process(l1.request.spec)
    assert equal_metrics({key: value for key, value in l1.metrics.items() if key != "combined"}, result.metrics)
    assert equal_weights(bench.folder(spec, "l1"), undisturbed)


def test_two_workers_with_one_killed_equal_one_worker(bench):
    spec = tiny("two", train={"epochs": 4}, compute={"workers": 2})
    outcome = bench.submit(spec, EventLog(epoch=2, action=kill_second_worker))
    (run,) = outcome.runs
    assert run.state == "succeeded" and run.metrics["epoch"] == 4
    assert bench.recorded(spec)["run"].tags["ipcnn.workers"] == "2"
    result, reference = bench.train_in_process(spec)
    for name in ("train_loss", "filter_loss", "val_loss", "instability"):
        assert run.metrics[name] == pytest.approx(result.metrics[name], rel=1e-4), name
    assert run.metrics["val_error"] == result.metrics["val_error"]
    trained, expected = load_file(bench.folder(spec) / WEIGHTS_FILE), load_file(reference / WEIGHTS_FILE)
    for name in expected:
        torch.testing.assert_close(trained[name], expected[name], rtol=1e-3, atol=1e-5)
    assert Attempts.read(bench.folder(spec)).error == 0


def test_a_run_of_two_workers_with_a_killed_controller_goes_on(bench):
    """All cores are in use: the next controller waits for ever for those that the first one leaves."""
    spec = tiny("headless", train={"epochs": 4}, compute={"workers": 2})
    outcome = bench.submit(spec, EventLog(epoch=2, action=kill_controller))
    (run,) = outcome.runs
    assert run.state == "succeeded" and run.metrics["epoch"] == 4
    attempts = Attempts.read(bench.folder(spec))
    assert (attempts.lost, attempts.error) == (1, 0)


def test_an_experiment_with_a_killed_driver_resumes(bench, tmp_path):
    spec = tiny("orphan", train={"epochs": 10})
    written = tmp_path / "spec.json"
    written.write_text(spec.model_dump_json())
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # it starts its own Ray
    driver = subprocess.Popen(
        [sys.executable, "-m", "fakes.killed_driver", str(bench.paths.home), str(written)],
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
