"""Defaults that depend on other sections: written out, and taken back.

A value that equals its default follows it. The resolved spec of a search over `train.learning_rate` says
`final_learning_rate: 0.01`, and a run of that search still ends at its own learning rate: otherwise a spec and
its resolved form would have one digest and train different runs.
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

Raw = dict[str, Any]
DATA = sections(Data)
"""The data sections by kind."""
SHAPES = sections(Template)
"""The template sections by shape."""
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
"""Path of every default that depends on other fields; a field comes before what it depends on."""
OF_RECIPES = (*(("train", name) for name in Train.model_fields if name != "final_learning_rate"), ("template",))
"""Further ones of a spec with a recipe."""


def _section(raw: Raw, name: str) -> Raw | None:
    """A copy of a section as a mapping, put in place; empty where it is absent, None where it is something else."""
    section = raw.get(name, {})
    if isinstance(section, BaseModel):
        section = section.model_dump(mode="json", exclude_unset=True)
    if not isinstance(section, Mapping):
        return None
    raw[name] = dict(section)
    return raw[name]  # type: ignore[no-any-return]


def _row(model: Raw) -> Network | None:
    network, cut, size = model.get("network"), model.get("cut"), model.get("image_size")
    if not isinstance(network, str):
        return None
    return row(network, cut if isinstance(cut, str) else None, size if type(size) is int and size > 0 else None)


def _model(model: Raw) -> None:
    table = _row(model)
    if table is None:
        return
    if model.get("interpretable_layers") is None and table.last_conv:
        appended = model.get("appended_layer", True) is True
        model["interpretable_layers"] = [table.last_conv, *([table.appended.name] if appended else [])]
    if model.get("dropout") is None:
        model["dropout"] = table.dropout
    weights = _section(model, "weights") if model.get("weights") is not None else None
    if weights is not None:
        _weights(weights, table)


def _weights(weights: Raw, table: Network) -> None:
    """The layers of a trunk are not known here: left out, they stay so and mean all."""
    if weights.get("layers") is None and table.convs:
        weights["layers"] = list(table.convs)
    file = weights.get("file")
    if isinstance(file, str):
        if weights.get("channels") is None:
            weights["channels"] = channels_of(file)
        if weights.get("pixels") == pixels_of(file):
            del weights["pixels"]


def _filter(filter_loss: Raw, template: Raw | None) -> Raw:
    """A filter loss with the defaults of its form, which follows from the template's shape."""
    section = SHAPES.get((template or {}).get("shape", ""))
    own = section.form if section is not None and issubclass(section, PartTemplate) else FILTER["form"].default
    form = filter_loss.get("form", own)
    released = form == "released"
    of_form = {
        "weight": 0.1 if released else FILTER["weight"].default,
        "schedule": "epoch" if released else FILTER["schedule"].default,
        "beta_rate": FILTER["beta_rate"].default,
        "learn_beta": released and own == "released",
    }
    return {"form": form} | of_form | filter_loss


def _recipe(raw: Raw) -> Raw:
    """What the recipe of the spec says of each section; nothing without one, or where it cannot be known yet."""
    model, data, loss = (raw.get(name) for name in ("model", "data", "loss"))
    name: Any = raw.get("recipe")
    network = model.get("network") if isinstance(model, Mapping) else None
    if name not in get_args(Recipe) or not isinstance(network, str):
        return {}
    category = data.get("category") if isinstance(data, Mapping) else None
    categories = len(category) if isinstance(category, list | tuple) else 1
    classification = str(loss.get("classification", "logistic")) if isinstance(loss, Mapping) else "logistic"
    loaded = isinstance(model, Mapping) and model.get("weights") is not None
    return recipe(name, network, max(1, categories), classification, loaded)


def _train(train: Raw, of_recipe: Raw) -> None:
    """Writes out the recipe's values, and the final learning rate: the recipe's share of the first, else the first."""
    first, last = (of_recipe.get(name, 1.0) for name in ("learning_rate", "final_learning_rate"))
    for name, value in of_recipe.items():
        if name != "final_learning_rate":
            train.setdefault(name, value)
    if train.get("final_learning_rate") is None:
        rate = train.get("learning_rate", Train.model_fields["learning_rate"].default)
        if isinstance(rate, int | float) and rate > 0:
            train["final_learning_rate"] = rate if rate == first == last else significant(rate * last / first)


def with_defaults(raw: object) -> object:
    """The raw spec (nested mappings) with every default that depends on other fields written out.

    The input is left as it is. What is malformed is left to pydantic, which says where.
    """
    if not isinstance(raw, Mapping):
        return raw
    full: Raw = dict(raw)
    of_recipe = _recipe(full)
    if "template" in of_recipe:
        full.setdefault("template", of_recipe["template"])
    data = _section(full, "data") if "data" in full else None
    model = _section(full, "model") if "model" in full else None
    template = _section(full, "template") if "template" in full else None
    loss, train, evaluation = (_section(full, name) for name in ("loss", "train", "eval"))
    if "train" not in raw and "train" not in of_recipe:
        del full["train"]
    kind = data.get("kind") if data is not None else None
    if data is not None and isinstance(kind, str) and kind in DATA:
        full["data"] = with_negatives(data, DATA[kind].model_fields["negatives"].default)
    if model is not None:
        for name, value in of_recipe.get("model", {}).items():
            if model.get(name) is None:
                model[name] = value
        _model(model)
        layers = model.get("interpretable_layers")
        if evaluation is not None and evaluation.get("layer") is None and isinstance(layers, list | tuple) and layers:
            evaluation["layer"] = layers[-1]
    if train is not None:
        _train(train, of_recipe.get("train", {}))
    shape = template.get("shape") if template is not None else None
    if loss is not None and isinstance(shape, str):
        if "filter" not in loss:
            loss["filter"] = None if shape == "none" else dict(of_recipe.get("filter", {}))
        if isinstance(loss["filter"], BaseModel):
            loss["filter"] = loss["filter"].model_dump(mode="json", exclude_unset=True)
        if isinstance(loss["filter"], Mapping):
            loss["filter"] = _filter(dict(loss["filter"]), template)
    return full


def without_defaults(raw: Raw) -> Raw:
    """A resolved raw spec less the fields that only say what `with_defaults` would write there."""
    bare = raw
    for path in DERIVED + OF_RECIPES if raw.get("recipe") else DERIVED:
        if _value(bare, path) is _NONE:
            continue
        stripped = _less(bare, path)
        full = with_defaults(stripped)
        if isinstance(full, dict) and _value(full, path) == _value(bare, path):
            bare = stripped
    return bare


_NONE = object()


def _value(raw: Any, path: tuple[str, ...]) -> Any:
    """What lies at a path; `_NONE` where the path leads nowhere."""
    for name in path:
        if not isinstance(raw, Mapping) or name not in raw:
            return _NONE
        raw = raw[name]
    return raw


def _less(raw: Raw, path: tuple[str, ...]) -> Raw:
    """A copy without what lies at a path."""
    name, *below = path
    if not below:
        return {key: value for key, value in raw.items() if key != name}
    return {**raw, name: _less(raw[name], tuple(below))}


Recipe = Literal["released", "modern"]
RawRecipes = dict[str, Any]

BATCH = {"alexnet": 512, "vgg_m": 196, "vgg_s": 128, "vgg16": 32}
RATE = {"alexnet": 30.0, "vgg_m": 30.0, "vgg_s": 10.0, "vgg16": 1.0}
"""Factor on the learning rates 1e-4 to 1e-5."""


def recipe(name: Recipe, network: str, categories: int, classification: str, loaded: bool) -> RawRecipes:
    """Section -> field -> value, for so many categories. classification: `logistic` or `softmax`.
    loaded: whether some layers start from pretrained weights.

    Networks other than the paper's four have no released recipe; they get VGG-16's batch size and rate.
    """
    return _released(network, categories, classification, loaded) if name == "released" else _modern(categories)


def _released(network: str, categories: int, classification: str, loaded: bool) -> RawRecipes:
    batch, factor = BATCH.get(network, 32), RATE.get(network, 1.0)
    magnitude = 0.1
    if categories == 1:
        epochs, decay_epochs, first = 50, 10, factor * 1e-4
    else:
        epochs, decay_epochs, first = 80, 80, factor * categories * 1e-4
        if classification == "softmax":
            first /= 5 if categories <= 10 else 50
            magnitude *= 0.2 if categories <= 10 else 0.02
        elif categories > 10:
            first /= 10
    return {
        "model": {"dropout": 0.8, "appended_mask": "pooled"},
        "template": {"shape": "released", "tau": None, "width": 2.0},
        "filter": {"form": "released", "weight": significant(magnitude)},
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "optimizer": "sgd",
            "learning_rate": significant(first),
            "final_learning_rate": significant(first / 10),
            "decay": "log",
            "decay_epochs": decay_epochs,
            "warmup_epochs": 0,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "new_bias_rate": 2.0,
            **({"last_bias_rate": 5.0, "decay_loaded_biases": True} if loaded else {}),
        },
    }


def _modern(categories: int) -> RawRecipes:
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


def significant(value: float) -> float:
    """A positive number to ten digits, without the noise that a product has in its last ones."""
    return float(f"{value:.10g}")
