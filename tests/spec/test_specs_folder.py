"""Every spec of the project is right, whatever it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import load, loads
from ipcnn_ray.spec.runs import experiment_id, grid_runs, named_runs, resolved_yaml

SPECS = Path(__file__).resolve().parents[2] / "specs"
FILES = sorted(SPECS.rglob("*.yaml"))


def test_there_are_specs():
    assert {"uniform_sweep.yaml", "voc/alexnet_cow.yaml"} <= {path.relative_to(SPECS).as_posix() for path in FILES}


@pytest.fixture(scope="module")
def schema() -> Any:
    """The validator of the JSON Schema."""
    jsonschema = pytest.importorskip("jsonschema")
    content = ExperimentSpec.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SPECS).as_posix())
def test_it_loads_and_its_head_has_its_own_command(path):
    spec, text = load(path).spec, path.read_text()
    again = loads(resolved_yaml(spec), "resolved.yaml").spec
    assert experiment_id(again) == experiment_id(spec)
    assert named_runs(spec)
    assert [run.label for run in grid_runs(again)] == [run.label for run in grid_runs(spec)]
    assert f"ipcnn submit specs/{path.relative_to(SPECS).as_posix()}" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SPECS).as_posix())
def test_the_schema_admits_it(path, schema):
    schema.validate(yaml.safe_load(path.read_text()))
    schema.validate(yaml.safe_load(resolved_yaml(load(path).spec)))


def test_the_schema_knows_what_a_recipe_gives_and_refuses_what_is_wrong(schema):
    raw = yaml.safe_load((SPECS / "uniform_sweep.yaml").read_text())
    without = {name: section for name, section in raw.items() if name not in ("train", "template")}
    schema.validate(without | {"recipe": "released"})
    schema.validate(without | {"recipe": "modern", "template": raw["template"]})
    no_epochs, no_template = raw | {"train": {"batch_size": 8}}, without | {"recipe": "modern"}
    for wrong in (without, no_template, no_epochs, without | {"recipe": None}):
        assert any("required property" in error.message for error in schema.iter_errors(wrong))
    for section, field, value in [("train", "epochs", -1), ("train", "epoch", 3), ("template", "shape", "round")]:
        assert not schema.is_valid(raw | {section: raw[section] | {field: value}})
    description = schema.schema["$defs"]["Train"]["properties"]["epochs"]["description"]
    assert description.startswith("Passes over the training items.")


def test_every_field_says_what_it_is():
    definitions = ExperimentSpec.model_json_schema()
    sections = {"the spec": definitions, **definitions["$defs"]}
    silent = [
        f"{section}.{field}"
        for section, schema in sections.items()
        for field, content in schema["properties"].items()
        if not content.get("description") and "$ref" not in content
    ]
    assert silent == []
