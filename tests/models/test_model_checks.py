"""Specs whose torchvision network does not have what they name, and the exact text that a person gets."""

from __future__ import annotations

import pytest

from ipcnn_ray.errors import DataError, SpecError
from ipcnn_ray.models.model_checks import check_backbones, check_weights
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.utils.paths import Paths

MODEL = "network: squeezenet1_1, cut: features.12, weights: {file: w.npz}"
FIRES = "features.3, features.4, features.6, features.7, features.9, features.10, features.11, features.12"


def spec(model: str = MODEL, train: str = "", more: str = "") -> str:
    return (
        "name: t\ndata: {kind: drawn_animals}\n"
        f"model: {{{model}}}\ntemplate: {{shape: uniform}}\ntrain: {{epochs: 4{train}}}\n{more}"
    )


def told(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        check_backbones(loads(text, "s.yaml"))
    return [part.strip() for problem in caught.value.issues for part in str(problem).split("\n")]


def test_what_is_right_passes():
    check_backbones(loads(spec(train=", freeze_through: features.11"), "s.yaml"))
    check_backbones(loads(spec("network: vgg16"), "s.yaml"))


def test_every_wrong_name_is_told_at_once():
    layers = "interpretable_layers: [features.5, features.13, appended]"
    weights = "weights: {file: w.npz, layers: [features.0, features.1]}"
    relus = f"features.1, {FIRES}, appended"
    assert told(spec(f"network: squeezenet1_1, cut: features.12, {layers}, {weights}")) == [
        "s.yaml:3  model.interpretable_layers.0 = 'features.5'",
        f"ends in no ReLU, and one in its place would change what the layers above it see; take {relus}",
        "s.yaml:3  model.interpretable_layers.1 = 'features.13'",
        f"is no layer to be interpretable; there are {relus}. Did you mean 'features.3'?",
        "s.yaml:3  model.weights.layers.1 = 'features.1'",
        f"is no layer to be loaded; there are features.0, {FIRES}. Did you mean 'features.12'?",
    ]


def test_an_unknown_cut_is_told_at_its_line():
    where, what = told(spec(MODEL.replace("features.12", "fire9")))
    assert where == "s.yaml:3  model.cut = 'fire9'"
    assert what.startswith("squeezenet1_1 has no such layer; it has features.0, features.1, features.2,")


def test_the_order_of_layers():
    _, what = told(spec(f"{MODEL}, interpretable_layers: [appended, features.12]"))
    assert what == "must be listed lowest first: ['features.12', 'appended']"


@pytest.mark.parametrize(
    ("model", "through", "expected"),
    [
        (MODEL, "features.2", f"is no layer to be frozen; there are features.0, {FIRES}. Did you mean 'features.12'?"),
        (
            MODEL,
            "features.12",
            "would keep the interpretable layer features.12 from learning; freeze through a lower layer",
        ),
        (
            MODEL.replace("w.npz", "w.npz, layers: [features.0, features.4]"),
            "features.4",
            "would freeze random weights in features.3; add them to model.weights.layers",
        ),
    ],
)
def test_what_cannot_be_frozen(model, through, expected):
    assert told(spec(model, f", freeze_through: {through}")) == [
        f"s.yaml:5  train.freeze_through = '{through}'",
        expected,
    ]


def test_batch_normalisation_needs_its_statistics():
    assert told(spec("network: resnet18, cut: layer1.0")) == [
        "s.yaml:3  model.network = 'resnet18'",
        "batch normalisation keeps the statistics that were loaded, and bn1, layer1.0 would have none; "
        "add model.weights",
    ]


def test_the_runs_of_a_search_are_checked_too():
    search = (
        "search: {kind: grid, runs: [{name: plain, set: {template.shape: none}}, "
        "{name: deep, set: {model.cut: features.99}}], grid: {template.norm: [l1, l2]}}\n"
    )
    where, _ = told(spec(more=search))
    assert where == "s.yaml:3  in run deep, model.cut = 'features.99'"


def test_weights_are_checked_without_memory_for_the_network(tmp_path):
    with pytest.raises(DataError, match=r"model\.weights\.file = 'w\.npz': no such file"):
        check_weights(loads(spec(), "s.yaml").spec, Paths.from_environment({"IPCNN_WEIGHTS": str(tmp_path)}))
    assert check_weights(loads(spec("network: vgg16"), "s.yaml").spec, Paths.from_environment({})) == []
