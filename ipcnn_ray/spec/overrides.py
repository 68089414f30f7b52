"""Fields set by dotted path, by `--set` on the command line, a named run, a grid or a space.

- Setting the kind of a section (`template.shape`) keeps those of its fields that the new kind has.
- A mapping replaces the whole section.
- Setting `template.shape` to `none` removes the filter loss, unless the settings name a field of it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ipcnn_ray.spec.section import Section, annotations_at, kind_field, sections

Settings = Mapping[str, Any]
"""Dotted path of a field -> its value."""


class NotASection(ValueError):
    """A path leads through a value that is not a section."""

    def __init__(self, path: str, section: str) -> None:
        self.path = path
        super().__init__(f"{section} is not a section and has no fields")


def apply_settings(raw: Mapping[str, Any], settings: Settings, root: type[Section]) -> dict[str, Any]:
    """Return a copy of the raw spec with these fields set.

    Raises NotASection if a path leads through a value that is not a section.
    """
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
    template, loss = result.get("template"), result.get("loss")
    plain = isinstance(template, dict) and template.get("shape") == "none"
    changed = {path.split(".")[0] for path in settings}
    if plain and "template" in changed and "loss" not in changed and isinstance(loss, dict):
        loss.pop("filter", None)
    return result


def _kinds(root: type[Section], path: str) -> dict[str, type[Section]]:
    """Return the section of each value of a field that names the kind of a section; empty for other fields."""
    above, _, name = path.rpartition(".")
    owners = [owner for kind in annotations_at(root, above) for owner in sections(kind).values()] if above else []
    kinds = {owner: kind_field(owner) for owner in owners}
    return {kind[1]: owner for owner, kind in kinds.items() if kind and kind[0] == name}
