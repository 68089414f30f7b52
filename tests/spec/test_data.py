"""A list of categories in the data section, what follows from it, and digests that stay."""

from __future__ import annotations

from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import resolved_yaml, run_for

TEXT = """\
name: t
data: {kind: voc_part, category: CATEGORY}
model: {network: compact}
template: {shape: uniform, beta: 2, gamma: 0.5}
train: {epochs: 4, batch_size: 32}
"""


def spec(category: str, *overrides: str):
    return loads(TEXT.replace("CATEGORY", category), "s.yaml", overrides).spec


def test_one_or_several():
    one, several = spec("cow").data, spec("[cow, dog]").data
    assert (one.category, one.categories, one.negatives) == ("cow", ("cow",), 1000)
    assert (several.categories, several.negatives) == (("cow", "dog"), 0)
    assert spec("[cow, dog]", "data.negatives=50").data.negatives == 50


def test_drawn_items_are_counted():
    data = spec("[cow, dog, cat]", "data={kind: drawn_animals, category: [cow, dog, cat], objects: 40}").data
    assert data.train_items() == 3 * 2 * 30


def test_digests_of_specs_that_were_there_before():
    """Fixed on 2026-11-23, before `loss.classification`, `eval.instability` and `data.split` were there."""
    assert spec("cow").digest() == "c26279a1"
    assert spec("cow", "loss.classification=logistic", "eval.instability=paper").digest() == "c26279a1"
    others = {spec("[cow, dog]", *o).digest() for o in ([], ["loss.classification=softmax"], ["data.split=items"])}
    assert len(others | {spec("[dog, cow]").digest(), "c26279a1"}) == 5


def test_a_resolved_spec_is_the_same_and_a_run_of_it_follows_the_number_of_categories():
    for category in ("cow", "[cow, dog]"):
        given = spec(category)
        again = loads(resolved_yaml(given), "r.yaml").spec
        assert again == given and again.digest() == given.digest()
    run = run_for(loads(resolved_yaml(spec("cow")), "r.yaml").spec, {"data.category": ["cow", "dog"]})
    assert run.spec.data.negatives == 0
