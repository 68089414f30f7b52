"""A template shape of another package: the same checks, messages, digest, schema and network as our own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.extensions import TEMPLATES
from ipcnn_ray.spec.section import RegisteredKinds
from ipcnn_ray.spec.template import PartTemplate
from ipcnn_ray.utils import registry
from ipcnn_ray.utils.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
SECTION = '''
from typing import Annotated, ClassVar, Literal

from ipcnn_ray.spec.section import Count, OmitDefaultFromDigest, Positive
from ipcnn_ray.spec.template import PartTemplate


class StarTemplate(PartTemplate):
    """A star. It has points."""

    shape: Literal["star"]
    """A star."""
    reach: Positive = 0.25
    """Reach of its points, share of n."""
    points: Annotated[Count, OmitDefaultFromDigest()] = 4
    """Number of points."""

    function: ClassVar[str] = "star_function:star"

    def issues(self):
        if self.points % 2:
            yield self.issue("points", "must be even, such as 4")
'''
FUNCTION = """
import torch


def star(offsets, *, reach, points):
    on = (offsets.rows_Pnn == 0) | (offsets.cols_Pnn == 0)
    return torch.where(on & (offsets.distance("l1") <= reach * offsets.n), 1.0, -1.0)
"""
SCRIPT = """
import json, sys
import star_section  # before anything of ours
from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import plan, resolved_yaml, run_for
from ipcnn_ray.spec.search import points
from ipcnn_ray.spec.starter import starter

TEXT = '''name: t
data: {kind: drawn_animals}
model: {network: compact}
template: {shape: star}
train: {epochs: 4}
'''
SEARCH = '''search:
  kind: space
  trials: 2
  runs: [{name: plain, set: {template.shape: none}}]
  space: {template.shape: {choice: [star, ring]}, template.points: {choice: [2, 4], when: {template.shape: star}}}
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
    "typo": issue("template.shape=stars"),
    "elsewhere": issue("template={shape: gradient, points: 2}"),
    "own": issue("template.points=3"),
    "range": issue("template.reach=0"),
    "learned": issue("loss.filter.learn_beta=true"),
    "digests": [loads(TEXT, "s.yaml", o).spec.digest() for o in ([], ["template.points=4"], ["template.points=2"])],
    "resolved": loads(resolved_yaml(spec), "r.yaml").spec == spec,
    "schema": schema["$defs"]["StarTemplate"]["properties"]["reach"]["description"],
    "mapping": "star" in json.dumps(schema["properties"]["template"]),
    "starter": "star (A star)" in " ".join(starter("a", "a.yaml").replace("##", "").split()),
    "plan": [run.template for run in plan(spec).runs],
    "corners": [run_for(search, corner).spec.template.label() for corner in points(search.search)],
    "description": spec.template.describe(),
    "torch": "torch" in sys.modules,
}
from ipcnn_ray.report.experiment_record import template_words
from ipcnn_ray.models.build import assemble, template_banks

out["recorded"] = template_words({"template.shape": "star", "template.points": "2", "template.reach": "0.5"})
out["unit"] = assemble(spec.model, spec.template).mask("conv5").unit_Pnn[8 * 16 + 8, 8].tolist()
out["bank"] = list(template_banks(spec.model, spec.template)["conv4"].shape)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    (folder / "star_section.py").write_text(SECTION)
    (folder / "star_function.py").write_text(FUNCTION)
    (folder / "stars-1.0.dist-info").mkdir()
    (folder / "stars-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: stars\nVersion: 1.0\n")
    entry = "[ipcnn.templates]\nstar = star_section:StarTemplate\n"
    (folder / "stars-1.0.dist-info/entry_points.txt").write_text(entry)
    return folder


def run(package: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": f"{ROOT}:{package}", "PATH": "", "HOME": str(package)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


def test_a_shape_of_another_package_is_one_of_ours(package):
    done = run(package, SCRIPT)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    shapes = "gradient, uniform, released, gaussian, ellipse, ring, mask, tailored, none, star"
    assert out["typo"].endswith(f"must be one of {shapes}. Did you mean 'star'?")
    assert "template with shape: gradient has no such field; it belongs to shape: star" in out["elsewhere"]
    assert out["own"] == "--set template.points=3  template.points = 3\n       must be even, such as 4"
    assert out["range"] == "--set template.reach=0  template.reach = 0\n       must be greater than 0"
    assert "the exact form learns no slope of template.shape star; drop this" in out["learned"]
    assert out["digests"][0] == out["digests"][1] != out["digests"][2] and out["resolved"]
    assert out["schema"] == "Reach of its points, share of n." and out["mapping"] and out["starter"]
    assert out["plan"] == ["star reach 0.25 points 4"] == [out["corners"][1]]
    assert out["corners"] == ["star reach 0.25 points 2", "star reach 0.25 points 4", "ring radius 0.25 width 0.25"]
    assert out["description"] == "star template, reach 0.25, points 4, tau 0.5 / n^2"
    assert not out["torch"], "specs are checked without torch"
    assert out["recorded"] == "star reach 0.5 points 2"
    assert out["unit"] == [-1.0] * 4 + [1.0] * 9 + [-1.0] * 3 and out["bank"] == [257, 16, 16]


def test_a_package_that_does_not_import_is_an_error_in_words(package, tmp_path):
    (tmp_path / "star_section.py").write_text("import nothing_of_the_kind\n")
    done = run(package, f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport ipcnn_ray.spec.experiment")
    line = done.stderr.strip().splitlines()[-2]
    assert line.startswith("ipcnn_ray.errors.IpcnnError: the entry point ipcnn.templates 'star' of stars 1.0 cannot be")


class Moon(PartTemplate):
    """Another shape."""

    shape: Literal["moon"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ring", f"{__name__}:Moon", "'ring' of .*:Moon is already taken by ipcnn itself"),
        ("moon", "nowhere:Moon", "'moon' of nowhere:Moon cannot be imported: ModuleNotFoundError: No module named"),
        ("moon", f"{__name__}:Sun", "'moon' of .*:Sun cannot be imported: AttributeError: .* no attribute 'Sun'"),
        ("sun", f"{__name__}:Moon", "'sun' of .* is Moon, whose field shape is .*'moon'.*\nDeclare shape: Literal"),
        ("moon", f"{__name__}:Path", "is <class 'pathlib.Path'>\nIt must be a subclass of .*template.PartTemplate"),
    ],
)
def test_a_wrong_entry_point_is_an_error_in_words(monkeypatch, name, value, message):
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint(name, value, group)])
    kinds = RegisteredKinds("shape", Registry("ipcnn.templates", TEMPLATES.built_in), PartTemplate)
    with pytest.raises(IpcnnError, match=message):
        kinds.sections()


def test_a_right_entry_point(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("moon", f"{__name__}:Moon", group)])
    kinds = RegisteredKinds("shape", Registry("ipcnn.templates", TEMPLATES.built_in), PartTemplate)
    assert kinds.sections()["moon"] is Moon
