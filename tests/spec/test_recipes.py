"""Recipes: the released code's numbers by network, what a spec may change, and that a resolved spec is the same."""

from __future__ import annotations

import pytest
import yaml

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import named_runs, resolved_yaml

VOC = {"kind": "voc_part", "category": "cow"}
SIX = ["bird", "cat", "cow", "dog", "horse", "sheep"]


def released(network: str = "alexnet", **more) -> ExperimentSpec:
    raw = {"name": "r", "recipe": "released", "data": VOC, "model": {"network": network}} | more
    return ExperimentSpec.model_validate(raw)


@pytest.mark.parametrize(
    ("network", "batch", "first"),
    [("alexnet", 512, 3e-3), ("vgg_m", 196, 3e-3), ("vgg_s", 128, 1e-3), ("vgg16", 32, 1e-4)],
)
def test_one_category_is_trained_as_the_released_code_does(network, batch, first):
    spec = released(network)
    train = spec.train
    assert (train.epochs, train.batch_size, train.decay_epochs) == (50, batch, 10)
    assert (train.learning_rate, train.final_learning_rate) == (pytest.approx(first), pytest.approx(first / 10))
    assert (train.optimizer, train.momentum, train.weight_decay, train.new_bias_rate) == ("sgd", 0.9, 5e-4, 2.0)
    assert (spec.model.dropout, spec.model.appended_mask) == (0.8, "pooled")
    assert (spec.template.shape, spec.template.width) == ("released", 2.0)
    loss = spec.loss.filter
    assert (loss.form, loss.weight, loss.schedule, loss.learn_beta, loss.beta_rate) == (
        "released",
        0.1,
        "epoch",
        True,
        0.05,
    )


@pytest.mark.parametrize(
    ("categories", "classification", "first", "magnitude"),
    [(SIX, "logistic", 6e-4, 0.1), (SIX, "softmax", 1.2e-4, 0.02)],
)
def test_several_categories(categories, classification, first, magnitude):
    data = {"kind": "voc_part", "category": categories}
    spec = released("vgg16", data=data, loss={"classification": classification})
    assert (spec.train.epochs, spec.train.decay_epochs) == (80, 80)
    assert spec.train.learning_rate == pytest.approx(first)
    assert spec.loss.filter.weight == pytest.approx(magnitude)


def test_more_than_ten_categories():
    data = {"kind": "ilsvrc_animal_part", "category": [f"n0{number}" for number in _synsets(11)]}
    assert released("vgg16", data=data).train.learning_rate == pytest.approx(1.1e-4)
    softmax = released("vgg16", data=data, loss={"classification": "softmax"})
    assert softmax.train.learning_rate == pytest.approx(11e-4 / 50)
    assert softmax.loss.filter.weight == pytest.approx(0.002)


def _synsets(count: int) -> list[str]:
    from typing import get_args

    from ipcnn_ray.data.datasets.ilsvrc_animal_part import Synset

    return [name.removeprefix("n0") for name in get_args(Synset)[:count]]


def test_pretrained_layers_have_rates_of_their_own():
    weights = {"file": "a.npz", "layers": ["conv1", "conv2"]}
    with_weights, without = released(model={"network": "alexnet", "weights": weights}), released()
    assert (with_weights.train.last_bias_rate, with_weights.train.decay_loaded_biases) == (5.0, True)
    assert (without.train.last_bias_rate, without.train.decay_loaded_biases) == (1.0, False)


def test_what_the_spec_says_goes_before_the_recipe():
    spec = released(
        train={"epochs": 3, "decay_epochs": 2, "learning_rate": 0.01},
        template={"shape": "gradient", "norm": "l2"},
    )
    assert (spec.train.epochs, spec.train.learning_rate, spec.train.batch_size) == (3, 0.01, 512)
    assert spec.train.final_learning_rate == pytest.approx(0.001), "the recipe's share of the first rate"
    assert (spec.template.norm, spec.loss.filter.form, spec.loss.filter.learn_beta) == ("l2", "released", False)


def test_without_a_recipe_nothing_of_it_shows():
    text = "name: a\ndata: {kind: drawn_animals}\nmodel: {network: compact}\ntemplate: {shape: gradient}\n"
    text += "train: {epochs: 2}\n"
    assert loads(text, "s.yaml").spec.digest() == "e4a88af2", "what it was before there were recipes"


@pytest.mark.parametrize("recipe", ["released", "modern"])
def test_a_resolved_spec_is_the_same_experiment(recipe):
    text = f"name: a\nrecipe: {recipe}\ndata: {{kind: drawn_animals}}\nmodel: {{network: compact}}\n"
    text += "" if recipe == "released" else "template: {shape: gradient}\n"
    spec = loads(text, "s.yaml").spec
    again = loads(resolved_yaml(spec), "r.yaml").spec
    assert again == spec and again.digest() == spec.digest()
    assert yaml.safe_load(resolved_yaml(spec))["recipe"] == recipe


def test_the_plain_control_of_a_recipe_has_no_filter_loss():
    search = {"kind": "named", "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}, {"name": "own"}]}
    plain, own = named_runs(released(search=search))
    assert plain.spec.loss.filter is None and plain.spec.train == own.spec.train
    assert own.spec.loss.filter.form == "released"


def test_a_modern_recipe_keeps_the_template_of_the_spec():
    spec = released(recipe="modern", template={"shape": "uniform"})
    assert (spec.train.optimizer, spec.train.decay, spec.train.warmup_epochs) == ("adamw", "cosine", 1)
    assert spec.loss.filter.form == "exact"
