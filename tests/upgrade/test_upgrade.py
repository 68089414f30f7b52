"""The store of an earlier version, made by `make_store.py`: this version reads all of it, and ends what was killed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from contextlib import closing
from importlib import metadata
from math import isfinite
from pathlib import Path

import pytest
import torch
from fakes.commands import run_command
from PIL import Image
from safetensors.torch import load_file

import ipcnn_ray
from ipcnn_ray.on_ray import garbage
from ipcnn_ray.spec.loader import load
from ipcnn_ray.spec.runs import experiment_id, named_runs
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_dir import MEAN_KEY
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths

HERE = Path(__file__).parent
SPEC = HERE / "store.yaml"
LOADED = load(SPEC)
EXPERIMENT = experiment_id(LOADED.spec)


def unpacked(folder: Path, version: str) -> Path:
    """Unpack IPCNN_HOME into a folder; return it. The record names absolute paths, which are changed."""
    with tarfile.open(HERE / f"store_{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    home = folder / "home"
    before = json.loads((home / "made_with.json").read_text())["home"]
    with closing(sqlite3.connect(home / "mlflow.db")) as record:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            record.execute(f"update {table} set {column} = replace({column}, ?, ?)", (before, str(home)))
        record.commit()
    return home


@pytest.fixture(scope="module", params=["0.1.0"])
def upgraded(request, tmp_path_factory) -> Path:
    """The store as its version left it, but for the schema of its database, which MLflow migrates on opening it."""
    home = unpacked(tmp_path_factory.mktemp("store"), request.param)
    assert MlflowTracker(f"sqlite:///{home}/mlflow.db").experiments() == ["upgrade"]
    return home


@pytest.fixture
def home(upgraded, tmp_path, monkeypatch) -> Path:
    """A copy of the store, as IPCNN_HOME."""
    home = shutil.copytree(upgraded, tmp_path / "home")
    with closing(sqlite3.connect(home / "mlflow.db")) as record:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            record.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(upgraded), str(home)))
        record.commit()
    for name in ("IPCNN_CACHE", "IPCNN_STORAGE", "IPCNN_DATA", "IPCNN_WEIGHTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IPCNN_HOME", str(home))
    return home


def folder_of(home: Path, label: str) -> Path:
    return home / "runs" / EXPERIMENT / label


def check_weights(home: Path) -> None:
    """The run that was killed has the weights of the same run that the earlier version trained to its end: the same
    bytes with the same torch on a CPU with the same instructions."""
    whole, made_with = home / "again.safetensors", json.loads((home / "made_with.json").read_text())
    file = folder_of(home, "l2") / "weights.safetensors"
    a, b = load_file(whole), load_file(file)
    assert a.keys() == b.keys() and max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    same = {"torch": metadata.version("torch"), "cpu": torch.backends.cpu.get_cpu_capability()}
    if same.items() <= made_with.items():
        assert file.read_bytes() == whole.read_bytes()


def test_it_is_listed_with_what_was_recorded(home):
    assert EXPERIMENT in run_command("list").output
    runs = {run["run"].rpartition("-")[2]: run for run in json.loads(run_command("status", "upgrade", "--json").stdout)}
    assert {label: run["state"] for label, run in runs.items()} == {"plain": "succeeded", "l2": "running"}
    recorded = json.loads((folder_of(home, "plain") / "result.json").read_text())["metrics"]
    assert recorded["epoch"] == 5
    assert {name: runs["plain"]["metrics"][name] for name in recorded} == pytest.approx(recorded, nan_ok=True)


def test_it_is_reported_and_compared(home, tmp_path):
    run_command("report", "upgrade", "--out", tmp_path / "report.html", "--gallery", 0)
    page = (tmp_path / "report.html").read_text()
    assert "plain" in page and "L2 β10" in page
    compared = run_command("compare", f"{EXPERIMENT}-plain", f"{EXPERIMENT}-l2").output
    assert "template.shape" in compared


def test_its_model_is_loaded_and_predicts(home, tmp_path):
    run = f"{EXPERIMENT}-plain"
    model, weights = ipcnn_ray.load_model(run), load_file(folder_of(home, "plain") / "weights.safetensors")
    state = model.net.state_dict()
    assert state.keys() == weights.keys() - {MEAN_KEY} and all(
        torch.equal(state[name], weights[name]) for name in state
    )
    Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "noise.png")
    (shown,) = json.loads(run_command("predict", run, tmp_path / "noise.png", "--json").stdout)["images"]
    assert isfinite(shown["scores"]["cow"]["logit"])


def test_gc_leaves_its_files(home, monkeypatch):
    monkeypatch.setattr(garbage, "_old", lambda path, seconds: True)
    found = garbage.find_garbage(MlflowTracker(f"sqlite:///{home}/mlflow.db"), Paths.from_environment())
    ours = {item.place: item.kind for item in found if item.place.startswith(str(home))}
    assert ours == {str(folder_of(home, "plain") / "checkpoints"): "checkpoints"}  # of the run that has ended


def test_a_run_that_was_killed_ends_with_the_same_weights(home):
    (run,) = [run for run in named_runs(LOADED.spec) if run.label == "l2"]
    tracker = MlflowTracker(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"))
    (recorded,) = [run for run in tracker.find("upgrade") if run.label == "l2"]
    summary, folder = RunSummary(recorded.run_id, "l2"), str(folder_of(home, "l2"))
    request = RunRequest(summary, run.spec, Paths.from_environment(), recorded.handle, folder)
    assert train_run(request, Runtime(), tracker).state == "succeeded"
    check_weights(home)


@pytest.mark.slow
def test_the_submission_that_was_killed_goes_on(home):
    result = ipcnn_ray.submit(SPEC, progress=False)
    assert {run.label: run.state for run in result.runs} == {"plain": "succeeded", "l2": "succeeded"}
    assert (folder_of(home, "plain") / "weights.safetensors").exists()
    log = (home / "logs" / f"{EXPERIMENT}.log").read_text()
    assert log.count("epoch 1/5") == 2 and log.count("epoch 5/5") == 2
    check_weights(home)
    tracker = MlflowTracker(f"sqlite:///{home}/mlflow.db")
    (recorded,) = [run for run in tracker.find("upgrade") if run.label == "l2"]
    assert [step for step, _ in tracker.history(recorded.handle, "train_loss")] == [1, 2, 3, 4, 5]
    assert not list(folder_of(home, "plain").glob("checkpoints/*/state.pt"))
