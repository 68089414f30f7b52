"""A commented spec to start from, generated from the models, so that it always has all their fields."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.section import Section, annotation_of, kind_field, sections, unwrapped

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
"""The question of the first spec: do two templates localise better than the plain network, on drawn animals?"""

OWN_PHOTOGRAPHS: Mapping[str, Any] = {"train": {"epochs": 30, "batch_size": 16, "learning_rate": 0.01}}
"""Changes of STARTER for one's own photographs."""
BLIND = "mutual_information_score"
"""Metric in place of location instability, for data without landmarks."""

HEAD = """\
# {name}: its question, in a sentence.
#
#   ipcnn submit {file}
#
# A line that begins with `# ` and a field is that field's default: remove the `# ` to set it.
# `ipcnn validate {file}` lists every mistake at once; `ipcnn plan {file}` the runs.
"""


def starter(name: str, file: str, data: Mapping[str, Any] | None = None) -> str:
    """Return the YAML of a valid spec: every section, every field with its description, and its default.

    data: The data section for one's own photographs (`data.section_of_files`). Default: drawn animals.
    """
    lines = HEAD.format(name=name, file=file).splitlines()
    values = {"name": name, **STARTER, **(_own(data) if data else {})}
    for field, info in ExperimentSpec.model_fields.items():
        lines.append("")
        if field == "search":
            lines += _comment("Without this section the experiment is a single run.", 0)
        lines += _field(field, info, values, 0)
    return "\n".join(lines) + "\n"


def _own(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that differ from STARTER for one's own photographs."""
    several = isinstance(data.get("category"), list)
    sections = {**OWN_PHOTOGRAPHS, "data": {**data, "negatives": 0} if several else dict(data)}
    if data.get("landmarks"):
        return sections
    objective = {"kind": "combined", "interpretability": BLIND}
    search = {**STARTER["search"], "objective": objective}
    return {**sections, "eval": {**STARTER["eval"], "measures": [BLIND]}, "search": search}


def _field(name: str, info: FieldInfo, values: Mapping[str, Any], depth: int) -> list[str]:
    """Return the lines of a field: its description, and its value, or its default as a comment."""
    options = sections(annotation_of(info))
    value = values.get(name, PydanticUndefined)
    lines = _comment(_description(info, options), depth)
    if options and isinstance(value, Mapping):
        section = next(option for tag, option in options.items() if tag in ("", *value.values()))
        kind = kind_field(section)
        fields = sorted(section.model_fields.items(), key=lambda item: kind is None or item[0] != kind[0])
        below = [line for key, field in fields for line in _field(key, field, value, depth + 1)]
        return [*lines, f"{'  ' * depth}{name}:", *below]
    if value is not PydanticUndefined:
        return [*lines, *_yaml(name, value, depth)]
    if info.is_required():
        return lines  # needed by a kind of section that is not in STARTER
    default = _yaml(name, info.get_default(call_default_factory=True), depth)
    return [*lines, *(f"{'  ' * depth}# {line[2 * depth :]}" for line in default)]


def _description(info: FieldInfo, options: Mapping[str, type[Section]]) -> str:
    """Return the description of a field, its values if they are listed, and the kinds of a section."""
    text = cleandoc(info.description or "")
    annotation = unwrapped(info.annotation)
    if get_origin(annotation) is Literal and len(get_args(annotation)) > 1:
        text += f" One of: {', '.join(map(str, get_args(annotation)))}."
    if len(options) > 1:
        kinds = [f"{tag} ({_first_sentence(section)})" for tag, section in options.items()]
        text += f" Kinds: {'; '.join(kinds)}. `ipcnn schema` has the fields of each."
    return text


def _first_sentence(section: type[Section]) -> str:
    return cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")


def _comment(text: str, depth: int) -> list[str]:
    """Return text as comments that begin with `##`; those with `# ` are fields that can be set."""
    start = f"{'  ' * depth}## "
    paragraph = " ".join(text.split())
    return textwrap.wrap(paragraph, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _yaml(name: str, value: Any, depth: int) -> list[str]:
    plain = to_jsonable_python(value)
    flow = isinstance(plain, list) and not any(isinstance(item, dict) for item in plain)
    text = yaml.safe_dump({name: plain}, sort_keys=False, default_flow_style=None if flow else False, width=WIDTH)
    return [f"{'  ' * depth}{line}" for line in text.splitlines()]
