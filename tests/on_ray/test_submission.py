"""Submissions on an embedded Ray: trained runs, events, records, and what a second submission trains."""

from __future__ import annotations

import fcntl
import hashlib
import math
import signal
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torchvision
from fakes.ray_bench import EventLog, equal_metrics, equal_weights, tiny
from mlflow import MlflowClient

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError, IpcnnError, TrainingError, UnreachableError
from ipcnn_ray.on_ray.events import Logged, PhaseStarted, RunEnded, Warned
from ipcnn_ray.on_ray.experiment_dir import request_stop
from ipcnn_ray.on_ray.submission import prepare_record, run_submission
from ipcnn_ray.on_ray.tuner import ExperimentTuner, Interrupted
from ipcnn_ray.spec.runs import experiment_id, resolved_yaml
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_dir import Attempts
from ipcnn_ray.utils.paths import Paths

PLAIN = {"name": "plain", "set": {"template.shape": "none"}}
ONE_PROCESS = {"concurrent_runs": 1}
"""The runs follow one another in one process: to start a second one takes longer than they do."""
WILD = {"name": "wild", "set": {"train.learning_rate": 1.0e30}}


@pytest.mark.slow
def test_a_search_is_relative_to_its_control_and_survives_a_failed_run(bench, ray_here, capfd):
    spec = tiny(
        "searched",
        compute={"retries": 1, **ONE_PROCESS},
        search={
            "kind": "space",
            "trials": 4,
            "runs": [PLAIN, WILD],
            "space": {"template.beta": {"choice": [1.0, 2.0, 3.0, 4.0]}},
            "early_stopping": {"grace_epochs": 1, "reduction_factor": 2},
        },
    )
    events = EventLog()
    outcome = bench.submit(spec, events)
    by_label = {run.label: run for run in outcome.runs}
    control, wild = by_label["plain"], by_label["wild"]
    drawn = [run for run in outcome.runs if run.origin == "sampled"]
    assert outcome.control == "plain"
    assert control.metrics["combined"] == 1.0
    assert wild.state == "failed" and wild.cause.startswith("TrainingError: the loss is not finite in epoch 1")
    assert Attempts.read(bench.folder(spec, "wild")).error == 2  # one retry, as in compute.retries
    assert outcome.runs[-1] is wild and wild.metrics == {}
    assert [event.total for event in events.events if isinstance(event, PhaseStarted)] == [2, 4]
    assert drawn and all(run.state in {"succeeded", "pruned"} for run in drawn)
    assert all(set(run.settings) == {"template.beta"} for run in drawn)
    for run in (run for run in drawn if run.state == "pruned"):
        epoch = int(run.metrics["epoch"])
        assert run.cause == f"early stopping at epoch {epoch} of 3"
    ranked = [run.metrics["combined"] for run in outcome.runs if run.state == "succeeded"]
    assert ranked == sorted(ranked) and outcome.best is outcome.runs[0]

    assert capfd.readouterr() == ("", "")  # failures are recorded, not printed
    recorded = bench.recorded(spec)
    assert {label: run.state for label, run in recorded.items() if label} == {
        run.label: run.state for run in outcome.runs
    }
    assert recorded["wild"].cause == wild.cause
    assert recorded["plain"].metrics["combined"] == 1.0
    parent = recorded[""]
    assert parent.state == "succeeded" and parent.cause == "failed: wild"
    assert parent.metrics["runs_failed"] == 1
    assert parent.metrics["best_combined"] == outcome.best.metrics["combined"]

    again = EventLog()
    repeated = bench.submit(spec, again)
    assert again.started() == {"wild"}  # only failed runs are trained again
    assert {run.label: run.state for run in repeated.runs} == {run.label: run.state for run in outcome.runs}
    assert {run.label for run in repeated.runs if run.fresh} == {"wild"}


def test_a_failed_control_ends_the_search(bench, monkeypatch):
    search = {"kind": "grid", "runs": [PLAIN], "grid": {"template.beta": [1.0, 2.0]}}
    spec = tiny("uncontrolled", search=search)
    phases = []

    def run_fixed(self, context, runs, *, early_stopping):
        phases.append(set(runs))
        return {"plain": RunSummary("x-1-plain", "plain", state="failed", cause="RuntimeError: out of luck")}

    monkeypatch.setattr(ExperimentTuner, "run_fixed", run_fixed)
    with pytest.raises(TrainingError, match=r"the control run 'plain' has failed: RuntimeError: out of luck\n.*again"):
        bench.submit(spec)
    assert phases == [{"plain"}]
    assert bench.recorded(spec)[""].state == "failed"


def test_a_control_that_nothing_can_be_compared_with_ends_the_search(bench, monkeypatch):
    metrics = {"epoch": 1.0, "val_error": 0.1, "val_images": 6.0, "instability": 0.0, "landmarks_followed": 2.0}

    def run_fixed(self, context, runs, *, early_stopping):
        return {label: RunSummary(f"x-1-{label}", label, state="succeeded", metrics=metrics) for label in runs}

    monkeypatch.setattr(ExperimentTuner, "run_fixed", run_fixed)
    for metric, value in (("instability", r"0\.0"), ("landmark_tracking", "nan")):
        objective = {"kind": "combined", "interpretability": metric}
        spec = tiny(f"no_{metric}", search={"kind": "named", "runs": [PLAIN], "objective": objective})
        with pytest.raises(
            TrainingError, match=rf"the control run 'plain' has {metric} {value}: nothing can be measured"
        ):
            bench.submit(spec)


def test_an_experiment_is_trained_by_one_process_at_a_time(bench):
    spec = tiny("busy")
    lock = bench.folder(spec).parent.with_name(f".{experiment_id(spec)}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(IpcnnError, match=f"{experiment_id(spec)} is being trained by another process"):
            bench.submit(spec)


@pytest.mark.slow
def test_a_run_is_stopped_by_sigterm_resumed_repeated_and_renewed(bench, ray_here, capfd):
    """In the end the runs, resumed or not, equal the same run in this process."""
    spec = tiny("one", train={"epochs": 5})
    events = EventLog(epoch=2, action=lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        bench.submit(spec, events)
    assert signal.getsignal(signal.SIGTERM) is before
    recorded = bench.recorded(spec)
    assert recorded[""].state == recorded["run"].state == "stopped"
    assert not any(isinstance(event, RunEnded) for event in events.events)
    assert Attempts.read(bench.folder(spec)) == Attempts()  # no lost worker, no open attempt

    resuming = EventLog()
    resumed = bench.submit(spec, resuming)
    assert min(resuming.epochs()) > 2
    result, folder = bench.train_in_process(spec)
    assert equal_metrics(resumed.runs[0].metrics, result.metrics)
    assert equal_weights(bench.folder(spec), folder)
    assert bench.recorded(spec)["run"].state == "succeeded"
    assert math.isfinite(bench.recorded(spec)["run"].metrics["instability"])

    again = EventLog()
    repeated = bench.submit(spec, again)
    assert again.started() == set() and again.ended() == ["run"]
    assert [one.fresh for one in repeated.runs] == [False]
    assert repeated.runs[0].metrics == resumed.runs[0].metrics

    renewing = EventLog()
    renewed = bench.submit(spec, renewing, fresh=True, tags={"code.commit": "abc"})
    (run,) = renewed.runs
    assert (run.label, run.state, run.cause, run.origin, run.fresh) == ("run", "succeeded", "", "named", True)
    assert renewed.best is run and renewed.control is None
    assert renewed.parent != resumed.parent
    assert renewing.events[0] == PhaseStarted("training", 1)
    assert renewing.epochs() == [1, 2, 3, 4, 5] and renewing.ended() == ["run"]
    assert equal_metrics(run.metrics, result.metrics)
    assert equal_weights(bench.folder(spec), folder)
    recorded = bench.recorded(spec)
    assert recorded[""].state == recorded["run"].state == "succeeded"
    assert recorded["run"].parent == recorded[""].handle == renewed.parent
    assert recorded["run"].tags["code.commit"] == recorded[""].tags["code.commit"] == "abc"
    assert recorded[""].tags["ipcnn.best"] == "run"
    (archive,) = bench.folder(spec).parent.parent.glob(f"{experiment_id(spec)}.before-*")
    assert (archive / "run" / "result.json").is_file()
    assert capfd.readouterr() == ("", "")  # Ray prints nothing


def combined_by_hand(run: Mapping[str, float], control: Mapping[str, float]) -> float:
    """The objective with equal weights. Errors count at least as one standard error of the control's, and one image."""
    n, e = control["val_images"], control["val_error"]
    errors = [max(1 / n, (e * (1 - e) / n) ** 0.5, metrics["val_error"]) for metrics in (run, control)]
    return 0.5 * run["instability"] / control["instability"] + 0.5 * errors[0] / errors[1]


@pytest.mark.slow
def test_a_grid_with_repeats_is_stopped_on_request_and_resumed(bench, ray_here):
    """Each run is relative to the control of its seed."""
    search = {"kind": "grid", "runs": [PLAIN], "grid": {"template.beta": [2.0]}, "repeats": 2}
    spec = tiny("repeated", search=search, compute=ONE_PROCESS)
    root = str(bench.folder(spec).parent)
    events = EventLog(epoch=1, action=lambda: request_stop(root))
    with pytest.raises(Interrupted):
        bench.submit(spec, events)
    recorded = bench.recorded(spec)
    assert recorded[""].state == recorded["plain.seed0"].state == "stopped"
    assert recorded["plain.seed0"].tags["ipcnn.attempts_lost"] == "0"
    assert recorded[""].tags["ipcnn.submissions"] == "1"
    assert events.ended() == [] and Attempts.read(bench.folder(spec, "plain.seed0")) == Attempts()

    again = EventLog()
    outcome = bench.submit(spec, again)
    assert min(again.epochs("plain.seed0")) > 1  # resumed, not trained again
    assert [run.state for run in outcome.runs] == ["succeeded"] * 4
    assert [event.total for event in again.events if isinstance(event, PhaseStarted)] == [2, 2]
    by_label = {run.label: run for run in outcome.runs}
    (sampled,) = {run.group for run in outcome.runs} - {"plain"}
    assert set(by_label) == {f"{group}.seed{seed}" for group in ("plain", sampled) for seed in (0, 1)}
    for seed in (0, 1):
        control, run = by_label[f"plain.seed{seed}"].metrics, by_label[f"{sampled}.seed{seed}"].metrics
        assert control["combined"] == 1.0
        assert run["combined"] == pytest.approx(combined_by_hand(run, control), rel=1e-12)
    assert by_label["plain.seed0"].metrics["instability"] != by_label["plain.seed1"].metrics["instability"]
    assert {group.name: len(group.runs) for group in outcome.groups} == {"plain": 2, sampled: 2}
    recorded = bench.recorded(spec)
    assert recorded[f"{sampled}.seed1"].tags["ipcnn.seed"] == "1"
    assert recorded[""].tags["ipcnn.submissions"] == "2"
    assert recorded[""].tags["ipcnn.best"] == outcome.best.label == f"{outcome.groups[0].name}.seed0"
    assert recorded[""].metrics["best_combined"] == outcome.groups[0].means["combined"]


class InterruptsAfter(EventLog):
    """Sends Ctrl-C when `epoch` runs have ended."""

    def __call__(self, event):
        super().__call__(event)
        if isinstance(event, RunEnded) and len(self.ended()) == self.epoch:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_pareto_search_records_its_front_and_resumes(bench, ray_here):
    spec = tiny(
        "front",
        train={"epochs": 1},
        compute=ONE_PROCESS,
        search={
            "kind": "space",
            "trials": 3,
            "runs": [PLAIN],
            "space": {"template.beta": {"log_uniform": [1.0, 8.0]}},
            "objective": {"kind": "pareto", "measures": ["instability", "val_error"]},
            "constraints": [{"measure": "instability", "at_least": 0.001}],
        },
    )
    stopped, before = InterruptsAfter(epoch=2), signal.getsignal(signal.SIGINT)  # the control and one sampled run
    with pytest.raises(Interrupted):
        bench.submit(spec, stopped)
    assert signal.getsignal(signal.SIGINT) is before
    states = {label: run.state for label, run in bench.recorded(spec).items() if label not in stopped.ended()}
    assert states.pop("") == "stopped" and set(states.values()) <= {"stopped"}
    assert all(Attempts.read(bench.folder(spec, label)) == Attempts() for label in states)
    events = EventLog()
    outcome = bench.submit(spec, events)
    assert not events.started() & set(stopped.ended())
    assert set(stopped.ended()) <= set(events.ended())
    assert outcome.best is None and len([run for run in outcome.runs if run.origin == "sampled"]) == 3
    points = {run.label: (run.metrics["instability"], run.metrics["val_error"]) for run in outcome.runs}
    front = {
        label
        for label, (a, b) in points.items()
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in points.values())
    }
    assert {run.label for run in outcome.winners} == front
    recorded = bench.recorded(spec)
    assert {label for label, run in recorded.items() if label and run.tags["ipcnn.front"] == "true"} == front
    assert set(recorded[""].tags["ipcnn.front"].split(", ")) == front
    assert recorded[""].tags["ipcnn.goals"] == "instability, val_error"


def test_data_that_lack_what_a_metric_needs_start_nothing(bench, monkeypatch):
    def without_part_sizes(*args):
        store = prepare(*args)
        unknown = np.full_like(store.part_sizes_NK2, np.nan)
        return replace(store, part_sizes_NK2=unknown, left_out={"smaller than 50^2 pixels": 3})

    monkeypatch.setattr("ipcnn_ray.on_ray.submission.prepare", without_part_sizes)
    spec = tiny("part_sizes", eval={"measures": ["part_interpretability"]})
    events: list[object] = []
    with pytest.raises(DataError, match="part_interpretability needs the size of every part"):
        run_submission(spec, bench.paths, listener=events.append)
    assert Logged("left out 3: smaller than 50^2 pixels") in events


class Restarting:
    """A record whose server responds after some requests."""

    def __init__(self, refused):
        self.refused, self.requests = refused, []

    def prepare(self, experiment, description=""):
        self.requests.append(experiment)
        if len(self.requests) <= self.refused:
            raise UnreachableError("MLflow at http://mlflow:5000: Connection refused\nCheck that the server is up.")


def test_a_job_waits_for_a_tracking_server_that_restarts_and_a_person_does_not(monkeypatch):
    monkeypatch.setattr("ipcnn_ray.tracking.buffered_tracker.RETRY_PAUSE_S", 0.01)
    record, events = Restarting(refused=2), []
    prepare_record(record, "waits", events.append, timeout=1800)
    assert record.requests == ["waits"] * 3
    assert events == [Warned("MLflow at http://mlflow:5000: Connection refused; tried again for 30 min")]
    with pytest.raises(UnreachableError, match="Check that the server is up"):
        prepare_record(Restarting(refused=1000), "waits", events.append, timeout=0.1)
    assert len(events) == 2
    with pytest.raises(UnreachableError, match="Check that the server is up"):
        prepare_record(record := Restarting(refused=1000), "waits", events.append, timeout=0.0)
    assert record.requests == ["waits"] and len(events) == 2


def test_published_weights_are_downloaded_before_anything_starts(tmp_path, monkeypatch):
    """From an address that sends what is no file of weights: it is fetched, found wanting, and nothing else is done."""
    name = f"resnet18-{hashlib.sha256(b'no weights').hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(b"no weights")
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.DEFAULT.value, "url", f"file://{tmp_path}/{name}")
    paths, events = Paths.from_environment({"IPCNN_HOME": str(tmp_path / "home")}), EventLog()
    spec = tiny("by_name", model={"network": "resnet18", "cut": "layer1.1", "weights": {"torchvision": "DEFAULT"}})
    with pytest.raises(DataError, match=rf"home/weights/{name}  cannot be read"):
        run_submission(spec, paths, listener=events)
    assert events.events == [Logged(f"downloading file://{tmp_path}/{name}  0 of 0 MiB")]
    assert [path.name for path in paths.home.iterdir()] == ["weights"]


@pytest.mark.slow
def test_run_submission_stores_ranking_models_and_pictures(bench, ray_here):
    search = {"kind": "named", "runs": [PLAIN, {"name": "l1"}]}
    spec = tiny("python", train={"epochs": 1}, search=search, compute={"models": "all", **ONE_PROCESS})
    events: list[object] = []
    outcome = run_submission(spec, bench.paths, listener=events.append)
    assert {run.label: run.state for run in outcome.runs} == {"plain": "succeeded", "l1": "succeeded"}
    by_label = {run.label: run.metrics for run in outcome.runs}
    by_hand = combined_by_hand(by_label["l1"], by_label["plain"])
    assert by_label["plain"]["combined"] == 1.0 and by_label["l1"]["combined"] == pytest.approx(by_hand, rel=1e-12)
    assert [event.text for event in events if isinstance(event, Logged)] == [
        f"{experiment_id(spec)}: data",
        *(f"{run.label}: storing its model" for run in outcome.runs),
    ]
    recorded = bench.recorded(spec)
    parent = recorded[""]
    assert "code.commit" in parent.tags and parent.tags["data.digest"]
    assert "l1" in bench.tracker.read(parent.handle, "ranking.md")
    assert bench.tracker.read(parent.handle, "spec.yaml") == resolved_yaml(spec)
    verdict, ranking = (bench.tracker.read(parent.handle, path) for path in ("verdict.md", "ranking.md"))
    assert parent.tags["mlflow.note.content"] == f"{verdict}\n{ranking}"
    assert "l1: one seed gives no verdict." in verdict
    assert parent.tags["ipcnn.verdict"] == " ".join(verdict.split())
    assert {label: recorded[label].tags["ipcnn.verdict"] for label in by_label} == {
        "plain": "control",
        "l1": "one seed",
    }
    client = MlflowClient(bench.paths.tracking_uri)
    for label in ("plain", "l1"):
        (model,) = client.get_run(recorded[label].handle).outputs.model_outputs
        assert client.get_logged_model(model.model_id).status == "READY"
    pictures = [file.path for file in client.list_artifacts(recorded["l1"].handle, "pictures")]
    assert pictures == ["pictures/template.png"]

    again = run_submission(spec, bench.paths)  # nothing is trained or stored again
    assert not any(run.fresh for run in again.runs)
    assert len(client.get_run(recorded["l1"].handle).outputs.model_outputs) == 1
