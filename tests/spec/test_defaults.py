"""Defaults that depend on other sections, and recipes."""

from __future__ import annotations

from copy import deepcopy
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.data.datasets.ilsvrc_animal_part import Synset
from ipcnn_ray.spec.defaults import with_defaults, without_defaults
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.runs import named_runs, resolved_yaml, run_for
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.spec.training import Train

RAW = {
    "name": "t",
    "data": {"kind": "drawn_animals"},
    "model": {"network": "vgg16"},
    "template": {"shape": "uniform"},
    "train": {"epochs": 4, "learning_rate": 0.3},
}


def resolved(**changed: object) -> ExperimentSpec:
    return ExperimentSpec.model_validate(RAW | changed)


def test_what_is_filled_in():
    spec = resolved()
    assert spec.model.interpretable_layers == ("conv5_3", "conv6") and spec.model.dropout == 0.5
    assert spec.eval.layer == "conv6" and spec.train.final_learning_rate == 0.3
    assert spec.loss.filter is not None and spec.loss.filter.weight == 0.01
    spec = resolved(model={"network": "vgg16", "appended_layer": False})
    assert (spec.model.interpretable_layers, spec.eval.layer) == (("conv5_3",), "conv5_3")


def test_no_filter_loss_without_a_template_or_with_null():
    assert resolved(template={"shape": "none"}).loss.filter is None
    assert resolved(loss={"filter": None}).loss.filter is None


def test_what_is_said_stays():
    spec = resolved(
        model={"network": "vgg16", "interpretable_layers": ["conv5_2", "conv6"], "dropout": 0.1},
        eval={"layer": "conv5_2"},
        train={"epochs": 4, "final_learning_rate": 0.2},
    )
    assert (spec.model.interpretable_layers, spec.model.dropout) == (("conv5_2", "conv6"), 0.1)
    assert (spec.eval.layer, spec.train.final_learning_rate) == ("conv5_2", 0.2)


def test_the_input_is_left_alone():
    before = deepcopy(RAW)
    with_defaults(RAW)
    assert before == RAW


def test_sections_made_in_python():
    spec = ExperimentSpec(
        name="t",
        data=DrawnAnimals(kind="drawn_animals"),
        model=Model(network="compact"),
        template=NoTemplate(shape="none"),
        train=Train(epochs=2),
    )
    assert spec.eval.layer == "conv5"
    assert spec == ExperimentSpec.model_validate(spec.model_dump())


@pytest.mark.parametrize("value", [None, 3, "text", [], [1], {}, {"shape": []}, {"network": []}, {"epochs": {}}])
@pytest.mark.parametrize("section", ["data", "model", "template", "train", "loss", "eval", "compute", "search"])
def test_malformed_sections_are_left_to_pydantic(section, value):
    resolved = with_defaults(RAW | {section: value})
    assert isinstance(resolved, dict)
    try:
        ExperimentSpec.model_validate(RAW | {section: value})
    except ValidationError as error:
        assert all(item["loc"][0] == section for item in error.errors())


@pytest.mark.parametrize("raw", [None, 3, "text", [1], {}])
def test_malformed_specs_are_left_to_pydantic(raw):
    with pytest.raises(ValidationError):
        ExperimentSpec.model_validate(raw)


def test_taking_defaults_back():
    full = resolved().model_dump(mode="json")
    bare = without_defaults(full)
    assert "final_learning_rate" not in bare["train"]
    assert not {"interpretable_layers", "dropout"} & set(bare["model"])
    assert "layer" not in bare["eval"] and "filter" not in bare["loss"]
    assert ExperimentSpec.model_validate(bare) == resolved()
    full["train"]["final_learning_rate"] = 0.1
    assert without_defaults(full)["train"]["final_learning_rate"] == 0.1


def test_a_backbone_says_its_layers():
    spec = resolved(model={"network": "squeezenet1_1", "cut": "features.12", "weights": {"file": "w.npz"}})
    assert spec.model.interpretable_layers == ("features.12", "appended") and spec.model.dropout == 0.5
    assert (spec.model.table.image_size, spec.model.weights.channels, spec.model.weights.layers) == (227, "bgr", None)
    assert spec.model.model_copy(update={"image_size": 224}).table.image_size == 224


def test_weights_say_what_their_file_was_trained_on():
    def weights(**given: str) -> dict[str, object]:
        spec = resolved(model={"network": "compact", "weights": given})
        return spec.model.weights.model_dump(mode="json", exclude={"torchvision", "timm"})

    layers = ["conv1", "conv2", "conv3", "conv4"]
    usual = {"layers": layers, "pixels": None}
    assert weights(file="a.npz") == {"file": "a.npz", "channels": "bgr", **usual}
    assert weights(file="a.npz", pixels="raw") == {"file": "a.npz", "channels": "bgr", **usual}
    assert weights(file="a.mat") == {"file": "a.mat", "channels": "rgb", **usual}
    stated = {"file": "a.pth", "channels": "bgr", "pixels": "raw"}
    assert weights(**stated) == {**stated, "layers": layers}
    timm = {
        "network": "timm/resnet18",
        "cut": "layer1.1",
        "weights": {"file": "a.safetensors", "pixels": "torchvision"},
    }
    assert resolved(model=timm).model.weights == Weights(file="a.safetensors", channels="rgb")
    by_name = resolved(model={"network": "vgg16", "weights": {"torchvision": "DEFAULT"}}).model.weights
    assert by_name.channels == "rgb" and by_name.layers[:2] == ("conv1_1", "conv1_2") and len(by_name.layers) == 13


def test_channels_follow_the_file_of_a_run():
    spec = resolved(model={"network": "compact", "weights": {"file": "a.npz"}})
    assert run_for(spec, {"model.weights.file": "a.mat"}).spec.model.weights.channels == "rgb"
    stated = resolved(model={"network": "compact", "weights": {"file": "a.npz", "channels": "rgb"}})
    assert run_for(stated, {"model.weights.file": "b.npz"}).spec.model.weights.channels == "rgb"


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
    assert (loss.form, loss.weight, loss.schedule) == ("released", 0.1, "epoch")
    assert (loss.learn_beta, loss.beta_rate) == (True, 0.05)


ELEVEN = list(get_args(Synset)[:11])


@pytest.mark.parametrize(
    ("kind", "categories", "classification", "first", "magnitude"),
    [
        ("voc_part", SIX, "logistic", 6e-4, 0.1),
        ("voc_part", SIX, "softmax", 1.2e-4, 0.02),
        ("ilsvrc_animal_part", ELEVEN, "logistic", 1.1e-4, 0.1),
        ("ilsvrc_animal_part", ELEVEN, "softmax", 11e-4 / 50, 0.002),
    ],
)
def test_several_categories(kind, categories, classification, first, magnitude):
    data = {"kind": kind, "category": categories}
    spec = released("vgg16", data=data, loss={"classification": classification})
    assert (spec.train.epochs, spec.train.decay_epochs) == (80, 80)
    assert spec.train.learning_rate == pytest.approx(first)
    assert spec.loss.filter.weight == pytest.approx(magnitude)


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
    raw = {"name": "a", "data": {"kind": "drawn_animals"}, "model": {"network": "compact"}, "train": {"epochs": 2}}
    spec = ExperimentSpec.model_validate(raw | {"template": {"shape": "gradient"}})
    assert spec.digest() == "e4a88af2", "what it was before there were recipes"


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
