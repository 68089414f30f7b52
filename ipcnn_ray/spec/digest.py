"""The digest of an experiment: what changes its numbers, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ipcnn_ray.spec.experiment import ExperimentSpec

LENGTH = 8
"""Hexadecimal characters of a digest."""
ADDED: dict[tuple[str, ...], Any] = {
    ("search", "repeats"): 1,
    ("search", "constraints"): [],
    ("search", "objective", "kind"): "combined",
}
"""Fields that specs did not have from the beginning, with the value that means what there was before: left out where
they have it, so that older specs keep their digests."""


def _normal(value: Any) -> Any:
    """2 and 2.0 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return value


def _without_added(content: dict[str, Any]) -> dict[str, Any]:
    for (*above, name), before in ADDED.items():
        section: Any = content
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(name) == before:
            del section[name]
    return content


def digest(spec: ExperimentSpec) -> str:
    """First characters of the SHA-256 of the resolved spec without its name and `compute`, as canonical JSON.

    The order of keys, the way a number is written, the number of workers and the machine do not change it.
    """
    content = _normal(_without_added(spec.model_dump(mode="json", exclude={"name", "compute"})))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
