"""Overrides, lines of values, scalars of YAML, and any damage to a valid spec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec import loader
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import load, loads
from ipcnn_ray.spec.runs import resolved_yaml

TEXT = """\
name: t
data: {kind: drawn_animals}
model: {network: compact}
template:
  shape: uniform
  norm: l2
  gamma: 0.5
loss: {filter: {weight: 0.3}}
train:
  epochs: 4
"""


def overridden(*overrides: str) -> ExperimentSpec:
    return loads(TEXT, "s.yaml", overrides).spec


def test_an_override_is_yaml_and_makes_a_section_that_was_absent():
    spec = overridden("train.epochs=7", "data.landmarks=[neck]", "eval={every: 2}", "seed=3", "compute.workers=2")
    assert (spec.train.epochs, spec.data.landmarks, spec.eval.every, spec.seed) == (7, ("neck",), 2, 3)
    assert spec.compute.workers == 2


def test_an_override_of_the_shape():
    kept = {"shape": "gradient", "norm": "l2", "p": None, "beta": 2.0, "tau": None, "mask": None, "narrowing": None}
    assert overridden("template.shape=gradient").template.model_dump() == kept, "what the new shape has, too"
    assert overridden("template={shape: gradient}").template.model_dump() == kept | {"norm": "l1"}, "a whole section"
    for plain in (overridden("template.shape=none"), overridden("template={shape: none}")):
        assert plain.loss.filter is None and plain.template.model_dump() == {"shape": "none"}


def test_a_value_knows_its_line():
    source = loads(TEXT, "s.yaml", ["train.epochs=5"]).source
    assert source.at(("template", "gamma")) == "s.yaml:7"
    assert source.at(("template", "beta")) == "s.yaml:4"
    assert source.at(("train", "epochs")) == "--set train.epochs=5"
    assert source.at(("search",)) == "s.yaml:1"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", ".1e-3", "0.0001", "+1e-04"])
def test_a_number_is_written_as_in_yaml_1_2(text):
    small = loads(TEXT, "s.yaml", ["train.learning_rate=0.0001"]).spec
    for path in ("train.learning_rate", "train"):
        value = text if path.count(".") else f"{{epochs: 4, learning_rate: {text}}}"
        spec = loads(TEXT, "s.yaml", [f"{path}={value}"]).spec
        assert spec == small and spec.digest() == small.digest()
    search = f"search: {{runs: [{{name: plain, set: {{template.shape: none, train.learning_rate: {text}}}}}], "
    grid = loads(f"{TEXT}{search}kind: grid, grid: {{template.tau: [{text}, 1e5]}}}}", "s.yaml").spec.search
    space = loads(
        f"{TEXT}{search}kind: space, trials: 1, space: {{template.tau: {{log_uniform: [{text}, .5e3]}}}}}}", "s.yaml"
    ).spec.search
    assert grid.runs[0].set["train.learning_rate"] == 1e-4 and grid.grid == {"template.tau": (1e-4, 1e5)}
    assert space.space["template.tau"].log_uniform == (1e-4, 500)


def test_other_scalars_of_yaml():
    read = loader.read_yaml(
        "[010.5, 0, 0x10, 1_000, yes, off, ~, '1e4', 1e, 12:30:00, 1:30.5, 08, .inf]", loader.Source("")
    )
    assert read == [10.5, 0, 16, 1000, True, False, None, "1e4", "1e", "12:30:00", "1:30.5", "08", float("inf")]


def test_a_text_that_looks_like_a_number_stays_text():
    search = "search: {kind: named, runs: [{name: plain, set: {template.shape: none}}, {name: '1e4'}]}\n"
    spec = loads(TEXT.replace("name: t", "name: '2e5'") + search, "s.yaml").spec
    assert loads(resolved_yaml(spec), "r.yaml").spec == spec
    assert (spec.name, spec.search.runs[1].name) == ("2e5", "1e4")


def test_anchors_and_merges():
    text = TEXT.replace("loss:", "eval: &e {every: 2}\nloss:").replace("train:", "compute: &c {workers: 2}\ntrain:")
    text += "search:\n  kind: grid\n  runs:\n    - name: plain\n      set: &s {template.shape: none, seed: 1}\n"
    text += "    - name: other\n      set: {<<: *s, seed: 2}\n  grid: {template.beta: [1, 3]}\n"
    search = loads(text, "s.yaml").spec.search
    assert search is not None
    assert search.runs[1].set == {"template.shape": "none", "seed": 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "s.yaml  there is no such file"),
        (lambda path: path.mkdir(), "s.yaml  is a folder"),
        (lambda path: path.write_bytes(b"name: \xff"), "s.yaml  byte 6 is not UTF-8"),
        (lambda path: path.write_text("name: a\nseed: \x07"), "s.yaml:2  the character U+0007"),
    ],
)
def test_unreadable_files(tmp_path, make, message):
    make(tmp_path / "s.yaml")
    with pytest.raises(SpecError, match=re.escape(message)):
        load(tmp_path / "s.yaml")


SPECS = Path(__file__).resolve().parents[2] / "specs"
GRID = """\
name: t
seed: 1
data: {kind: voc_part, category: cow, landmarks: [head, neck]}
model:
  network: alexnet
  appended_layer: true
  interpretable_layers: [conv5, conv6]
  dropout: 0.5
  weights: {file: a.npz, layers: [conv1, conv2], channels: bgr}
template: {shape: gradient, norm: l2, beta: 2, tau: 0.1}
loss: {filter: {weight: 0.1, schedule: paper}}
train: {epochs: 9, batch_size: 32, learning_rate: 0.1, final_learning_rate: 0.01, freeze_through: conv2}
eval: {every: 1, layer: conv5}
compute: {workers: 2, gpus_per_worker: 1, concurrent_runs: 2}
search:
  kind: grid
  runs: [{name: plain, set: {template: {shape: none}}}, {name: slow, set: {train.learning_rate: 0.01}}]
  grid: {template.norm: [l1, l2], template.beta: [1, 2]}
  objective: {control: plain, instability_weight: 0.3}
  early_stopping: {grace_epochs: 3, reduction_factor: 2}
"""
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
STRANGE: list[Any] = [None, True, -1, float("nan"), "1e-4", ["a"], {"a": 1}]


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*above, key)
        yield from paths(value[key], (*above, key))


def damaged(raw: Any) -> Iterator[tuple[str, Any]]:
    for place in paths(raw):
        for strange in [*STRANGE, "removed", "renamed"]:
            copy = deepcopy(raw)
            holder = copy
            for key in place[:-1]:
                holder = holder[key]
            if strange not in ("removed", "renamed"):
                holder[place[-1]] = strange
            else:
                value = holder.pop(place[-1])
                if strange == "renamed" and isinstance(holder, dict):
                    holder[f"{place[-1]}s"] = value
            yield f"{place} {strange!r}", copy


@pytest.mark.slow
@pytest.mark.parametrize("text", [GRID, (SPECS / "uniform_sweep.yaml").read_text()], ids=["grid", "space"])
def test_any_damage(text):
    sound = loads(text, "s.yaml").spec
    assert sound.search is not None
    refused = 0
    for what, raw in damaged(yaml.safe_load(text)):
        try:
            loads(yaml.dump(raw, Dumper=DUMPER), "s.yaml")
        except SpecError as error:
            refused += 1
            for problem in error.issues:
                assert problem.where.startswith("s.yaml:"), what
                assert problem.what and problem.advice, what
                assert "Input should" not in str(problem), what
    assert refused > 250


LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10))])
MERGES = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}" for k in range(1, 10))]
)
NESTED_MERGES = reduce(
    lambda inner, k: f"{{<<: [&a{k} {inner}{f', *a{k}' * 8}]}}", range(9), "{x: 1}"
)  # gigabytes with PyYAML before 6.0.4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "s.yaml:1  more than 20000 values"),
        (MERGES, "name is missing"),
        (NESTED_MERGES, "name is missing"),
        ("a: " + "[" * 3000, "s.yaml:1  not YAML: more than 50 levels"),
        ("seed: 0x" + "f" * 20_000, "at most 64 bits is needed"),
        ("seed: " + "9" * 20_000, "cannot be read as tag:yaml.org,2002:int"),
        ("seed: " + "1" * 100_000 + "x", "must be a whole number"),
        ("seed: !!python/object/apply:os.system [id]", "s.yaml:1"),
        ("name: !!binary xsY=", "cannot be read as tag:yaml.org,2002:binary"),
        ("seed: !!binary x", "cannot be read as tag:yaml.org,2002:binary"),
        ("<<: {<<: &a {<<: *a}}", "name is missing"),
    ],
    ids=[
        "aliases",
        "merges",
        "merges in merges",
        "levels",
        "hexadecimal",
        "digits",
        "digits of a text",
        "object",
        "bytes",
        "binary",
        "itself",
    ],
)
@pytest.mark.timeout(60)
def test_a_text_that_grows_or_never_ends_is_refused(text, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        loads(text, "s.yaml")


def test_a_file_without_end(tmp_path):
    with pytest.raises(SpecError, match="has more than 1 MB"):
        load("/dev/zero")
    with pytest.raises(SpecError, match="cannot be read"):
        load("a\0b")
