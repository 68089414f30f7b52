"""Defaults that depend on other sections."""

from __future__ import annotations

from copy import deepcopy

import pytest
from pydantic import ValidationError

from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.spec.defaults import with_defaults, without_defaults
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.runs import run_for
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.spec.training import Train

RAW = {
    "name": "t",
    "data": {"kind": "drawn_animals"},
    "model": {"network": "vgg16"},
    "template": {"shape": "uniform"},
    "train": {"epochs": 4, "learning_rate": 0.3},
}


def test_what_is_filled_in():
    spec = ExperimentSpec.model_validate(RAW)
    assert spec.model.interpretable_layers == ("conv5_3", "conv6")
    assert spec.model.dropout == 0.5
    assert spec.eval.layer == "conv6"
    assert spec.train.final_learning_rate == 0.3
    assert spec.loss.filter is not None and spec.loss.filter.weight == 0.01


def test_without_the_appended_layer():
    spec = ExperimentSpec.model_validate(RAW | {"model": {"network": "vgg16", "appended_layer": False}})
    assert spec.model.interpretable_layers == ("conv5_3",)
    assert spec.eval.layer == "conv5_3"


def test_the_plain_network_has_no_filter_loss():
    assert ExperimentSpec.model_validate(RAW | {"template": {"shape": "none"}}).loss.filter is None


def test_null_with_a_template_is_the_mask_alone():
    assert ExperimentSpec.model_validate(RAW | {"loss": {"filter": None}}).loss.filter is None


def test_what_is_said_stays():
    said = RAW | {
        "model": {"network": "vgg16", "interpretable_layers": ["conv5_2", "conv6"], "dropout": 0.1},
        "eval": {"layer": "conv5_2"},
        "train": {"epochs": 4, "final_learning_rate": 0.2},
    }
    spec = ExperimentSpec.model_validate(said)
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
    full = ExperimentSpec.model_validate(RAW).model_dump(mode="json")
    bare = without_defaults(full)
    assert "final_learning_rate" not in bare["train"]
    assert not {"interpretable_layers", "dropout"} & set(bare["model"])
    assert "layer" not in bare["eval"] and "filter" not in bare["loss"]
    assert ExperimentSpec.model_validate(bare) == ExperimentSpec.model_validate(RAW)
    full["train"]["final_learning_rate"] = 0.1
    assert without_defaults(full)["train"]["final_learning_rate"] == 0.1


def test_a_backbone_says_its_layers():
    raw = RAW | {"model": {"network": "squeezenet1_1", "cut": "features.12", "weights": {"file": "w.npz"}}}
    spec = ExperimentSpec.model_validate(raw)
    assert spec.model.interpretable_layers == ("features.12", "appended") and spec.model.dropout == 0.5
    assert (spec.model.table.image_size, spec.model.weights.channels, spec.model.weights.layers) == (227, "bgr", None)
    assert spec.model.model_copy(update={"image_size": 224}).table.image_size == 224


def test_weights_say_what_their_file_was_trained_on():
    def weights(**given: str) -> dict[str, object]:
        model = {"network": "compact", "weights": given}
        return ExperimentSpec.model_validate(RAW | {"model": model}).model.weights.model_dump(mode="json")

    layers = ["conv1", "conv2", "conv3", "conv4"]
    usual = {"layers": layers, "pixels": None}
    assert weights(file="a.npz") == {"file": "a.npz", "channels": "bgr", **usual}
    assert weights(file="a.npz", pixels="raw") == {"file": "a.npz", "channels": "bgr", **usual}
    assert weights(file="a.mat") == {"file": "a.mat", "channels": "rgb", **usual}
    stated = {"file": "a.pth", "channels": "bgr", "pixels": "raw"}
    assert weights(**stated) == {**stated, "layers": layers}


def test_channels_follow_the_file_of_a_run():
    model = {"network": "compact", "weights": {"file": "a.npz"}}
    spec = ExperimentSpec.model_validate(RAW | {"model": model})
    assert run_for(spec, {"model.weights.file": "a.mat"}).spec.model.weights.channels == "rgb"
    stated = ExperimentSpec.model_validate(RAW | {"model": model | {"weights": {"file": "a.npz", "channels": "rgb"}}})
    assert run_for(stated, {"model.weights.file": "b.npz"}).spec.model.weights.channels == "rgb"
