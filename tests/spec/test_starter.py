"""The commented spec of `ipcnn init`: valid, and complete in fields, defaults and descriptions."""

from __future__ import annotations

import re

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


def test_it_names_every_field_of_its_sections_and_what_it_says():
    for section in (Train, Compute):
        for name, field in section.model_fields.items():
            assert re.search(rf"^  (# )?{name}:", TEXT, re.MULTILINE), name
            assert " ".join((field.description or "?").split())[:40] in TEXT
