"""The experiment: what to train on which data, and how. Paths and credentials come from the environment."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.defaults import Recipe, with_defaults, without_defaults
from ipcnn_ray.spec.messages import as_validation_error
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.overrides import Settings, apply_settings
from ipcnn_ray.spec.search import Search
from ipcnn_ray.spec.section import Integer, OmitDefaultFromDigest, Section, Slug
from ipcnn_ray.spec.template import Template
from ipcnn_ray.spec.training import Compute, Eval, Loss, Train
from ipcnn_ray.spec.validation import cross_field_issues, run_expansion_issues

DIGEST_LENGTH = 8
"""Hexadecimal characters of a digest."""


def _without_recipe(schema: dict[str, Any]) -> None:
    """Require in the JSON Schema what a recipe provides, if there is no recipe."""
    schema["required"] = [name for name in schema["required"] if name not in ("template", "train")]
    train = {"required": ["train"], "properties": {"train": {"required": ["epochs"]}}}
    schema["allOf"] = [
        {"if": {"properties": {"recipe": {"enum": [None, "modern"]}}}, "then": {"required": ["template"]}},
        {"if": {"properties": {"recipe": {"type": "null"}}}, "then": train},
    ]


class ExperimentSpec(Section):
    """One YAML file: one experiment, a single run or a search."""

    model_config = ConfigDict(json_schema_extra=_without_recipe)

    name: Slug
    """Name of the experiment."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of initial weights, order of images, dropout, and the search."""
    recipe: Annotated[Recipe | None, OmitDefaultFromDigest()] = None
    """Source of the values of fields that are left out. `released`: training as in the authors' code, by network.
    `modern`: our faster training. Default: the fields' own defaults."""
    data: Data
    """The images and their landmarks."""
    model: Model
    """The network, and which of its layers are interpretable."""
    template: Template
    """The part template of the interpretable layers."""
    loss: Loss = Loss()
    """The classification loss and the filter loss."""
    train: Train
    """How the network is trained."""
    eval: Eval = Eval()
    """What is measured after an epoch."""
    compute: Compute = Compute()
    """Resources of a run; not part of the digest."""
    search: Search | None = None
    """The runs of this experiment. Default: a single one."""

    @model_validator(mode="before")
    @classmethod
    def _write_defaults(cls, raw: object) -> object:
        """Write out the defaults that depend on other sections, so that a resolved spec is complete."""
        return with_defaults(raw)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise pydantic's ValidationError with every issue across fields, at its location."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        issues = cross_field_issues(values, type(self))
        if self.search is not None and not issues:
            issues = run_expansion_issues(self.search, type(self), self.run_spec)
        if issues:
            raise as_validation_error("ExperimentSpec", issues)
        return self

    def run_spec(self, settings: Settings) -> Self:
        """Return the spec of one run: this experiment without its search and with these fields set.

        Raises ValidationError if the settings do not make a valid run, NotASection as `apply_settings`.
        """
        raw = {**without_defaults(self.model_dump(mode="json")), "search": None}
        raw["compute"] = {**raw["compute"], "concurrent_runs": None}
        return type(self).model_validate(apply_settings(raw, settings, type(self)))

    def digest(self) -> str:
        """Return the first characters of the SHA-256 of the resolved spec without `name` and `compute`, as JSON.

        The order of keys, the notation of numbers and fields with the mark `OmitDefaultFromDigest` at their default
        do not change it.
        """
        content = _content(self, self.model_dump(mode="json", exclude={"name", "compute"}))
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def _content(section: Section, dumped: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a dumped section that counts for its digest."""
    content = {}
    for name, value in dumped.items():
        field, original = type(section).model_fields[name], getattr(section, name)
        omits_default = any(isinstance(mark, OmitDefaultFromDigest) for mark in field.metadata)
        if isinstance(original, Section):
            content[name] = _content(original, value)
        elif not (omits_default and original == field.default):
            content[name] = _canonical(value)
    return content


def _canonical(value: Any) -> Any:
    """Return a value in which 2 and 2.0 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return [_canonical(item) for item in value] if isinstance(value, list) else value
