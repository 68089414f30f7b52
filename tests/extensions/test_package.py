"""A package of somebody else adds a template shape, a dataset and a metric without touching this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

PACKAGE = Path(__file__).with_name("package")
ROOT = Path(__file__).resolve().parents[2]
SPEC: dict[str, Any] = {
    "name": "squares",
    "data": {"kind": "squares"},
    "model": {"network": "compact"},
    "template": {"shape": "pyramid", "base": 0.25},
    "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
    "eval": {"measures": ["sparsity", "purity"]},
    "compute": {"workers": 2},
    "search": {
        "kind": "named",
        "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}, {"name": "pyramid"}],
        "objective": {"kind": "measure", "measure": "sparsity", "control": "plain"},
        "constraints": [{"measure": "sparsity", "at_least": 0.0}],
    },
}


def photographs(root: Path) -> None:
    """Twenty squares with their table, and ten negatives."""
    rng = np.random.default_rng(0)
    for folder in ("squares/images", "voc/neg"):
        (root / folder).mkdir(parents=True)
    lines = ["file,xmin,ymin,xmax,ymax,corner_row,corner_col,middle_row,middle_col"]
    for number in range(20):
        image = rng.integers(0, 80, (90, 110, 3), np.uint8)
        top, left = rng.integers(20, 40, 2)
        image[top : top + 20, left : left + 20] = 220
        Image.fromarray(image).save(root / "squares/images" / f"{number:02}.png")
        places = [(top - 10) / 70, (left - 10) / 70, top / 70, left / 70]
        lines.append(",".join([f"{number:02}.png", "11", "11", "80", "80", *(f"{place:.3f}" for place in places)]))
    (root / "squares/squares.csv").write_text("\n".join(lines) + "\n")
    for number in range(1, 11):
        Image.fromarray(rng.integers(0, 80, (90, 110, 3), np.uint8)).save(root / "voc/neg" / f"{number:05}.JPEG")


class Place:
    """A home with data, in which commands run with the package installed."""

    def __init__(self, folder: Path) -> None:
        photographs(folder / "data")
        self.folder = folder
        self.spec = folder / "squares.yaml"
        self.spec.write_text(yaml.safe_dump(SPEC))
        path = os.pathsep.join([str(ROOT), str(PACKAGE)])
        home = {"IPCNN_HOME": str(folder / "home"), "IPCNN_DATA": str(folder / "data"), "PYTHONPATH": path}
        self.env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | home

    def ipcnn(self, *arguments: str, code: int = 0) -> str:
        """What a command prints; its exit code is checked."""
        command = [sys.executable, "-m", "ipcnn_ray.cli.app", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.env, cwd=self.folder, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("squares"))


def test_commands_that_train_nothing(place: Place) -> None:
    plan = json.loads(place.ipcnn("plan", "squares.yaml", "--json"))
    assert [run["template"] for run in plan["runs"]] == ["plain", "pyramid base 0.25"]
    schema = json.loads(place.ipcnn("schema"))
    assert {"Squares", "PyramidTemplate"} <= set(schema["$defs"])
    assert '"sparsity"' in json.dumps(schema)
    listed = {one["kind"]: one["there"] for one in json.loads(place.ipcnn("data", "list", "--json"))["datasets"]}
    assert listed["squares"] is True
    checked = json.loads(place.ipcnn("data", "check", "squares.yaml", "--json"))
    assert checked["objects_of"] == {"square": 20}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("template.base=-1", "template.base = -1"),
        ("template.bass=1", "Did you mean 'base'?"),
        ("template.shape=pyramide", "Did you mean 'pyramid'?"),
        ("data.kind=square", "Did you mean 'squares'?"),
        ("data.landmarks=[centre]", "must be one of corner, middle"),
        ("eval.measures=[sparsety]", "Did you mean 'sparsity'?"),
    ],
)
def test_wrong_values_are_told_as_ours_are(place: Place, setting: str, message: str) -> None:
    assert message in place.ipcnn("validate", "squares.yaml", "--set", setting, code=2)


@pytest.mark.slow
def test_training_with_two_workers_to_the_report(place: Place) -> None:
    outcome = json.loads(place.ipcnn("submit", "squares.yaml", "--json"))
    runs = {run["group"]: run for run in outcome["runs"]}
    assert {run["state"] for run in runs.values()} == {"succeeded"}
    assert runs["pyramid"]["template"] == "pyramid base 0.25"
    for run in runs.values():
        assert 0 < run["metrics"]["sparsity"] < 1
        assert run["metrics"]["sparsity_conv5"] == run["metrics"]["sparsity"]
    best = max(runs, key=lambda name: runs[name]["metrics"]["sparsity"])
    assert outcome["best"] == best
    place.ipcnn("report", "squares", "--no-store", "--out", "page.html")
    page = (place.folder / "page.md").read_text()
    assert "pyramid base 0.25" in page
    assert "cells of the filter's map that are zero" in page
    assert "other" not in {line.strip("| ").partition(" |")[0] for line in page.splitlines()}
