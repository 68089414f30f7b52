"""The commented spec of `ipcnn init`: valid, and complete in fields, defaults and descriptions."""

from __future__ import annotations

import re

import pytest
import yaml

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import experiment_id, grid_runs, named_runs
from ipcnn_ray.spec.starter import starter
from ipcnn_ray.spec.training import Compute, Train


def uncommented(text: str) -> str:
    """With every default set: `# field: value` without its `# `."""
    return re.sub(r"^(\s*)# (?=\s*[a-z_-])", r"\1", text.partition("\n\n")[2], flags=re.MULTILINE)


TEXT = starter("first", "first.yaml")


def test_it_validates_and_has_every_section():
    spec = loads(TEXT, "first.yaml").spec
    raw = yaml.safe_load(TEXT)
    assert set(raw) == set(ExperimentSpec.model_fields) - {"recipe"}, "by default there is no recipe"
    assert "# recipe: null" in TEXT
    assert [run.label for run in named_runs(spec)] == ["plain"]
    assert len(grid_runs(spec)) == 2
    del raw["search"]
    assert ExperimentSpec.model_validate(raw).search is None


def test_every_default_that_it_shows_is_the_default():
    everything = loads(uncommented(TEXT), "first.yaml").spec
    assert "# momentum: 0.9" in TEXT
    assert experiment_id(everything) == experiment_id(loads(TEXT, "first.yaml").spec)
    assert everything.compute == Compute()


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "folder", "path": "birds", "category": ["wren", "robin"]},
        {"kind": "table", "file": "birds.json", "category": "wren", "landmarks": ["head", "tail"]},
    ],
)
def test_of_ones_own_photographs(data):
    text = starter("mine", "mine.yaml", data)
    spec = loads(text, "mine.yaml").spec
    given = spec.data.model_dump(mode="json", include=set(data))
    assert given == data and "# mirror: true" in text
    measured = "instability" if data.get("landmarks") else "mutual_information_score"
    assert spec.search.objective.interpretability == measured
    assert experiment_id(loads(uncommented(text), "mine.yaml").spec) == experiment_id(spec)


def test_it_names_every_field_of_its_sections_and_what_it_says():
    for section in (Train, Compute):
        for name, field in section.model_fields.items():
            assert re.search(rf"^  (# )?{name}:", TEXT, re.MULTILINE), name
            assert " ".join((field.description or "?").split())[:40] in TEXT
