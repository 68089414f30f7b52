"""The digest of an experiment: what changes its numbers, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ipcnn_ray.spec.base import Later, Section
from ipcnn_ray.spec.experiment import ExperimentSpec

LENGTH = 8
"""Hexadecimal characters of a digest."""


def _normal(value: Any) -> Any:
    """2 and 2.0 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return value


def _content(section: Section, dumped: dict[str, Any]) -> dict[str, Any]:
    """A dumped section without the `Later` fields that have their defaults."""
    kept = dict(dumped)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name in kept and isinstance(value, Section):
            kept[name] = _content(value, kept[name])
        elif name in kept and value == field.default and any(isinstance(mark, Later) for mark in field.metadata):
            del kept[name]
    return kept


def digest(spec: ExperimentSpec) -> str:
    """First characters of the SHA-256 of the resolved spec without its name and `compute`, as canonical JSON.

    The order of keys, the way a number is written, the number of workers and the machine do not change it, nor does
    a field marked `Later` at its default.
    """
    content = _normal(_content(spec, spec.model_dump(mode="json", exclude={"name", "compute"})))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
