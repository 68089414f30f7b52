"""A template shape of another package: the same checks, messages, digest, schema and network as our own."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.models.build import assemble, template_banks
from ipcnn_ray.spec.extensions import TEMPLATES
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.section import RegisteredKinds
from ipcnn_ray.spec.template import PartTemplate
from ipcnn_ray.utils import registry
from ipcnn_ray.utils.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tests/extensions/package"
SCRIPT = """
import json, sys
import ipcnn_squares.pyramid  # before anything of ours
from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import plan, resolved_yaml, run_for
from ipcnn_ray.spec.search import points
from ipcnn_ray.spec.starter import starter

TEXT = '''name: t
data: {kind: drawn_animals}
model: {network: compact}
template: {shape: pyramid}
train: {epochs: 4}
'''
SEARCH = '''search:
  kind: space
  trials: 2
  runs: [{name: plain, set: {template.shape: none}}]
  space: {template.shape: {choice: [pyramid, ring]}, template.power: {choice: [1, 3], when: {template.shape: pyramid}}}
'''

def issue(*overrides):
    try:
        loads(TEXT, "s.yaml", overrides)
    except SpecError as error:
        return str(error)

spec = loads(TEXT, "s.yaml").spec
schema = ExperimentSpec.model_json_schema()
search = loads(TEXT + SEARCH, "s.yaml").spec
out = {
    "typo": issue("template.shape=pyramids"),
    "elsewhere": issue("template={shape: gradient, power: 3}"),
    "own": issue("template.power=2"),
    "range": issue("template.base=0"),
    "learned": issue("loss.filter.learn_beta=true"),
    "digests": [loads(TEXT, "s.yaml", o).spec.digest() for o in ([], ["template.power=1"], ["template.power=3"])],
    "resolved": loads(resolved_yaml(spec), "r.yaml").spec == spec,
    "schema": schema["$defs"]["PyramidTemplate"]["properties"]["base"]["description"],
    "mapping": "pyramid" in json.dumps(schema["properties"]["template"]),
    "starter": "pyramid (A pyramid seen from above)" in " ".join(starter("a", "a.yaml").replace("##", "").split()),
    "plan": [run.template for run in plan(spec).runs],
    "corners": [run_for(search, corner).spec.template.label() for corner in points(search.search)],
    "description": spec.template.describe(),
    "torch": "torch" in sys.modules,
}
from ipcnn_ray.report.experiment_record import template_words

out["recorded"] = template_words({"template.shape": "pyramid", "template.power": "3", "template.base": "0.25"})
print(json.dumps(out))
"""


def run(script: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with the package installed; `paths` go before it."""
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT, PACKAGE))), "PATH": "", "HOME": "/nowhere"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


def test_a_shape_of_another_package_is_one_of_ours():
    done = run(SCRIPT)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    shapes = "gradient, uniform, released, gaussian, ellipse, ring, mask, tailored, none, pyramid"
    assert out["typo"].endswith(f"must be one of {shapes}. Did you mean 'pyramid'?")
    assert "template with shape: gradient has no such field; it belongs to shape: pyramid" in out["elsewhere"]
    assert out["own"] == "--set template.power=2  template.power = 2\n       must be 1, or at least 3"
    assert out["range"] == "--set template.base=0  template.base = 0\n       must be greater than 0"
    assert "the exact form learns no slope of template.shape pyramid; drop this" in out["learned"]
    assert out["digests"][0] == out["digests"][1] != out["digests"][2] and out["resolved"]
    assert out["schema"].startswith("Half the side of its base") and out["mapping"] and out["starter"]
    assert out["plan"] == ["pyramid base 0.5 power 1"] == [out["corners"][0]]
    assert out["corners"][1:] == ["pyramid base 0.5 power 3", "ring radius 0.25 width 0.25"]
    assert out["description"] == "pyramid template, base 0.5, power 1, tau 0.5 / n^2"
    assert not out["torch"], "specs are checked without torch"
    assert out["recorded"] == "pyramid base 0.25 power 3"


def test_a_network_with_a_shape_of_another_package(monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE)
    template = importlib.import_module("ipcnn_squares.pyramid").PyramidTemplate(shape="pyramid")
    model = Model(network="compact", interpretable_layers=("conv4", "conv5"))
    unit_Pnn = assemble(model, template).mask("conv5").unit_Pnn
    assert unit_Pnn[8 * 16 + 8, 8].tolist() == [1 - abs(col - 8) / 8 for col in range(16)]
    assert list(template_banks(model, template)["conv4"].shape) == [257, 16, 16]


def test_a_package_that_does_not_import_is_an_error_in_words(tmp_path):
    shutil.copytree(PACKAGE / "ipcnn_squares", tmp_path / "ipcnn_squares")
    (tmp_path / "ipcnn_squares/pyramid.py").write_text("import nothing_of_the_kind\n")
    line = run("import ipcnn_ray.spec.experiment", tmp_path).stderr.strip().splitlines()[-2]
    entry = "ipcnn_ray.errors.IpcnnError: the entry point ipcnn.templates 'pyramid' of ipcnn-squares 1.0 cannot be"
    assert line.startswith(entry)


class Moon(PartTemplate):
    """Another shape."""

    shape: Literal["moon"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("moon", f"{__name__}:Moon", ""),
        ("ring", f"{__name__}:Moon", "'ring' of .*:Moon is already taken by ipcnn itself"),
        ("moon", "nowhere:Moon", "'moon' of nowhere:Moon cannot be imported: ModuleNotFoundError: No module named"),
        ("moon", f"{__name__}:Sun", "'moon' of .*:Sun cannot be imported: AttributeError: .* no attribute 'Sun'"),
        ("sun", f"{__name__}:Moon", "'sun' of .* is Moon, whose field shape is .*'moon'.*\nDeclare shape: Literal"),
        (
            "moon",
            "fractions:Fraction",
            r"is <class .fractions.Fraction.>\nIt must be a subclass of .*PartTemplate",
        ),
    ],
)
def test_an_entry_point_is_a_section_or_an_error_in_words(monkeypatch, name, value, message):
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint(name, value, group)])
    kinds = RegisteredKinds("shape", Registry("ipcnn.templates", TEMPLATES.built_in), PartTemplate)
    if not message:
        assert kinds.sections()[name] is Moon
        return
    with pytest.raises(IpcnnError, match=message):
        kinds.sections()
