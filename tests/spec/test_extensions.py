"""Metrics in a spec: their default, and those of other packages."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fakes.metrics import install

from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import resolved_yaml
from ipcnn_ray.spec.search import Objectives, lower_is_better, metric_info, ranked_names

TEXT = """\
name: t
data: {kind: drawn_animals, objects: 40}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 4, batch_size: 32}
eval: {measures: [purity, ablation_own], ablation_filters: 8}
"""

SEARCH = TEXT.replace("ablation_own], ablation_filters: 8", "sparsity]") + """\
search:
  kind: named
  objective: {kind: pareto, measures: [sparsity, purity]}
  constraints: [{measure: sparsity, at_least: 0.2}]
  runs: [{name: plain, set: {template.shape: none}}]
"""  # fmt: skip


def test_every_metric_has_a_unit_a_direction_and_a_description():
    assert len(METRICS.built_in) == 25 and set(EVERY_RUN) < set(METRICS.built_in)
    assert ranked_names()[:3] == ("combined", "instability", "val_error")
    for name in ranked_names():
        info = metric_info(name)
        assert info.unit and (info.better == "lower") == lower_is_better(name)
        assert 20 < len(info.description) < 120 and "\n" not in info.description


def test_none_is_the_default_and_changes_no_digest():
    bare = TEXT.replace("{measures: [purity, ablation_own], ablation_filters: 8}", "{}")
    spec = loads(bare, "s.yaml").spec
    assert spec.eval.measures == () and spec.eval.ablation_filters is None
    assert spec.digest() == "81782ac5"  # of the version before there were measures
    assert loads(bare, "s.yaml", ["eval.measures=[]"]).spec.digest() == spec.digest()
    assert loads(TEXT, "s.yaml").spec.digest() != spec.digest()
    assert loads(resolved_yaml(spec), "s.yaml").spec.digest() == spec.digest()


def test_a_metric_of_another_package_is_one_like_ours(monkeypatch):
    with pytest.raises(SpecError, match=r"'sparsity'\n *must be one of instability, val_error, .*, part_in.*, purity"):
        loads(SEARCH, "s.yaml")
    install(monkeypatch, sparsity="Sparsity")
    spec = loads(SEARCH, "s.yaml").spec
    assert spec.eval.measures == ("purity", "sparsity")
    objectives = Objectives.of(spec.search)
    assert objectives.costs({"sparsity": 0.25, "purity": 0.5}) == [-0.25, -0.5]
    assert Objectives.from_tags(objectives.tags()) == objectives
    assert metric_info("sparsity").unit == "share of cells" and ranked_names()[-1] == "sparsity"
    options = ExperimentSpec.model_json_schema()["$defs"]["Eval"]["properties"]["measures"]["items"]["enum"]
    assert options == [name for name in METRICS.names() if name not in EVERY_RUN] and "sparsity" in options
    with pytest.raises(SpecError, match=r"'sparsty'\n.*Did you mean 'sparsity'"):
        loads(SEARCH.replace("[purity, sparsity]", "[sparsty]"), "s.yaml")


def test_a_record_is_read_without_the_package_of_its_metric():
    tags = {"ipcnn.goals": "instability", "ipcnn.constraints": "sparsity >= 0.2", "ipcnn.control": "plain"}
    assert Objectives.from_tags(tags).tags() == tags


@pytest.mark.parametrize(
    ("name", "attribute", "text"),
    [
        ("sparsity", "Gone", "cannot be imported: AttributeError: .*has no attribute 'Gone'"),
        ("sparsity", "not_a_metric", "is <function not_a_metric at .*It must be a subclass of ipcnn_ray.core.metrics"),
        ("scarcity", "Sparsity", "is a class with the name 'sparsity'.*The two names must be the same"),
        ("val_loss", "Sparsity", "has the name of a number that every run records; rename it"),
        ("following_head", "Sparsity", "has the name of a number that every run records; rename it"),
    ],
)
def test_a_metric_that_is_wrong_is_an_error_of_the_spec(monkeypatch, name, attribute, text):
    install(monkeypatch, **{name: attribute})
    with pytest.raises(SpecError, match=f"(?s)eval.measures.1 = '{name}'.*{text}"):
        loads(TEXT.replace("ablation_own", name).replace(", ablation_filters: 8", ""), "s.yaml")


def test_checking_a_spec_does_not_import_torch():
    text = SEARCH.replace("sparsity", "stability")
    code = f"import sys\nfrom ipcnn_ray.spec.loader import loads\nloads({text!r}, 's')\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
