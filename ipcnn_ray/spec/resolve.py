"""Defaults that depend on other sections: written out, and taken back.

A value that equals its default follows it. The resolved spec of a search over `train.learning_rate` says
`final_learning_rate: 0.01`, and a run of that search still ends at its own learning rate: otherwise a spec and
its resolved form would have one digest and train different runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ipcnn_ray.spec.data import Data, with_negatives
from ipcnn_ray.spec.fields import sections
from ipcnn_ray.spec.networks import NETWORKS
from ipcnn_ray.spec.training import FilterLoss, Train

Raw = dict[str, Any]
DATA = sections(Data)
"""The data sections by kind."""
DERIVED = (
    ("data", "negatives"),
    ("loss", "filter"),
    ("eval", "layer"),
    ("model", "interpretable_layers"),
    ("model", "dropout"),
    ("train", "final_learning_rate"),
)
"""Section and field of every default that depends on other fields; a field comes before what it depends on."""


def _section(raw: Raw, name: str) -> Raw | None:
    """A copy of a section as a mapping, put in place; empty where it is absent, None where it is something else."""
    section = raw.get(name, {})
    if isinstance(section, BaseModel):
        section = section.model_dump(mode="json", exclude_unset=True)
    if not isinstance(section, Mapping):
        return None
    raw[name] = dict(section)
    return raw[name]  # type: ignore[no-any-return]


def _model(model: Raw) -> None:
    network = model.get("network")
    table = NETWORKS.get(network) if isinstance(network, str) else None
    if table is None:
        return
    if model.get("interpretable_layers") is None:
        appended = model.get("appended_layer", True) is True
        model["interpretable_layers"] = [table.last_conv, *([table.appended.name] if appended else [])]
    if model.get("dropout") is None:
        model["dropout"] = table.dropout


def with_defaults(raw: object) -> object:
    """The raw spec (nested mappings) with every default that depends on other fields written out.

    The input is left as it is. What is malformed is left to pydantic, which says where.
    """
    if not isinstance(raw, Mapping):
        return raw
    full: Raw = dict(raw)
    data = _section(full, "data") if "data" in full else None
    model = _section(full, "model") if "model" in full else None
    template = _section(full, "template") if "template" in full else None
    loss, train, evaluation = (_section(full, name) for name in ("loss", "train", "eval"))
    if "train" not in raw:
        del full["train"]
    kind = data.get("kind") if data is not None else None
    if data is not None and isinstance(kind, str) and kind in DATA:
        full["data"] = with_negatives(data, DATA[kind].model_fields["negatives"].default)
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
    for section, field in DERIVED:
        stripped = {**bare, section: {key: value for key, value in bare[section].items() if key != field}}
        full = with_defaults(stripped)
        if isinstance(full, dict) and full[section].get(field) == bare[section].get(field):
            bare = stripped
    return bare
