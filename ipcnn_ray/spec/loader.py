"""A YAML file and overrides to a checked spec, or to everything that is wrong with them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from ipcnn_ray.errors import Issue, SpecError
from ipcnn_ray.spec.defaults import with_defaults
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.messages import OURS, FieldIssue, field_issues, shown
from ipcnn_ray.spec.overrides import NotASection, applied
from ipcnn_ray.spec.search_validation import search_issues
from ipcnn_ray.spec.section import Loc, dotted, locate
from ipcnn_ray.spec.validation import run_issues

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
        raise SpecError([Issue(f"{name}:1", "the file is empty", "`ipcnn schema` says what a spec has")])
    if not isinstance(raw, dict):
        advice = "a spec is a mapping: name, data, model, template, train, one `field: value` per line"
        raise SpecError([Issue(f"{name}:1", f"the file is {shown(raw)}", advice)])
    raw = _overridden(raw, overrides, source)
    try:
        return Loaded(ExperimentSpec.model_validate(raw), source)
    except ValidationError as error:
        found = field_issues(error, ExperimentSpec)
        if not any(item["type"] == OURS for item in error.errors()):
            found += _across(raw, error)
    issues = [Issue(source.at(finding.loc), finding.what, finding.advice) for finding in found]
    raise SpecError(sorted(issues, key=lambda problem: _line(problem, name)))


def _line(problem: Issue, name: str) -> float:
    """Line in the file; what the command line says comes last."""
    return float(problem.where.removeprefix(f"{name}:")) if problem.where.startswith(f"{name}:") else float("inf")


def _overridden(raw: dict[str, Any], overrides: Sequence[str], source: Source) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    issues: list[Issue] = []
    for override in overrides:
        where = f"--set {override}"
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            issues.append(Issue(where, "is not of the form a.b=value", "for example --set train.epochs=5"))
            continue
        if path in settings:
            issues.append(Issue(where, f"{path} is set twice", "keep one of the two"))
        try:
            settings[path] = read_yaml(text, Source(where))
        except SpecError as error:
            issues += [Issue(where, problem.what, problem.advice) for problem in error.issues]
            continue
        source.set(tuple(path.split(".")), where)
    if issues:
        raise SpecError(issues)
    try:
        return applied(raw, settings, ExperimentSpec)
    except NotASection as error:
        where = source.at(tuple(error.path.split(".")))
        raise SpecError([Issue(where, error.path, str(error))]) from error


def _across(raw: dict[str, Any], error: ValidationError) -> list[FieldIssue]:
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
    for section, info in ExperimentSpec.model_fields.items():
        value = resolved.get(section, info.default) if isinstance(resolved, dict) else None
        with suppress(ValidationError):
            sound[section] = TypeAdapter(hints[section]).validate_python(value)
    taken = {dotted(loc) for loc in removed}

    def follows(path: str) -> bool:
        return any(path == gone or path.startswith(f"{gone}.") or gone.startswith(f"{path}.") for gone in taken)

    found = run_issues(sound) + search_issues(sound)
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


class _Loader(yaml.SafeLoader):
    """SafeLoader that leaves dates as text: a spec has none."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass
class Source:
    """Where the values of a spec come from."""

    name: str
    """Name of the file, as it was given."""
    paths: dict[Loc, str] = field(default_factory=dict)
    """Location in the spec -> `file:line`, or the option that set it."""

    def at(self, loc: Loc) -> str:
        """Where this was written; of what is not there, the section that it should be in."""
        if loc in self.paths:
            return self.paths[loc]
        below = next((place for known, place in self.paths.items() if loc and known[: len(loc)] == loc), None)
        if below is not None:
            return below
        return self.at(loc[:-1]) if loc else f"{self.name}:1"

    def line(self, mark: Any) -> str:
        return f"{self.name}:{mark.line + 1}"

    def set(self, loc: Loc, place: str) -> None:
        """Everything at and below this location now comes from `place`."""
        for known in [known for known in self.paths if known[: len(loc)] == loc]:
            del self.paths[known]
        self.paths[loc] = place


class _Reader:
    """One reading of one document; collects problems in place of stopping at the first."""

    def __init__(self, loader: _Loader, source: Source) -> None:
        self.loader = loader
        self.source = source
        self.issues: list[Issue] = []
        self.open: set[int] = set()
        self.merged: set[int] = set()

    def problem(self, node: yaml.Node, what: str, advice: str) -> None:
        found = Issue(self.source.line(node.start_mark), what, advice)
        if found not in self.issues:
            self.issues.append(found)

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        if id(node) in self.open:
            self.problem(node, dotted(loc), "an anchor cannot contain itself; write the value out")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, loc)
            if isinstance(node, yaml.SequenceNode):
                return self.sequence(node, loc)
            return self.scalar(node, loc)
        finally:
            self.open.remove(id(node))

    def scalar(self, node: yaml.Node, loc: Loc) -> Any:
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.problem(node, f"{dotted(loc)} = {node.value}", f"cannot be read as {node.tag}; write a plain value")
            return None

    def sequence(self, node: yaml.SequenceNode, loc: Loc) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.source.paths[(*loc, index)] = self.source.line(item.start_mark)
            items.append(self.value(item, (*loc, index)))
        return items

    def mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[Any, Any]:
        if id(node) not in self.merged:
            self.twice(node, loc)
            self.merge(node)
        result = {}
        for key_node, value_node in node.value:
            key = self.loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                text = getattr(key_node, "value", key)
                shown = text if isinstance(text, str) else "a list or mapping"
                self.problem(key_node, f"{dotted((*loc, shown))} as a key", "a key must be text; put quotes around it")
                continue
            self.source.paths[(*loc, key)] = self.source.line(key_node.start_mark)
            result[key] = self.value(value_node, (*loc, key))
        return result

    def twice(self, node: yaml.MappingNode, loc: Loc) -> None:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in lines:
                path = dotted((*loc, key_node.value))
                self.problem(key_node, f"{path} is there twice", f"first on line {lines[key_node.value]}; keep one")
            lines.setdefault(key_node.value, key_node.start_mark.line + 1)

    def merge(self, node: yaml.MappingNode) -> None:
        self.merged.add(id(node))
        try:
            self.loader.flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            self.problem(node, "<<", f"{error.problem}")


def read_yaml(text: str, source: Source) -> Any:
    """The document's value; places go to `source`. Raises SpecError with everything that is wrong with the YAML."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is None:
            return None
        reader = _Reader(loader, source)
        value = reader.value(node, ())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        raise SpecError(
            [Issue(f"{source.name}:{line}", f"the character {character}", "YAML does not allow it; delete it")]
        ) from error
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax(error, source)]) from error
    if reader.issues:
        raise SpecError(reader.issues)
    return value


def _syntax(error: yaml.MarkedYAMLError, source: Source) -> Issue:
    mark = error.problem_mark or error.context_mark
    where = source.line(mark) if mark is not None else source.name
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return Issue(where, "a tab in the indentation", "YAML indents with spaces; replace the tab")
    if isinstance(error, yaml.composer.ComposerError) and error.context == "expected a single document in the stream":
        return Issue(where, "a second document begins here", "one file is one experiment; make it two files")
    began = f" that begins on line {error.context_mark.line + 1}" if error.context_mark is not None else ""
    context = f"{error.context}{began}; " if error.context else ""
    return Issue(where, f"not YAML: {problem}", f"{context}mend it here or a line above")


def read_text(path: Path, name: str) -> str:
    """The file's text. Raises SpecError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problem = Issue(name, "there is no such file", "give the path of a spec, such as specs/uniform_sweep.yaml")
    except IsADirectoryError:
        problem = Issue(name, "is a folder", "give the path of a spec, such as specs/uniform_sweep.yaml")
    except UnicodeDecodeError as error:
        problem = Issue(name, f"byte {error.start} is not UTF-8", "save the file as UTF-8 text")
    except OSError as error:
        problem = Issue(name, f"cannot be read: {error.strerror}", "check the file's permissions")
    raise SpecError([problem])
