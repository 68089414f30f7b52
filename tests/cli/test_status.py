"""`ipcnn status` on a small record."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ipcnn_ray.cli.status import status
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.report.experiment_record import template_words
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(status)
app.callback()(lambda: None)

PLAIN = {"template.shape": "none"}
UNIFORM = {"template.shape": "uniform", "template.norm": "l2", "template.beta": "2.0", "template.gamma": "0.5"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A home with two experiments: one of three runs, one of which failed; one that has no runs yet."""
    home = tmp_path_factory.mktemp("home")
    tracker = MlflowTracker(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"))
    tracker.prepare("sweep")
    parent = tracker.open_parent("sweep", "sweep-12345678")
    numbers = {"epoch": 5.0, "instability": 0.1, "val_error": 0.0625, "combined": 1.0}
    for label, params, metrics, state, why in [
        ("control", PLAIN, numbers, "succeeded", ""),
        ("r1", UNIFORM, {**numbers, "instability": 0.075, "combined": 0.875}, "succeeded", ""),
        ("r2", {}, {}, "failed", "TrainingError: the loss is not finite"),
    ]:
        run = tracker.open_child("sweep", f"sweep-12345678-{label}", parent.handle)
        run.log_params(params)
        run.log_metrics([metrics] if metrics else [])
        run.set_state(state, why)
    parent.set_state("failed", "1 of 3 runs failed")
    tracker.prepare("single")
    tracker.open_parent("single", "single-87654321")
    return home


@pytest.fixture
def home(recorded, monkeypatch) -> Path:
    for variable in ("MLFLOW_TRACKING_URI", "IPCNN_STORAGE", "IPCNN_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("IPCNN_HOME", str(recorded))
    monkeypatch.setenv("COLUMNS", "200")
    return recorded


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("IPCNN_HOME", str(tmp_path / "nothing"))
    return tmp_path / "nothing"


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """As wide as it takes: what is piped is cut nowhere."""
    monkeypatch.setattr("ipcnn_ray.cli.output.stdout.width", 200)


def test_experiments(home):
    header, *rows = [cells(line) for line in run("status").splitlines()]
    assert header == ["experiment", "state", "runs", "best", "combined", "why"]
    assert rows == [
        ["single-87654321", "queued", "1 queued", "-", "-"],
        ["sweep-12345678", "failed", "2 succeeded, 1 failed", "uniform L2 β2 γ0.5", "0.875", "1 of 3 runs failed"],
    ]


@pytest.mark.parametrize("wanted", ["sweep", "sweep-12345678"])
def test_runs_of_an_experiment(home, wanted):
    header, *lines = run("status", wanted).splitlines()
    assert cells(header) == ["run", "template", "state", "epoch", "instability", "error", "combined"]
    assert [cells(line) for line in lines[:3]] == [
        ["control", "plain", "succeeded", "5", "0.1000", "6.25%", "1.000"],
        ["r1", "uniform L2 β2 γ0.5", "succeeded", "5", "0.0750", "6.25%", "0.875"],
        ["r2", "-", "failed", "-", "-", "-", "-"],
    ]
    assert lines[3:] == ["r2 failed: TrainingError: the loss is not finite"]


def test_one_run(home):
    assert len(run("status", "sweep-12345678-r1").splitlines()) == 2


def test_json(home):
    single, sweep = json.loads(run("status", "--json"))
    assert single["experiment"] == "single-87654321"
    assert (sweep["state"], sweep["runs"]) == ("failed", {"succeeded": 2, "failed": 1})
    runs = json.loads(run("status", "sweep", "--json"))
    assert [one["run"] for one in runs] == [f"sweep-12345678-{label}" for label in ("control", "r1", "r2")]
    assert runs[1]["metrics"] == {"epoch": 5.0, "instability": 0.075, "val_error": 0.0625, "combined": 0.875}
    assert runs[2]["why"] == "TrainingError: the loss is not finite"


@pytest.mark.parametrize(
    ("wanted", "advice"),
    [
        ("sweeep", "Did you mean 'sweep'?"),
        ("sweep-12345679", "Did you mean 'sweep-12345678'?"),
        ("zzz", r"Recorded: single, sweep\."),
    ],
)
def test_an_experiment_that_is_not_recorded(home, wanted, advice):
    with pytest.raises(IpcnnError, match=rf"no experiment and no run is recorded as '{wanted}'\n{advice}"):
        run("status", wanted)


def test_nothing_is_recorded_yet(empty):
    assert run("status") == f"nothing is recorded yet in sqlite:///{empty}/mlflow.db\n"
    assert json.loads(run("status", "--json")) == []
    with pytest.raises(IpcnnError, match="Nothing is recorded yet"):
        run("status", "sweep")
    assert not empty.exists()


def test_templates_in_words():
    gradient = {"template.shape": "gradient", "template.norm": "l1", "template.beta": "4.0", "template.tau": "0.01"}
    assert template_words({"train.epochs": "3", **gradient}) == "L1 β4 τ0.01"
    assert template_words({"template.shape": "star", "template.points": "5"}) == "shape star points 5"
