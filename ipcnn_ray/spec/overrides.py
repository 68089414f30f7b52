"""Fields set by dotted path, by a search or on the command line, with one meaning for both.

- Setting the kind of a section (`template.shape`) keeps those of its fields that the new kind has.
- A mapping replaces the whole section.
- Taking the template away takes the filter loss away, unless the settings name that too.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ipcnn_ray.spec.section import Section, at, kind_field, sections

Settings = Mapping[str, Any]
"""Dotted path of a field -> its value."""


class NotASection(ValueError):
    """A path leads through something that is not a section."""

    def __init__(self, path: str, section: str) -> None:
        self.path = path
        super().__init__(f"{section} is not a section and has no fields")


def _kinds(root: type[Section], path: str) -> dict[str, type[Section]]:
    """For a field that tells sections apart: the section of each of its values."""
    above, _, name = path.rpartition(".")
    owners = [owner for annotation in at(root, above) for owner in sections(annotation).values()] if above else []
    named = {owner: kind_field(owner) for owner in owners}
    return {kind[1]: owner for owner, kind in named.items() if kind and kind[0] == name}


def applied(raw: Mapping[str, Any], settings: Settings, root: type[Section]) -> dict[str, Any]:
    """A copy of the raw spec with these fields set. Raises NotASection."""
    result: dict[str, Any] = deepcopy(dict(raw))
    kinds = {path: _kinds(root, path) for path in settings}
    for path in sorted(settings, key=lambda path: not kinds[path]):  # a section's kind before its other fields
        *above, name = path.split(".")
        section = result
        for depth, part in enumerate(above, start=1):
            if section.get(part) is None:
                section[part] = {}
            if not isinstance(section[part], dict):
                raise NotASection(path, ".".join(above[:depth]))
            section = section[part]
        new = kinds[path].get(settings[path]) if isinstance(settings[path], str) else None
        if new is not None:
            for other in [field for field in section if field not in new.model_fields]:
                del section[other]
        section[name] = deepcopy(settings[path])
    _drop_filter_loss(result, settings)
    return result


def _drop_filter_loss(result: dict[str, Any], settings: Settings) -> None:
    template, loss = result.get("template"), result.get("loss")
    plain = isinstance(template, dict) and template.get("shape") == "none"
    named = {path.split(".")[0] for path in settings}
    if plain and "template" in named and "loss" not in named and isinstance(loss, dict):
        loss.pop("filter", None)
