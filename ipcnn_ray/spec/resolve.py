"""Defaults that depend on other sections: written out, and taken back.

A value that equals its default follows it. The resolved spec of a search over `train.learning_rate` says
`final_learning_rate: 0.01`, and a run of that search still ends at its own learning rate: otherwise a spec and
its resolved form would have one digest and train different runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ipcnn_ray.spec.model import channels_of, pixels_of
from ipcnn_ray.spec.networks import Network, row
from ipcnn_ray.spec.training import FilterLoss, Train

Raw = dict[str, Any]
DERIVED = (
    ("loss", "filter"),
    ("eval", "layer"),
    ("model", "interpretable_layers"),
    ("model", "dropout"),
    ("model", "weights", "layers"),
    ("model", "weights", "channels"),
    ("train", "final_learning_rate"),
)
"""Path of every default that depends on other fields; a field comes before what it depends on."""


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


def with_defaults(raw: object) -> object:
    """The raw spec (nested mappings) with every default that depends on other fields written out.

    The input is left as it is. What is malformed is left to pydantic, which says where.
    """
    if not isinstance(raw, Mapping):
        return raw
    full: Raw = dict(raw)
    model = _section(full, "model") if "model" in full else None
    template = _section(full, "template") if "template" in full else None
    loss, train, evaluation = (_section(full, name) for name in ("loss", "train", "eval"))
    if "train" not in raw:
        del full["train"]
    if model is not None:
        _model(model)
        layers = model.get("interpretable_layers")
        if evaluation is not None and evaluation.get("layer") is None and isinstance(layers, list | tuple) and layers:
            evaluation["layer"] = layers[-1]
    if train is not None and train.get("final_learning_rate") is None:
        rate = train.get("learning_rate", Train.model_fields["learning_rate"].default)
        if isinstance(rate, int | float) and rate > 0:
            train["final_learning_rate"] = rate
    if loss is not None and "filter" not in loss and template is not None and isinstance(template.get("shape"), str):
        loss["filter"] = None if template["shape"] == "none" else FilterLoss().model_dump(mode="json")
    return full


def without_defaults(raw: Raw) -> Raw:
    """A resolved raw spec less the fields that only say what `with_defaults` would write there."""
    bare = dict(raw)
    for path in DERIVED:
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
