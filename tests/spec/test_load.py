"""Overrides, places of values, and what is left alone."""

from __future__ import annotations

import re

import pytest

from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec.loader import load, loads

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


def told(text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        loads(text, "s.yaml", overrides)
    return str(caught.value)


def test_an_override_is_yaml():
    spec = loads(TEXT, "s.yaml", ["train.epochs=7", "data.landmarks=[neck]", "eval={every: 2}", "seed=3"]).spec
    assert (spec.train.epochs, spec.data.landmarks, spec.eval.every, spec.seed) == (7, ("neck",), 2, 3)


def test_an_override_makes_a_section_that_was_absent():
    assert loads(TEXT, "s.yaml", ["compute.workers=2"]).spec.compute.workers == 2


def test_an_override_of_the_shape_keeps_what_the_new_shape_has():
    template = loads(TEXT, "s.yaml", ["template.shape=gradient"]).spec.template
    assert template.model_dump() == {"shape": "gradient", "norm": "l2", "p": None, "beta": 2.0, "tau": None}


def test_an_override_to_no_template_takes_the_filter_loss_away():
    spec = loads(TEXT, "s.yaml", ["template.shape=none"]).spec
    assert spec.loss.filter is None
    assert spec.template.model_dump() == {"shape": "none"}


def test_an_overridden_mapping_replaces_the_whole_section():
    assert loads(TEXT, "s.yaml", ["template={shape: gradient}"]).spec.template.model_dump()["norm"] == "l1"


def test_a_problem_of_an_override_is_located_there():
    assert told(TEXT, "train.epochs=0") == "--set train.epochs=0  train.epochs = 0\n       must be at least 1"
    assert told(TEXT, "train.epoch=2") == (
        "--set train.epoch=2  train.epoch = 2\n       train has no such field. Did you mean 'epochs'?"
    )
    assert told(TEXT, "model={}") == (
        "--set model={}  model.network is missing\n"
        "       needed: compact (four small convolutions, 64 px), alexnet (Caffe's), vgg_m, vgg_s, vgg16, "
        "or a torchvision network such as squeezenet1_1, resnet50, convnext_tiny, with `cut`"
    )


def test_problems_of_overrides_themselves_come_at_once():
    assert told(TEXT, "train.epochs", "seed=[1", "name=a", "name=b") == (
        "--set train.epochs  is not of the form a.b=value\n"
        "       for example --set train.epochs=5\n"
        "--set seed=[1  not YAML: expected ',' or ']', but got '<stream end>'\n"
        "       while parsing a flow sequence that begins on line 1; mend it here or a line above\n"
        "--set name=b  name is set twice\n"
        "       keep one of the two"
    )


def test_an_override_through_a_value_is_refused():
    assert told(TEXT, "name.x=1") == "--set name.x=1  name.x\n       name is not a section and has no fields"


def test_a_value_knows_its_line():
    source = loads(TEXT, "s.yaml", ["train.epochs=5"]).source
    assert source.at(("template", "gamma")) == "s.yaml:7"
    assert source.at(("template", "beta")) == "s.yaml:4"
    assert source.at(("train", "epochs")) == "--set train.epochs=5"
    assert source.at(("search",)) == "s.yaml:1"


def test_anchors_and_merges():
    text = TEXT.replace("loss:", "eval: &e {every: 2}\nloss:").replace("train:", "compute: &c {workers: 2}\ntrain:")
    text += "search:\n  kind: grid\n  runs:\n    - name: plain\n      set: &s {template.shape: none, seed: 1}\n"
    text += "    - name: other\n      set: {<<: *s, seed: 2}\n  grid: {template.beta: [1, 3]}\n"
    search = loads(text, "s.yaml").spec.search
    assert search is not None
    assert search.runs[1].set == {"template.shape": "none", "seed": 2}


def test_a_date_and_none_are_text():
    assert "data.category = '2020-01-01'" in told(TEXT, "data.category=2020-01-01")
    assert loads(TEXT, "s.yaml", ["template={shape: none}"]).spec.template.shape == "none"


def test_what_follows_from_a_wrong_value_is_not_told():
    text = TEXT.replace("epochs: 4", "epochs: 4\n  batch_size: -3") + "compute: {workers: 3}\n"
    assert told(text) == "s.yaml:11  train.batch_size = -3\n       must be at least 1"


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
