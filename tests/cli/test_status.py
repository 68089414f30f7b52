"""`ipcnn status` on a small record, also of runs that are repeated over seeds and of a Pareto search."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes.commands import run_command

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.report.experiment_record import template_words
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker

pytestmark = pytest.mark.usefixtures("wide")
PLAIN = {"template.shape": "none"}
UNIFORM = {"template.shape": "uniform", "template.norm": "l2", "template.beta": "2.0", "template.gamma": "0.5"}
NUMBERS = {"epoch": 5.0, "instability": 0.1, "val_error": 0.0625, "combined": 1.0}
SEEDS = {"plain": (0.14, 0.15, 0.16), "l1": (0.13, 0.13, 0.15)}


def repeated(label: str, instability: float) -> tuple[str, dict[str, str], dict[str, float], str, str]:
    """A succeeded run; l1 has the larger error."""
    seed, error = int(label.partition(".seed")[2] or 0), 0.2 if label.startswith("l1") else 0.1
    combined = instability / SEEDS["plain"][seed]
    metrics = {"epoch": 1.0, "instability": instability, "val_error": error, "combined": combined}
    return label, PLAIN, metrics, "succeeded", ""


EXPERIMENTS = {
    "sweep": (
        None,
        [
            ("control", PLAIN, NUMBERS, "succeeded", ""),
            ("r1", UNIFORM, {**NUMBERS, "instability": 0.075, "combined": 0.875}, "succeeded", ""),
            ("r2", {}, {}, "failed", "TrainingError: the loss is not finite"),
        ],
    ),
    "single": (None, []),
    "seeds": (
        Objectives(("combined",), (), "plain"),
        [repeated(f"{name}.seed{seed}", values[seed]) for name, values in SEEDS.items() for seed in range(3)],
    ),
    "blind": (
        Objectives(("val_error",), (), "plain"),
        [(label, PLAIN, {"epoch": 1.0, "val_error": 0.125}, "succeeded", "") for label in ("plain", "l1")],
    ),
    "front": (Objectives(("instability", "val_error"), (), "plain"), [repeated("plain", 0.14), repeated("l1", 0.13)]),
}
"""Name -> objectives, runs."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A home with an experiment of which a run failed, one without runs, one with three seeds, a Pareto search."""
    home = tmp_path_factory.mktemp("home")
    tracker = MlflowTracker(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"))
    for name, (objectives, runs) in EXPERIMENTS.items():
        identity = f"{name}-{'87654321' if name == 'single' else '12345678'}"
        tracker.prepare(name)
        parent = tracker.open_parent(name, identity)
        for label, params, metrics, state, why in runs:
            run = tracker.open_child(name, f"{identity}-{label}", parent.handle)
            run.log_params(params)
            run.log_metrics([metrics] if metrics else [])
            run.set_tags({"ipcnn.seed": label.partition(".seed")[2] or "0"})
            run.set_state(state, why)
        if objectives is not None:
            parent.set_tags(objectives.tags())
        if name == "sweep":
            parent.set_state("failed", "1 of 3 runs failed")
    return home


@pytest.fixture
def home(home, recorded, monkeypatch) -> Path:
    monkeypatch.setenv("IPCNN_HOME", str(recorded))
    return recorded


def run(*words: str) -> str:
    return run_command("status", *words).stdout


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_experiments(home):
    header, *rows = [cells(line) for line in run().splitlines()]
    assert header == ["experiment", "state", "runs", "best", "combined", "why"]
    assert [row[0].partition("-")[0] for row in rows] == ["front", "blind", "seeds", "single", "sweep"]
    assert "plain, plain" in rows[0]  # the templates of both on the front
    assert rows[3:] == [
        ["single-87654321", "queued", "1 queued", "-", "-"],
        ["sweep-12345678", "failed", "2 succeeded, 1 failed", "uniform L2 β2 γ0.5", "0.875", "1 of 3 runs failed"],
    ]


@pytest.mark.parametrize("wanted", ["sweep", "sweep-12345678"])
def test_runs_of_an_experiment(home, wanted):
    header, *lines = run(wanted).splitlines()
    assert cells(header) == ["run", "template", "state", "epoch", "instability", "error", "combined"]
    assert [cells(line) for line in lines[:3]] == [
        ["control", "plain", "succeeded", "5", "0.1000", "6.25%", "1.000"],
        ["r1", "uniform L2 β2 γ0.5", "succeeded", "5", "0.0750", "6.25%", "0.875"],
        ["r2", "-", "failed", "-", "-", "-", "-"],
    ]
    assert lines[3:] == ["r2 failed: TrainingError: the loss is not finite"]


def test_one_run(home):
    assert len(run("sweep-12345678-r1").splitlines()) == 2


def test_json(home):
    *_, single, sweep = json.loads(run("--json"))
    assert single["experiment"] == "single-87654321"
    assert (sweep["state"], sweep["runs"]) == ("failed", {"succeeded": 2, "failed": 1})
    runs = json.loads(run("sweep", "--json"))
    assert [one["run"] for one in runs] == [f"sweep-12345678-{label}" for label in ("control", "r1", "r2")]
    assert runs[1]["metrics"] == {"epoch": 5.0, "instability": 0.075, "val_error": 0.0625, "combined": 0.875}
    assert runs[2]["why"] == "TrainingError: the loss is not finite"


@pytest.mark.parametrize(
    ("wanted", "advice"),
    [
        ("sweeep", "Did you mean 'sweep'?"),
        ("sweep-12345679", "Did you mean 'sweep-12345678'?"),
        ("zzz", r"Recorded: front, blind, seeds, single, sweep\."),
    ],
)
def test_an_experiment_that_is_not_recorded(home, wanted, advice):
    with pytest.raises(IpcnnError, match=rf"no experiment and no run is recorded as '{wanted}'\n{advice}"):
        run(wanted)


def test_nothing_is_recorded_yet(home, tmp_path, monkeypatch):
    empty = tmp_path / "nothing"
    monkeypatch.setenv("IPCNN_HOME", str(empty))
    assert run() == f"nothing is recorded yet in sqlite:///{empty}/mlflow.db\n"
    assert json.loads(run("--json")) == []
    with pytest.raises(IpcnnError, match="Nothing is recorded yet"):
        run("sweep")
    assert not empty.exists()


def test_templates_in_words():
    gradient = {"template.shape": "gradient", "template.norm": "l1", "template.beta": "4.0", "template.tau": "0.01"}
    assert template_words({"train.epochs": "3", **gradient}) == "L1 β4 τ0.01"
    narrowing = {"template.narrowing.scale": "8.0", "template.narrowing.epochs": "6", "template.mask": "none"}
    assert template_words(gradient | narrowing) == "L1 β4 τ0.01, no mask, narrowing from x8 in 6 epochs"
    assert template_words({"template.shape": "star", "template.points": "5"}) == "shape star points 5"


def test_settings_have_their_spread_below_their_runs(home):
    text = run("seeds")
    lines = [line.split() for line in text.splitlines()]
    # l1 less plain: -.01 -.02 -.01, all on one side: 2 of the 8 choices of signs.
    # Mean -.01333, sd .00577, t .975 for 2 degrees of freedom 4.3027: -.01333 +- 4.3027 * .00577 / sqrt 3.
    row = next(line for line in lines if line[:3] == ["l1", "-", "plain"] and line[3].startswith("-0.0133"))
    assert row[3:11] == ["-0.0133", "±", "0.0058", "-0.0277", "to", "+0.0010", "0.25", "0.25"]
    told = " ".join(text.split())
    assert "these seeds cannot tell a difference from luck" in told
    # As a record of an earlier version it has no metrics of landmarks. T is 4 for 2 degrees of freedom: p .0572.
    assert "Verdict l1 (plain): no verdict: its runs, or those of the control, did not record" in told
    assert "Instability 0.1367 against 0.1500 of plain: -9 % (95 % CI -18 to +1 %, p 0.0572: not decided" in told


def test_json_has_settings_with_their_comparisons(home):
    runs = json.loads(run("seeds", "--json"))
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
    assert group["verdict"]["outcome"] == "not measured" and runs[0]["group"]["verdict"] is None


def test_runs_without_landmarks_have_no_instability(home):
    out = run("blind")
    assert "12.50%" in out and "instability" not in out
    assert "The data have no landmarks, so nothing tells whether filters follow parts" in " ".join(out.split())


def test_the_front_of_a_pareto_search(home):
    told = "Pareto front over instability, val_error (no run is better in one and as good in the rest): l1, plain."
    assert told in run("front")
