"""Equal experiments have equal digests, different ones different digests."""

from __future__ import annotations

import re
from itertools import combinations

from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import experiment_id, resolved_yaml

TEXT = """\
name: t
data: {kind: drawn_animals, objects: 40}
model: {network: compact}
template: {shape: uniform, beta: 2, gamma: 0.5}
train: {epochs: 4, batch_size: 32}
"""
SEARCH = """\
search:
  kind: space
  trials: 3
  runs: [{name: plain, set: {template.shape: none}}, {name: a, set: {template.beta: 1, train.batch_size: 16}}]
  space:
    template.norm: {choice: [l1, l2]}
    template.beta: {log_uniform: [1, 8], when: {template.norm: l1}}
"""


def of(text: str, *overrides: str) -> str:
    return loads(text, "s.yaml", overrides).spec.digest()


def test_eight_hexadecimal_characters():
    assert re.fullmatch(r"[0-9a-f]{8}", of(TEXT))


def test_what_does_not_change_it():
    assert of(TEXT) == of(TEXT, "name=other")
    workers = ["compute.workers=2", "compute.gpus_per_worker=1", "compute.retries=3", "compute.cache_frozen=false"]
    assert of(TEXT) == of(TEXT, *workers)
    assert of(TEXT) == of("\n".join(reversed(TEXT.splitlines())))
    other_words = TEXT.replace("shape: uniform, beta: 2, gamma: 0.5", "gamma: 5.0e-1, beta: 2.0, shape: uniform")
    assert of(TEXT) == of(other_words)
    assert of(TEXT) == of(TEXT, "eval={}", "seed=0", "template.norm=l1", "eval.layer=conv5", "search=null")
    assert of(TEXT + SEARCH) == of((TEXT + SEARCH).replace("[1, 8]", "[1.0, 8.0]").replace("beta: 1,", "beta: 1.0,"))


def test_what_changes_it():
    overrides = ["seed=1", "data.drawing_seed=1", "template.beta=2.5", "template.shape=none", "train.epochs=5"]
    overrides += ["train.final_learning_rate=0.001", "model.dropout=0.5", "eval.every=2", "loss.filter=null"]
    overrides += ["loss.filter.weight=0.2"]
    digests = {override: of(TEXT, override) for override in overrides} | {"": of(TEXT), "search": of(TEXT + SEARCH)}
    assert [pair for pair in combinations(digests, 2) if digests[pair[0]] == digests[pair[1]]] == []


def test_the_resolved_spec_is_the_same_experiment():
    plain = TEXT.replace("uniform, beta: 2, gamma: 0.5", "none")
    for text in (TEXT, TEXT + SEARCH, TEXT + "loss: {filter: null}\n", plain):
        spec = loads(text, "s.yaml").spec
        written = resolved_yaml(spec)
        again = loads(written, "resolved.yaml").spec
        assert again == spec
        assert experiment_id(again) == experiment_id(spec)
        assert resolved_yaml(again) == written
        assert written.splitlines()[0] == f"# Resolved spec of {experiment_id(spec)}"


def test_small_numbers_survive_yaml():
    spec = loads(TEXT, "s.yaml", ["train.learning_rate=1.0e-7", "train.weight_decay=0.1"]).spec
    again = loads(resolved_yaml(spec), "r.yaml").spec
    assert (again.train.learning_rate, again.train.weight_decay) == (1e-7, 0.1)


def test_a_field_that_only_backbones_have_changes_no_other_digest():
    """Written down before there were backbones."""
    weights = "model: {network: alexnet, weights: {file: a.npz, layers: [conv1]}}"
    assert of(TEXT) == "21008829"
    assert of(TEXT.replace("model: {network: compact}", weights)) == "cbb4779f"
