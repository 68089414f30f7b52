"""Defaults that depend on other fields or on a recipe, in raw specs (nested mappings).

A value that equals its default follows it. For example, the resolved spec of a search over `train.learning_rate` has
`final_learning_rate: 0.01`, and a run of that search still ends at its own learning rate. Otherwise a spec and its
resolved form would have the same digest and train different runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel

from ipcnn_ray.spec.data import Data, with_negatives
from ipcnn_ray.spec.model import channels_of, pixels_of
from ipcnn_ray.spec.networks import Network, row
from ipcnn_ray.spec.section import sections
from ipcnn_ray.spec.template import PartTemplate, Template
from ipcnn_ray.spec.training import FilterLoss, Train

Recipe = Literal["released", "modern"]
Raw = dict[str, Any]
FILTER = FilterLoss.model_fields
DERIVED = (
    ("data", "negatives"),
    ("loss", "filter"),
    ("loss", "filter", "weight"),
    ("loss", "filter", "form"),
    ("loss", "filter", "schedule"),
    ("loss", "filter", "learn_beta"),
    ("eval", "layer"),
    ("model", "interpretable_layers"),
    ("model", "dropout"),
    ("model", "appended_mask"),
    ("model", "weights", "layers"),
    ("model", "weights", "channels"),
    ("train", "final_learning_rate"),
)
"""Path of every default that depends on other fields; a field comes before those that it depends on."""
DERIVED_WITH_RECIPE = (
    *DERIVED,
    *(("train", name) for name in Train.model_fields if name != "final_learning_rate"),
    ("template",),
)


def with_defaults(raw: object) -> object:
    """Return a copy of the raw spec (nested mappings) with every default that depends on other fields written out.

    Malformed parts are left to pydantic, which reports their location.
    """
    if not isinstance(raw, Mapping):
        return raw
    full: Raw = dict(raw)
    recipe = _recipe(full)
    if "template" in recipe:
        full.setdefault("template", recipe["template"])
    data, model, template = (_section(full, name) if name in full else None for name in ("data", "model", "template"))
    loss, train, evaluation = (_section(full, name) for name in ("loss", "train", "eval"))
    if "train" not in raw and "train" not in recipe:
        del full["train"]
    kind = data.get("kind") if data is not None else None
    if data is not None and isinstance(kind, str) and kind in (kinds := sections(Data)):
        full["data"] = with_negatives(data, kinds[kind].model_fields["negatives"].default)
    if model is not None:
        for name, value in recipe.get("model", {}).items():
            if model.get(name) is None:
                model[name] = value
        _model_defaults(model)
        layers = model.get("interpretable_layers")
        if evaluation is not None and evaluation.get("layer") is None and isinstance(layers, list | tuple) and layers:
            evaluation["layer"] = layers[-1]
    if train is not None:
        _train_defaults(train, recipe.get("train", {}))
    shape = template.get("shape") if template is not None else None
    if loss is not None and isinstance(shape, str):
        if "filter" not in loss:
            loss["filter"] = None if shape == "none" else dict(recipe.get("filter", {}))
        if isinstance(loss["filter"], BaseModel):
            loss["filter"] = loss["filter"].model_dump(mode="json", exclude_unset=True)
        if isinstance(loss["filter"], Mapping):
            loss["filter"] = _filter_with_defaults(dict(loss["filter"]), shape, template or {})
    return full


def without_defaults(raw: Raw) -> Raw:
    """Return a resolved raw spec without the fields that `with_defaults` would write with the same value."""
    bare = raw
    for path in DERIVED_WITH_RECIPE if raw.get("recipe") else DERIVED:
        if _value(bare, path) is _MISSING:
            continue
        stripped = _without(bare, path)
        full = with_defaults(stripped)
        if isinstance(full, dict) and _value(full, path) == _value(bare, path):
            bare = stripped
    return bare


def _section(raw: Raw, name: str) -> Raw | None:
    """Put a copy of a section in its place and return it: empty if it is absent, None if it is not a mapping."""
    section = raw.get(name, {})
    if isinstance(section, BaseModel):
        section = section.model_dump(mode="json", exclude_unset=True)
    if not isinstance(section, Mapping):
        return None
    raw[name] = dict(section)
    return raw[name]  # type: ignore[no-any-return]


def _model_defaults(model: Raw) -> None:
    network, cut, size = model.get("network"), model.get("cut"), model.get("image_size")
    if not isinstance(network, str):
        return
    table = row(network, cut if isinstance(cut, str) else None, size if type(size) is int and size > 0 else None)
    if table is None:
        return
    if model.get("interpretable_layers") is None and table.last_conv:
        appended = model.get("appended_layer", True) is True
        model["interpretable_layers"] = [table.last_conv, *([table.appended.name] if appended else [])]
    if model.get("dropout") is None:
        model["dropout"] = table.dropout
    weights = _section(model, "weights") if model.get("weights") is not None else None
    if weights is not None:
        _weights_defaults(weights, table, network)


def _weights_defaults(weights: Raw, table: Network, network: str) -> None:
    # The layers of networks of torchvision and timm are not known here: `layers` stays absent and means all.
    if weights.get("layers") is None and table.convs:
        weights["layers"] = list(table.convs)
    file = weights.get("file")
    if isinstance(file, str):
        if weights.get("channels") is None:
            weights["channels"] = channels_of(file, network)
        if weights.get("pixels") == pixels_of(file, network):
            del weights["pixels"]
    elif file is None and weights.get("channels") is None:
        weights["channels"] = "rgb"


def _filter_with_defaults(filter_loss: Raw, shape: str, template: Raw) -> Raw:
    section = sections(Template).get(shape)
    own = section.form if section is not None and issubclass(section, PartTemplate) else FILTER["form"].default
    form = filter_loss.get("form", own)
    released = form == "released"
    return {
        "form": form,
        "weight": 0.1 if released else FILTER["weight"].default,
        "schedule": "epoch" if released else FILTER["schedule"].default,
        "beta_rate": FILTER["beta_rate"].default,
        "learn_beta": released and own == "released" and _can_learn(template),
        **filter_loss,
    }


def _can_learn(template: Raw) -> bool:
    """Whether a released template's width can be learned."""
    return template.get("mask") in (None, "centroid") and template.get("narrowing") is None


def _train_defaults(train: Raw, recipe: Raw) -> None:
    """Write out the recipe's values, and the final learning rate: the recipe's share of the first, else the first."""
    first, last = (recipe.get(name, 1.0) for name in ("learning_rate", "final_learning_rate"))
    for name, value in recipe.items():
        if name != "final_learning_rate":
            train.setdefault(name, value)
    if train.get("final_learning_rate") is None:
        rate = train.get("learning_rate", Train.model_fields["learning_rate"].default)
        if isinstance(rate, int | float) and rate > 0:
            train["final_learning_rate"] = rate if rate == first == last else _rounded(rate * last / first)


_MISSING = object()


def _value(raw: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(raw, Mapping) or name not in raw:
            return _MISSING
        raw = raw[name]
    return raw


def _without(raw: Raw, path: tuple[str, ...]) -> Raw:
    name, *below = path
    if not below:
        return {key: value for key, value in raw.items() if key != name}
    return {**raw, name: _without(raw[name], tuple(below))}


BATCH_SIZE = {"alexnet": 512, "vgg_m": 196, "vgg_s": 128, "vgg16": 32}
RATE_FACTOR = {"alexnet": 30.0, "vgg_m": 30.0, "vgg_s": 10.0, "vgg16": 1.0}
"""Factor on the learning rates 1e-4 to 1e-5."""


def _recipe(raw: Raw) -> Raw:
    """Return the values of the spec's recipe by section and field; empty without one, or if its network is unknown."""
    model, data, loss = (raw.get(name) for name in ("model", "data", "loss"))
    network = model.get("network") if isinstance(model, Mapping) else None
    if raw.get("recipe") not in get_args(Recipe) or not isinstance(network, str):
        return {}
    category = data.get("category") if isinstance(data, Mapping) else None
    categories = max(1, len(category)) if isinstance(category, list | tuple) else 1
    if raw["recipe"] == "modern":
        return _modern(categories)
    softmax = isinstance(loss, Mapping) and loss.get("classification") == "softmax"
    loaded = isinstance(model, Mapping) and model.get("weights") is not None
    return _released(network, categories, softmax=softmax, loaded=loaded)


def _released(network: str, categories: int, *, softmax: bool, loaded: bool) -> Raw:
    """Return the training of the authors' code; `loaded`: whether some layers start from pretrained weights.

    Networks other than the paper's four have no released recipe; they get VGG-16's batch size and rate.
    """
    factor, magnitude = RATE_FACTOR.get(network, 1.0), 0.1
    if categories == 1:
        epochs, decay_epochs, first = 50, 10, factor * 1e-4
    else:
        epochs, decay_epochs, first = 80, 80, factor * categories * 1e-4
        if softmax:
            first /= 5 if categories <= 10 else 50
            magnitude *= 0.2 if categories <= 10 else 0.02
        elif categories > 10:
            first /= 10
    return {
        "model": {"dropout": 0.8, "appended_mask": "pooled"},
        "template": {"shape": "released", "tau": None, "width": 2.0},
        "filter": {"form": "released", "weight": _rounded(magnitude)},
        "train": {
            "epochs": epochs,
            "batch_size": BATCH_SIZE.get(network, 32),
            "optimizer": "sgd",
            "learning_rate": _rounded(first),
            "final_learning_rate": _rounded(first / 10),
            "decay": "log",
            "decay_epochs": decay_epochs,
            "warmup_epochs": 0,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "new_bias_rate": 2.0,
            **({"last_bias_rate": 5.0, "decay_loaded_biases": True} if loaded else {}),
        },
    }


def _modern(categories: int) -> Raw:
    return {
        "train": {
            "epochs": 16 if categories == 1 else 26,
            "batch_size": 64,
            "optimizer": "adamw",
            "learning_rate": 2e-4,
            "final_learning_rate": 2e-6,
            "decay": "cosine",
            "warmup_epochs": 1,
            "weight_decay": 0.01,
        },
    }


def _rounded(value: float) -> float:
    """Return a number rounded to ten digits, without the rounding errors of products."""
    return float(f"{value:.10g}")
