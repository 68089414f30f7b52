"""A commented spec to begin with, written from the models themselves: a field that is new there is in it at once."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.section import Section, bare, kind_field, sections

WIDTH = 110
STARTER: Mapping[str, Any] = {
    "seed": 0,
    "data": {"kind": "drawn_animals", "category": "cow"},
    "model": {"network": "compact"},
    "template": {"shape": "gradient", "norm": "l1", "beta": 2.0, "tau": 0.1},
    "loss": {"filter": {"weight": 3.0e-4}},
    "train": {"epochs": 12, "batch_size": 32, "learning_rate": 0.03},
    "eval": {"every": 1},
    "compute": {"workers": 1},
    "search": {
        "kind": "grid",
        "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}],
        "grid": {"template.norm": ["l1", "l2"]},
    },
}
"""What the first spec asks: do two templates localise better than the plain network, on drawn animals?"""

HEAD = """\
# {name}: what it asks, in a sentence.
#
#   ipcnn submit {file}
#
# A line that begins with `# ` and a field is that field's default: take the `# ` away to set it.
# `ipcnn validate {file}` tells every mistake at once; `ipcnn plan {file}` what it would run.
"""
ONE_RUN = "Without this section the experiment is a single run."


def starter(name: str, file: str) -> str:
    """YAML of a spec that validates: every section, every field with what it says of itself, and its default."""
    lines = HEAD.format(name=name, file=file).splitlines()
    chosen = {"name": name, **STARTER}
    for field, info in ExperimentSpec.model_fields.items():
        lines.append("")
        if field == "search":
            lines += _comment(ONE_RUN, 0)
        lines += _field(field, info, chosen, 0)
    return "\n".join(lines) + "\n"


def _field(name: str, info: FieldInfo, chosen: Mapping[str, Any], depth: int) -> list[str]:
    """A field with its comment: written where it is chosen, else as a comment with its default."""
    options = sections(info.annotation)
    value = chosen.get(name, PydanticUndefined)
    lines = _comment(_words(info, options), depth)
    if options and isinstance(value, Mapping):
        return [*lines, f"{_indent(depth)}{name}:", *_section(_of(options, value), value, depth + 1)]
    if value is not PydanticUndefined:
        return [*lines, *_yaml(name, value, depth)]
    if info.is_required():
        return lines  # only of a kind that was not chosen
    default = info.get_default(call_default_factory=True)
    plain = default.model_dump(mode="json") if isinstance(default, Section) else default
    return [*lines, *(f"{_indent(depth)}# {line[2 * depth :]}" for line in _yaml(name, plain, depth))]


def _section(section: type[Section], chosen: Mapping[str, Any], depth: int) -> list[str]:
    return [line for name, info in section.model_fields.items() for line in _field(name, info, chosen, depth)]


def _of(options: Mapping[str, type[Section]], value: Mapping[str, Any]) -> type[Section]:
    """The section that a value chooses by its kind."""
    if len(options) == 1:
        return next(iter(options.values()))
    for section in options.values():
        kind = kind_field(section)
        if kind and value.get(kind[0]) == kind[1]:
            return section
    raise ValueError(f"value = {dict(value)!r} is none of {sorted(options)}")


def _words(info: FieldInfo, options: Mapping[str, type[Section]]) -> str:
    """What a field says of itself, its values where they are listed, and of a section its kinds."""
    said = cleandoc(info.description or "")
    kind = bare(info.annotation)
    if get_origin(kind) is Literal and len(get_args(kind)) > 1:
        said += f" One of: {', '.join(map(str, get_args(kind)))}."
    if len(options) > 1:
        kinds = [f"{tag} ({_first(section)})" for tag, section in options.items()]
        said += f" Kinds: {'; '.join(kinds)}. `ipcnn schema` has the fields of each."
    return said


def _first(section: type[Section]) -> str:
    """The first sentence of a section's docstring."""
    return cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")


def _indent(depth: int) -> str:
    return "  " * depth


def _comment(text: str, depth: int) -> list[str]:
    """Remarks begin with `##`, so that what can be taken out of its comment is told from what cannot."""
    start = f"{_indent(depth)}## "
    paragraph = " ".join(text.split())
    return textwrap.wrap(paragraph, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _yaml(name: str, value: Any, depth: int) -> list[str]:
    plain = _plain(value)
    flow = isinstance(plain, list) and not any(isinstance(one, dict) for one in plain)
    text = yaml.safe_dump({name: plain}, sort_keys=False, default_flow_style=None if flow else False, width=WIDTH)
    return [f"{_indent(depth)}{line}" for line in text.splitlines()]


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
