"""`ipcnn init`: what it writes is a spec, and says everything that the models say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ipcnn_ray.cli.specs import init
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import load, loads
from ipcnn_ray.spec.runs import experiment_id, grid_runs, named_runs
from ipcnn_ray.spec.starter import starter
from ipcnn_ray.spec.training import Compute, Train

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(init)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def uncommented(text: str) -> str:
    """With every default set: `# field: value` without its `# `."""
    return re.sub(r"^(\s*)# (?=\s*[a-z_-])", r"\1", text.partition("\n\n")[2], flags=re.MULTILINE)


def test_it_validates_and_has_every_section(tmp_path):
    file = tmp_path / "My first sweep.yaml"
    run(str(file))
    spec = load(file).spec
    assert spec.name == "my_first_sweep"
    shown = set(yaml.safe_load(file.read_text()))
    assert shown == set(ExperimentSpec.model_fields) - {"recipe"}, (
        "a recipe is there as a comment: by default there is none"
    )
    assert "# recipe: null" in file.read_text()
    assert [one.label for one in named_runs(spec)] == ["plain"]
    assert len(grid_runs(spec)) == 2


def test_every_default_that_it_shows_is_the_default():
    text = starter("first", "first.yaml")
    everything = loads(uncommented(text), "first.yaml").spec
    assert "# momentum: 0.9" in text
    assert experiment_id(everything) == experiment_id(loads(text, "first.yaml").spec)
    assert everything.compute == Compute()


def test_it_names_every_field_of_its_sections_and_what_it_says():
    text = starter("first", "first.yaml")
    for section in (Train, Compute):
        for name, field in section.model_fields.items():
            assert re.search(rf"^  (# )?{name}:", text, re.MULTILINE), name
            assert " ".join((field.description or "?").split())[:40] in text


def test_without_the_search_it_is_a_single_run():
    raw = yaml.safe_load(starter("first", "first.yaml"))
    del raw["search"]
    assert ExperimentSpec.model_validate(raw).search is None


def test_nothing_is_overwritten(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text("mine")
    for given in (file, tmp_path):
        with pytest.raises(IpcnnError, match=r"experiment\.yaml  is there already\nName another file"):
            run(str(given))
    assert file.read_text() == "mine"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(IpcnnError, match="cannot be written: No such file or directory"):
        run(str(tmp_path / "nowhere" / "a.yaml"))


def test_its_default_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run().startswith("wrote experiment.yaml")
    assert Path("experiment.yaml").is_file()
