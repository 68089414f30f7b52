"""`ipcnn status` and `ipcnn plan` of runs that are repeated over seeds, and of a Pareto search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ipcnn_ray.cli.specs import plan
from ipcnn_ray.cli.status import status
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(status)
app.command()(plan)

SPECS = Path(__file__).resolve().parents[2] / "specs"
FOUND = {"plain": (0.14, 0.15, 0.16), "l1": (0.13, 0.13, 0.15)}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A home with two settings of three seeds, and with a Pareto search of two runs."""
    home = tmp_path_factory.mktemp("home")
    tracker = MlflowTracker(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"))
    for name, objectives, runs in (
        (
            "seeds",
            Objectives(("combined",), (), "plain"),
            {f"{n}.seed{s}": v[s] for n, v in FOUND.items() for s in range(3)},
        ),
        ("front", Objectives(("instability", "val_error"), (), "plain"), {"plain": 0.14, "l1": 0.13}),
    ):
        tracker.prepare(name)
        parent = tracker.open_parent(name, f"{name}-12345678")
        parent.set_tags(objectives.tags())
        for label, instability in runs.items():
            run = tracker.open_child(name, f"{name}-12345678-{label}", parent.handle)
            seed = int(label.partition(".seed")[2] or 0)
            run.set_tags({"ipcnn.seed": str(seed)})
            run.log_params({"template.shape": "none"})
            combined = instability / FOUND["plain"][seed]
            error = 0.2 if label.startswith("l1") else 0.1
            run.log_metrics([{"epoch": 1.0, "instability": instability, "val_error": error, "combined": combined}])
            run.set_state("succeeded")
    return home


@pytest.fixture
def home(recorded, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("IPCNN_HOME", str(recorded))
    monkeypatch.setattr("ipcnn_ray.cli.output.stdout.width", 200)
    return recorded


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_settings_have_their_spread_below_their_runs(home):
    text = run("status", "seeds")
    lines = [line.split() for line in text.splitlines()]
    # l1 less plain: -.01 -.02 -.01, all on one side: 2 of the 8 choices of signs.
    # Mean -.01333, sd .00577, t .975 for 2 degrees of freedom 4.3027: -.01333 +- 4.3027 * .00577 / sqrt 3.
    row = next(line for line in lines if line[:3] == ["l1", "-", "plain"] and line[3].startswith("-0.0133"))
    assert row[3:11] == ["-0.0133", "±", "0.0058", "-0.0277", "to", "+0.0010", "0.25", "0.25"]
    assert "these seeds cannot tell a difference from luck" in " ".join(text.split())


def test_json_has_runs_and_settings(home):
    runs = json.loads(run("status", "seeds", "--json"))
    assert [(one["run"].rpartition("-")[2], one["seed"]) for one in runs[:2]] == [
        ("plain.seed0", 0),
        ("plain.seed1", 1),
    ]
    group = runs[-1]["group"]
    assert (group["group"], group["seeds"], group["wins"]) == ("l1", [0, 1, 2], True)
    assert group["metrics"]["instability"]["mean"] == pytest.approx(0.41 / 3)
    instability = next(one for one in group["comparisons"] if one["measure"] == "instability")
    assert (instability["p_exact"], instability["smallest_holm_exact"]) == (0.25, 0.25)
    assert instability["verdict"] == "too few seeds"


def test_the_front_of_a_pareto_search(home):
    told = "Pareto front over instability, val_error (no run is better in one and as good in the rest): l1, plain."
    assert told in run("status", "front")
    (row,) = [line for line in run("status").splitlines() if line.startswith("front-12345678")]
    assert "plain, plain" in row  # the templates of both


def test_a_plan_lists_the_seeds(home):
    text = run("plan", str(SPECS / "templates_repeated.yaml"))
    assert "seeds           0 to 7, every run with each of them" in text
    assert "40 runs" in text
