"""SIGKILL for a worker, for one of two workers, and for the submitting process itself."""

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
from ray_bench import Hears, kill_second_worker, kill_trainer_of, same_numbers, same_weights, tiny, wait_for_epoch
from safetensors.torch import load_file

from ipcnn_ray.on_ray.tune_callback import EpochDone, Warned
from ipcnn_ray.train.retry_state import Attempts
from ipcnn_ray.train.run_dir import WEIGHTS_FILE

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.slow]


def test_a_run_whose_worker_is_killed_ends_as_if_nothing_had_happened(bench):
    spec = tiny("killed", train={"epochs": 6})
    folder = bench.folder(spec)
    hears = Hears(after=2, does=lambda: kill_trainer_of(folder))
    outcome = bench.submit(spec, hears)
    assert outcome.runs[0].state == "succeeded"
    assert Attempts.read(folder).lost == 1 and Attempts.read(folder).error == 0
    result, undisturbed = bench.undisturbed(spec)
    assert same_numbers(outcome.runs[0].metrics, result.metrics)
    assert same_weights(folder, undisturbed)


SEARCH = {
    "kind": "space",
    "trials": 2,
    "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}],
    "space": {"template.beta": {"log_uniform": [1.0, 8.0]}},
}


@pytest.mark.parametrize("search", [None, SEARCH])
def test_a_worker_that_is_lost_while_it_starts_is_started_again(bench, monkeypatch, search):
    """As where a node dies that its cluster still counts as alive: the run's next worker is lost before it began, and
    Tune gives up on it at once."""
    spec = tiny(f"unlucky_{'search' if search else 'run'}", **({"search": search} if search else {}))
    process, lost = TuneController._process_trial_failure, []

    def unlucky(controller, trial, exception):
        if not lost:
            controller._set_trial_status(trial, Trial.PENDING)
        lost.append(trial)
        process(controller, trial, exception)

    monkeypatch.setattr(TuneController, "_process_trial_failure", unlucky)
    began = []

    def kill(event):
        hears(event)
        if isinstance(event, EpochDone) and event.label != "plain" and not began:
            began.append(event.label)
            kill_trainer_of(bench.folder(spec, event.label))

    hears = Hears()
    outcome = bench.submit(spec, kill)
    assert len(lost) == 1
    assert [run.state for run in outcome.runs] == ["succeeded"] * (3 if search else 1)
    told = [event.text for event in hears.events if isinstance(event, Warned)]
    assert told == [f"{began[0]}: its worker was lost while it started; it is started again later"]
    assert Attempts.read(bench.folder(spec, began[0])).lost == 1
    assert len(set(hears.ended())) == len(hears.ended()) == len(outcome.runs)


def test_two_workers_of_which_one_is_killed_reach_the_numbers_of_one_worker(bench):
    spec = tiny("two", train={"epochs": 6}, compute={"workers": 2})
    outcome = bench.submit(spec, Hears(after=2, does=kill_second_worker))
    (run,) = outcome.runs
    assert run.state == "succeeded" and run.metrics["epoch"] == 6
    assert bench.recorded(spec)["run"].tags["ipcnn.workers"] == "2"
    result, alone = bench.undisturbed(spec)
    for name in ("train_loss", "filter_loss", "val_loss", "instability"):
        assert run.metrics[name] == pytest.approx(result.metrics[name], rel=1e-4), name
    assert run.metrics["val_error"] == result.metrics["val_error"]
    here, there = load_file(bench.folder(spec) / WEIGHTS_FILE), load_file(alone / WEIGHTS_FILE)
    for name in there:
        torch.testing.assert_close(here[name], there[name], rtol=1e-3, atol=1e-5)
    assert Attempts.read(bench.folder(spec)).error == 0


def test_an_experiment_whose_driver_is_killed_goes_on_when_submitted_again(bench, tmp_path):
    spec = tiny("orphan", train={"epochs": 20})
    written = tmp_path / "spec.json"
    written.write_text(spec.model_dump_json())
    script = Path(__file__).with_name("killed_driver.py")
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # a Ray of its own
    driver = subprocess.Popen(
        [sys.executable, str(script), str(bench.paths.home), str(written)],
        env={**alone, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    try:
        wait_for_epoch(bench.folder(spec), 2)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    hears = Hears()
    outcome = bench.submit(spec, hears)
    assert min(hears.epochs()) > 1
    result, undisturbed = bench.undisturbed(spec)
    assert same_numbers(outcome.runs[0].metrics, result.metrics)
    assert same_weights(bench.folder(spec), undisturbed)
