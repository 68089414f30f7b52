"""A package of somebody else adds a template shape, a dataset and a metric without touching this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.slow
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
    for folder in ("squares/images", "squares/square", "voc/neg"):
        (root / folder).mkdir(parents=True)
    lines = ["file,xmin,ymin,xmax,ymax,corner_row,corner_col,middle_row,middle_col"]
    for number in range(20):
        image = rng.integers(0, 80, (90, 110, 3), np.uint8)
        top, left = rng.integers(20, 40, 2)
        image[top : top + 20, left : left + 20] = 220
        Image.fromarray(image).save(root / "squares/images" / f"{number:02}.png")
        places = [(top - 10) / 70, (left - 10) / 70, top / 70, left / 70]
        lines.append(",".join([f"{number:02}.png", "11", "11", "80", "80", *(f"{place:.3f}" for place in places)]))
    (root / "squares/square/table.csv").write_text("\n".join(lines) + "\n")
    for number in range(1, 11):
        Image.fromarray(rng.integers(0, 80, (90, 110, 3), np.uint8)).save(root / "voc/neg" / f"{number:05}.JPEG")


COMMANDS = """
import contextlib, io, json, sys
from ipcnn_ray.cli.app import main

results = []
if sys.argv[1:]:  # the Ray of the tests, whose workers find the package by their path
    import logging, os, ray

    path = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    ray.init(runtime_env=path, logging_level=logging.ERROR, log_to_driver=False)
for words in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code or 0
    results.append((code, out.getvalue(), " ".join(err.getvalue().split())))
json.dump(results, sys.stdout)
"""


class Place:
    """A home with data, in which commands run in a process with the package installed."""

    def __init__(self, folder: Path) -> None:
        photographs(folder / "data")
        self.folder = folder
        (folder / "squares.yaml").write_text(yaml.safe_dump(SPEC))
        path = os.pathsep.join([str(ROOT), str(PACKAGE)])
        home = {
            "IPCNN_HOME": str(folder / "home"),
            "IPCNN_DATA": str(folder / "data"),
            "PYTHONPATH": path,
            "COLUMNS": "200",
        }
        self.env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | home

    def ipcnn(self, *commands: str, on_ray: bool = False) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of commands, which one process runs. on_ray: on the Ray of the tests."""
        words, flags = json.dumps([command.split(" ") for command in commands]), ["on_ray"] * on_ray
        ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        done = subprocess.run([sys.executable, "-c", COMMANDS, *flags], input=words, capture_output=True, text=True,
                              env={**self.env, **ray}, cwd=self.folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [tuple(result) for result in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("squares"))


WRONG = {
    "template.base=-1": "template.base = -1",
    "template.bass=1": "Did you mean 'base'?",
    "template.shape=pyramide": "Did you mean 'pyramid'?",
    "data.kind=square": "Did you mean 'squares'?",
    "data.landmarks=[centre]": "must be one of corner, middle",
    "data.min_size=3": "Did you mean 'min_side'?",
    "data.category=frame": "data.landmarks = ['corner', 'middle'] a frame has no middle; take [corner]",
    'template={"shape":"tailored","landmark":"corner","fitted_to":"part_masks"}': (
        "squares has no part masks; use another data.kind, or take another template.fitted_to"
    ),
    "eval.measures=[sparsety]": "Did you mean 'sparsity'?",
}


def test_commands_that_train_nothing(place: Place) -> None:
    commands = ("plan squares.yaml --json", "schema", "data list --json", "data check squares.yaml --json")
    wrong = ("data fetch squares", "data check squares.yaml --set data.category=[square,frame]")
    validations = [f"validate squares.yaml --set {setting}" for setting in WRONG]
    results = place.ipcnn(*commands, "data prepare squares.yaml", *wrong, *validations)
    assert [code for code, _, _ in results] == [0] * (len(commands) + 1) + [2] * (len(wrong) + len(WRONG))
    plan, schema, listed, checked = (json.loads(out) for _, out, _ in results[: len(commands)])
    prepared, fetched, incomplete = results[len(commands) : -len(WRONG)]
    assert "30 crops of 64 x 64 pixels" in prepared[1]
    assert "there is no such dataset to fetch" in fetched[2]
    assert "squares/frame/table.csv no such file Fetch the file again." in incomplete[2]
    # 30 positives, both mirror images of squares 1 to 15; squares 6 and 15 and one of 10 negatives are not in training.
    assert plan["runs"][0]["items"] == 26 + 9
    assert [run["template"] for run in plan["runs"]] == ["plain", "pyramid base 0.25 power 1"]
    assert {"Squares", "PyramidTemplate"} <= set(schema["$defs"])
    assert '"sparsity"' in json.dumps(schema)
    assert schema["$defs"]["Squares"]["properties"]["min_side"]["description"].startswith("Root of the smallest area")
    assert "squares" in schema["properties"]["data"]["discriminator"]["mapping"]
    title = "Squares: bright squares on noise"
    assert {"kind": "squares", "there": True, "title": title, "missing": []} in listed["datasets"]
    assert checked["tags"] == {"data.kind": "squares", "data.drawn": "false"}
    assert checked["objects_of"] == {"square": 20} and checked["landmarks"]["corner"]["seen"] == 20
    for (_, _, error), (setting, message) in zip(results[-len(WRONG) :], WRONG.items(), strict=True):
        assert message in error, setting


def test_training_with_two_workers_to_the_report(place: Place, empty_record: Path, ray_here: None) -> None:
    """One run: each start of two workers takes half a minute. The plan above has the control, too."""
    (place.folder / "home").mkdir(exist_ok=True)
    shutil.copy(empty_record, place.folder / "home")
    alone = '--set search.runs=[{"name":"pyramid"}] --set search.objective.control=pyramid'
    submitted, reported = place.ipcnn(
        f"submit squares.yaml {alone} --json", "report squares --no-store --out page.html", on_ray=True
    )
    assert submitted[0] == reported[0] == 0, (submitted[2], reported[2])
    outcome = json.loads(submitted[1])
    (run,) = outcome["runs"]
    assert (run["group"], run["state"], run["template"]) == ("pyramid", "succeeded", "pyramid base 0.25 power 1")
    assert 0 < run["metrics"]["sparsity"] < 1
    assert run["metrics"]["sparsity_conv5"] == run["metrics"]["sparsity"]
    assert outcome["best"] == "pyramid"
    page = (place.folder / "page.md").read_text()
    assert "pyramid base 0.25 power 1" in page
    assert "cells of the filter's map that are zero" in page
    assert "other" not in {line.strip("| ").partition(" |")[0] for line in page.splitlines()}
