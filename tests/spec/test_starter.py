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


def test_it_validates_and_has_every_section():
    text = starter("first", "first.yaml")
    spec = loads(text, "first.yaml").spec
    shown = set(yaml.safe_load(text))
    assert shown == set(ExperimentSpec.model_fields) - {"recipe"}, (
        "a recipe is there as a comment: by default there is none"
    )
    assert "# recipe: null" in text
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
