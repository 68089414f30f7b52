"""Experiments from Python: submit one, read its runs, load a model; without a cluster, and with a fake one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pandas
import pytest
import torch
from doc_examples import examples
from PIL import Image

import ipcnn_ray
from ipcnn_ray.cli import experiments
from ipcnn_ray.core.metrics.streaming import FilterMetrics
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import IpcnnError, SpecError, TrainingError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.on_ray import job_client, submission
from ipcnn_ray.on_ray.events import Logged, RunEnded
from ipcnn_ray.on_ray.job_client import ExperimentJob
from ipcnn_ray.on_ray.submission import Outcome
from ipcnn_ray.on_ray.tuner import Interrupted
from ipcnn_ray.report.experiment_result import ExperimentResult
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.spec.runs import experiment_id, named_runs, resolved_yaml, run_id
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths

SPEC = ExperimentSpec.model_validate(
    {
        "name": "two",
        "data": {"kind": "drawn_animals", "category": ["cow", "dog"], "objects": 16, "negatives": 6},
        "model": {"network": "compact"},
        "template": {"shape": "gradient"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.05},
        "eval": {"top_images": 5, "few_images": 3},
        "search": {
            "kind": "named",
            "runs": [
                {"name": "plain", "set": {"template": {"shape": "none"}}},
                {"name": "l2", "set": {"template.norm": "l2"}},
                {"name": "late"},
            ],
            "objective": {"kind": "measure", "measure": "instability"},
        },
    }
)
EXPERIMENT = experiment_id(SPEC)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A home with an experiment of three runs, of which the last is still queued."""
    home = tmp_path_factory.mktemp("home")
    paths = Paths.from_environment({"IPCNN_HOME": str(home)})
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    tracker.prepare("two")
    parent = tracker.open_parent("two", EXPERIMENT)
    parent.log_text(resolved_yaml(SPEC), "spec.yaml")
    parent.set_tags(Objectives.of(SPEC.search).tags())
    for run in named_runs(SPEC):
        record = tracker.open_child("two", run_id(SPEC, run), parent.handle)
        if run.label != "late":
            summary = RunSummary(run_id(SPEC, run), run.label, seed=0, template=run.spec.template.label())
            folder = f"{paths.storage}/{EXPERIMENT}/{run.label}"
            train_run(RunRequest(summary, run.spec, paths, record.handle, folder), Runtime(), tracker)
    parent.set_state("succeeded")
    return home


@pytest.fixture
def home(home, trained, monkeypatch) -> Path:
    monkeypatch.setenv("IPCNN_HOME", str(trained))
    return trained


@pytest.fixture
def store(home) -> CropStore:
    return prepare(SPEC.data, SPEC.model.table.image_size, Paths.from_environment())


def test_runs_are_a_table(home):
    frame = ipcnn_ray.runs("two")
    assert list(frame.index) == [f"{EXPERIMENT}-{label}" for label in ("plain", "l2", "late")]
    assert list(frame["label"]) == ["plain", "l2", "late"]
    assert list(frame["state"]) == ["succeeded", "succeeded", "queued"]
    assert list(frame["template.norm"][:2]) == [None, "l2"] or pandas.isna(frame["template.norm"].iloc[0])
    assert frame["val_error"].dtype == float and frame["val_error"][:2].between(0, 1).all()
    assert frame["seed"].dtype == "Int64" and frame["seed"].iloc[1] == 0
    assert frame["ended"].iloc[0] >= frame["started"].iloc[0] and str(frame["ended"].dt.tz) == "UTC"
    (row,) = ipcnn_ray.runs(f"{EXPERIMENT}-l2").to_dict("records")
    assert row["label"] == "l2" and row["instability"] == frame["instability"].iloc[1]
    with pytest.raises(IpcnnError, match="no experiment and no run is recorded as 'tow'\nDid you mean 'two'"):
        ipcnn_ray.runs("tow")


@torch.no_grad()
def test_a_loaded_model_has_the_recorded_numbers(home, store):
    """The metrics of the Python API, of the maps that the loaded model gives, are those that the run recorded."""
    model = ipcnn_ray.load_model(f"{EXPERIMENT}-l2")
    recorded = ipcnn_ray.runs("two").loc[f"{EXPERIMENT}-l2"]
    assert model.categories == ("cow", "dog") and model.image_size == store.size and not model.training
    field = layer_receptive_field(SPEC.model, "conv5")
    chosen = [METRICS.load(name) for name in EVERY_RUN]
    metrics = FilterMetrics(chosen, store.size, field=field, top_images=5, few_images=3)
    for part in torch.arange(len(store.objects)).split(5):
        numbers = store.objects[part.numpy()]
        crops_N3SS = torch.from_numpy(store.images_N3SS[numbers].copy()).float()
        maps = model.maps(crops_N3SS)
        assert list(maps) == ["conv4", "conv5"]
        assert model(crops_N3SS).shape == (len(part), 2)
        in_training = torch.tensor([number in set(store.train_items[:, 0]) for number in numbers])
        metrics.update(
            maps["conv5"],
            torch.from_numpy(store.landmarks_NK2[numbers]),
            torch.from_numpy(store.labels_N[numbers]),
            in_training=in_training,
        )
    for name, result in metrics.compute().items():
        assert result.mean == pytest.approx(recorded[f"{name}_conv5"], rel=1e-6), name


def test_a_model_of_a_result_and_models_that_are_not_there(home):
    summary = RunSummary(f"{EXPERIMENT}-plain", "plain")
    weight = ipcnn_ray.load_model(summary).net.layer("conv1").weight
    assert torch.equal(weight, ipcnn_ray.load_model(summary.run_id).net.layer("conv1").weight)
    with pytest.raises(IpcnnError, match=rf"two has 3 runs\nGive the id of one: {EXPERIMENT}-plain, {EXPERIMENT}-l2, "):
        ipcnn_ray.load_model("two")
    with pytest.raises(TrainingError, match=r"has no weights.safetensors in .*/late: it has not ended yet"):
        ipcnn_ray.load_model(f"{EXPERIMENT}-late")


def outcome_of(home: Path) -> Outcome:
    """The recorded runs as a submission returns them."""
    runs = [replace(run, state="failed") if run.label == "late" else run for run in _recorded()]
    return Outcome.of(EXPERIMENT, runs, Objectives.of(SPEC.search), parent="handle")


def _recorded():
    paths = Paths.from_environment()
    return [run for run in MlflowTracker(paths.tracking_uri).find("two") if run.parent]


def test_a_result_has_metrics_ranking_and_verdict(home):
    result = outcome_of(home)
    assert result.control == "plain" and result.failed  # `late` is named in the spec
    assert set(result.metrics) == {"plain", "l2", "late"} and result.metrics["l2"]["epoch"] == 1
    assert result.best in result.winners and result.best.label in ("plain", "l2")
    assert [group.name for group in result.ranking.groups] == [group.name for group in result.groups]
    assert result.verdict.startswith("plain: instability 0.") and "\n" in result.verdict
    assert list(result.to_frame()["label"]) == [run.label for run in result.runs]
    told = result.as_json()
    assert told["experiment"] == EXPERIMENT and [run["run_id"] for run in told["runs"]] == list(result.to_frame().index)
    assert {"groups", "verdicts"} <= set(told)


@pytest.fixture
def submitted(monkeypatch, home):
    """`run_submission` is replaced by one that tells two events and returns the recorded runs."""
    calls = []

    def run_submission(loaded, paths, *, listener, **how):
        calls.append((loaded.spec, paths, how))
        listener(Logged("two: data"))
        metrics = {"val_error": 0.25, "instability": 0.1}
        listener(RunEnded(RunSummary("two-l2", "l2", state="succeeded", metrics=metrics)))
        return outcome_of(home)

    monkeypatch.setattr(submission, "run_submission", run_submission)
    return calls


def test_a_submission_here_writes_the_log_of_the_command(submitted, home, tmp_path, capsys):
    file = tmp_path / "two.yaml"
    file.write_text(resolved_yaml(SPEC))
    results = [
        ipcnn_ray.submit(file, fresh=True, wait=2, progress=False),
        ipcnn_ray.submit(ipcnn_ray.load_spec(str(file)), progress=False),
        ipcnn_ray.submit(SPEC),
    ]
    assert all(isinstance(result, ExperimentResult) and result.best for result in results)
    (spec, paths, how), *others = submitted
    assert spec == SPEC and paths.home == home
    assert how == {"fresh": True, "address": None, "wait": 120}
    assert all(other[0] == SPEC and other[2]["fresh"] is False for other in others)
    log = (home / "logs" / f"{EXPERIMENT}.log").read_text()
    lines = "two: data\nl2           succeeded  error 25.0%  instability 0.1000\n"
    assert log == 3 * lines
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err == lines  # of the last one


def test_the_examples_in_docstrings_run(submitted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "uniform_sweep.yaml").write_text(resolved_yaml(SPEC))
    names = {"ipcnn_ray": ipcnn_ray, "crops": torch.zeros(2, 3, 64, 64)}
    blocks = [
        block for value in (ipcnn_ray, ipcnn_ray.submit, ipcnn_ray.load_model) for block in examples(value.__doc__)
    ]
    assert len(blocks) == 5
    Image.new("RGB", (90, 60), "brown").save("new.jpg")
    for block in blocks[1:]:  # the first one is of the layer
        exec(block, names)
    assert submitted[1][0].train.epochs == 4 and names["probability"].shape == (2, 2)
    assert names["said"].image == "new.jpg" and set(names["said"].decision) <= {"cow", "dog"}
    assert names["result"].verdict.splitlines()[0] in capsys.readouterr().out


def test_overrides_are_values_or_texts(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(resolved_yaml(SPEC))
    by_value = ipcnn_ray.load_spec(file, {"train.learning_rate": 1e-4, "template.beta": 3, "data.landmarks": ["head"]})
    by_text = ipcnn_ray.load_spec(file, ["train.learning_rate=0.0001", "template.beta=3", "data.landmarks=[head]"])
    assert by_value.spec == by_text.spec and by_value.spec.train.learning_rate == 1e-4
    with pytest.raises(SpecError) as error:
        ipcnn_ray.load_spec(file, {"train.epoch": 3})
    assert error.value.issues[0].where == "--set train.epoch=3"


def test_detaching_needs_an_address(home):
    with pytest.raises(IpcnnError, match="detach = True is for a cluster\nGive its address, or leave detach out"):
        ipcnn_ray.submit(SPEC, detach=True)


class FakeJobClient:
    """A cluster with one job, which ends as `ended` says."""

    ended: ClassVar[dict[str, object]] = {"state": "succeeded", "exit_code": 0}

    def __init__(self, address: str) -> None:
        assert address == "http://head:8265"

    def job(self, id: str) -> ExperimentJob:
        return replace(ExperimentJob(EXPERIMENT, id, 1, "running", "", 1, None, None), **self.ended)

    def submit(self, experiment, folder, arguments, env):
        assert arguments == ["submit", "spec.yaml", "--on-cluster", "--wait", "5"]
        return self.job(experiment), True

    def logs(self, id, *, follow=False):
        yield from ("epoch 1\nepo", "ch 2\n")


@pytest.fixture
def cluster(monkeypatch, home):
    monkeypatch.setattr(job_client, "JobClient", FakeJobClient)
    monkeypatch.setattr(FakeJobClient, "ended", {"state": "succeeded", "exit_code": 0})
    return lambda **how: ipcnn_ray.submit(SPEC, "http://head:8265", wait=5, **how)


def test_a_submission_to_a_cluster_reads_its_result_from_the_record(cluster, capsys):
    result = cluster()
    assert capsys.readouterr().out == "epoch 1\nepoch 2\n"
    assert result.experiment_id == EXPERIMENT and result.control == "plain"
    assert {run.label: run.state for run in result.runs} == {"plain": "succeeded", "l2": "succeeded", "late": "queued"}
    assert result.best.metrics["instability"] > 0 and result.verdict
    cluster(progress=False)
    detached = cluster(detach=True)
    assert (detached.experiment_id, detached.runs) == (EXPERIMENT, ())
    assert capsys.readouterr().out == ""


def test_jobs_that_do_not_succeed(cluster, monkeypatch):
    monkeypatch.setattr(FakeJobClient, "ended", {"state": "stopped", "exit_code": 130})
    with pytest.raises(Interrupted):
        cluster()
    monkeypatch.setattr(FakeJobClient, "ended", {"state": "failed", "exit_code": 1, "cause": "the node died"})
    with pytest.raises(IpcnnError, match=f"{EXPERIMENT} has failed: the node died\nSubmit it again: it goes on"):
        cluster()
    runs = [replace(run, state="failed") if run.label == "l2" else run for run in _recorded()]
    find_runs = experiments.find_runs
    monkeypatch.setattr(experiments, "find_runs", lambda *request: [(find_runs(*request)[0][0], runs)])
    assert cluster().metrics.keys() == {"plain", "l2", "late"}  # a run that fails does not raise
