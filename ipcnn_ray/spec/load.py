"""A YAML file and overrides to a checked spec, or to everything that is wrong with them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ipcnn_ray.errors import Problem, SpecError
from ipcnn_ray.spec.checks import run_findings
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.fields import Loc, dotted, locate
from ipcnn_ray.spec.findings import OURS, Finding, findings, shown
from ipcnn_ray.spec.resolve import with_defaults
from ipcnn_ray.spec.search_checks import search_findings
from ipcnn_ray.spec.settings import NotASection, applied
from ipcnn_ray.spec.source import Source, read_text, read_yaml

STAND_INS = (("train", "epochs", 1), ("search", "trials", 1))
"""In place of a needed value that is wrong or missing, so that the rest of its section can still be checked."""


@dataclass(frozen=True)
class Loaded:
    """A checked spec and where its values were written."""

    spec: ExperimentSpec
    source: Source


def load(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Loaded:
    """Reads a spec; each override is `a.b=value`, its value YAML. Raises SpecError with every problem."""
    name = fspath(path)
    return loads(read_text(Path(name), name), name, overrides)


def loads(text: str, name: str, overrides: Sequence[str] = ()) -> Loaded:
    """As `load`, of a text that came from `name`."""
    source = Source(name)
    raw = read_yaml(text, source)
    if raw is None:
        raise SpecError([Problem(f"{name}:1", "the file is empty", "`ipcnn schema` says what a spec has")])
    if not isinstance(raw, dict):
        advice = "a spec is a mapping: name, data, model, template, train, one `field: value` per line"
        raise SpecError([Problem(f"{name}:1", f"the file is {shown(raw)}", advice)])
    raw = _overridden(raw, overrides, source)
    try:
        return Loaded(ExperimentSpec.model_validate(raw), source)
    except ValidationError as error:
        found = findings(error, ExperimentSpec)
        if not any(item["type"] == OURS for item in error.errors()):
            found += _across(raw, error)
    problems = [Problem(source.at(finding.loc), finding.what, finding.advice) for finding in found]
    raise SpecError(sorted(problems, key=lambda problem: _line(problem, name)))


def _line(problem: Problem, name: str) -> float:
    """Line in the file; what the command line says comes last."""
    return float(problem.where.removeprefix(f"{name}:")) if problem.where.startswith(f"{name}:") else float("inf")


def _overridden(raw: dict[str, Any], overrides: Sequence[str], source: Source) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    for override in overrides:
        where = f"--set {override}"
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            problems.append(Problem(where, "is not of the form a.b=value", "for example --set train.epochs=5"))
            continue
        if path in settings:
            problems.append(Problem(where, f"{path} is set twice", "keep one of the two"))
        try:
            settings[path] = read_yaml(text, Source(where))
        except SpecError as error:
            problems += [Problem(where, problem.what, problem.advice) for problem in error.problems]
            continue
        source.set(tuple(path.split(".")), where)
    if problems:
        raise SpecError(problems)
    try:
        return applied(raw, settings, ExperimentSpec)
    except NotASection as error:
        where = source.at(tuple(error.path.split(".")))
        raise SpecError([Problem(where, error.path, str(error))]) from error


def _across(raw: dict[str, Any], error: ValidationError) -> list[Finding]:
    """Findings across fields, of the sections that are sound once the wrong values are taken out.

    What follows from a value that was taken out is left unsaid.
    """
    removed = [_whole_list(locate(ExperimentSpec, item["loc"])[0]) for item in error.errors()]
    rest = _without(raw, removed)
    for above, needed, stand_in in STAND_INS:
        if isinstance(rest.get(above), dict):
            rest[above].setdefault(needed, stand_in)
    resolved = with_defaults(rest)
    sound: dict[str, Any] = {}
    hints = get_type_hints(ExperimentSpec, include_extras=True)
    for section, field in ExperimentSpec.model_fields.items():
        value = resolved.get(section, field.default) if isinstance(resolved, dict) else None
        with suppress(ValidationError):
            sound[section] = TypeAdapter(hints[section]).validate_python(value)
    taken = {dotted(loc) for loc in removed}

    def follows(path: str) -> bool:
        return any(path == gone or path.startswith(f"{gone}.") or gone.startswith(f"{path}.") for gone in taken)

    found = run_findings(sound) + search_findings(sound)
    return [one for one in found if not any(follows(path) for path in (dotted(one.loc), *one.about))]


def _whole_list(loc: Loc) -> Loc:
    """An entry cannot be taken out of a list without moving the others: the list goes."""
    return loc[:-1] if isinstance(loc[-1], int) else loc


def _without(value: Any, removed: Sequence[Loc]) -> Any:
    """A copy of nested mappings and lists without these locations."""
    gone = {loc[0] for loc in removed if len(loc) == 1}

    def below(key: int | str) -> list[Loc]:
        return [loc[1:] for loc in removed if len(loc) > 1 and loc[0] == key]

    if isinstance(value, Mapping):
        return {key: _without(item, below(key)) for key, item in value.items() if key not in gone}
    if isinstance(value, list):
        return [_without(item, below(index)) for index, item in enumerate(value) if index not in gone]
    return value
