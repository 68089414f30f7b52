"""A YAML file and overrides to a checked spec, or to everything that is wrong with them at once.

Scalars are those of YAML 1.1 as PyYAML reads them, with the numbers of YAML 1.2:

- `1e-4`, `1E5` and `.5e3` are numbers, as in YAML 1.2. In quotes they are text.
- `yes`, `no`, `on` and `off` are booleans, as in YAML 1.1.
- `12:30:00` and dates are text. (YAML 1.1 has numbers in base 60.)
- `010` is an error: it is 8 in YAML 1.1 and 10 in YAML 1.2.
"""

from __future__ import annotations

import io
import json
import re
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
from ipcnn_ray.spec.messages import CHECK, field_issues
from ipcnn_ray.spec.overrides import NotASection, apply_settings
from ipcnn_ray.spec.section import FieldIssue, Loc, as_yaml, dotted, locate
from ipcnn_ray.spec.validation import cross_field_issues
from ipcnn_ray.utils.text import shortened

STAND_INS = (("train", "epochs", 1), ("search", "trials", 1))
"""Values of required fields that are wrong or missing, so that the rest of their section can still be checked."""
MOST_BYTES = 1 << 20
"""Size of the largest file that is read."""
MOST_VALUES = 20_000
"""Number of values, those of aliases counted each time; some specs have a template of 100 x 100."""
MOST_LEVELS = 50
"""Depth of sections and lists."""
SHOWN = 100
"""Characters of a wrong value in a message."""
MOST_BITS = 64
"""Size of the largest whole number."""


@dataclass
class Source:
    """Lines of the values of a spec."""

    name: str
    """Name of the file as given by the user."""
    origins: dict[Loc, str] = field(default_factory=dict)
    """Location in the spec -> `file:line`, or the option that set it."""

    def at(self, loc: Loc) -> str:
        """Return the origin of a value; for an absent value, that of the section it belongs to."""
        if loc in self.origins:
            return self.origins[loc]
        child = next((origin for known, origin in self.origins.items() if loc and known[: len(loc)] == loc), None)
        if child is not None:
            return child
        return self.at(loc[:-1]) if loc else f"{self.name}:1"

    def line(self, mark: Any) -> str:
        return f"{self.name}:{mark.line + 1}"

    def set(self, loc: Loc, origin: str) -> None:
        """Set the origin of everything at and below a location."""
        for known in [known for known in self.origins if known[: len(loc)] == loc]:
            del self.origins[known]
        self.origins[loc] = origin


@dataclass(frozen=True)
class Loaded:
    """A checked spec and the lines of its values."""

    spec: ExperimentSpec
    source: Source


def load(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Loaded:
    """Read and check a spec file at `path`; `overrides` are settings of the form `a.b=value`, with the value in YAML.

    Returns the spec with its source, by which errors name their lines.
    Raises SpecError with every issue of the file and the overrides.
    """
    name = fspath(path)
    return loads(_read_text(name), name, overrides)


def load_spec(path: str | PathLike[str], overrides: Sequence[str] | Mapping[str, Any] = ()) -> Loaded:
    """Read and check a spec file, as `ipcnn validate` does::

        loaded = ipcnn_ray.load_spec("specs/uniform_sweep.yaml", {"train.epochs": 4, "template.norm": "l2"})
        print(loaded.spec.train.epochs)

    Args:
        path: Of a YAML file.
        overrides: Values of fields by their dotted path; or texts `a.b=value` with the value in YAML, as of `--set`.

    Returns:
        The spec, as `spec`, with its source, by which errors name their lines.

    Raises:
        SpecError: Something is wrong in the file or the overrides; `issues` has everything, each with its line.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{name}={json.dumps(value)}" for name, value in overrides.items()]
    return load(path, overrides)


def loads(text: str, name: str, overrides: Sequence[str] = ()) -> Loaded:
    """As `load`, for the text of a file called `name`."""
    source = Source(name)
    raw = read_yaml(text, source)
    if raw is None:
        raise SpecError([Issue(f"{name}:1", "the file is empty", "`ipcnn schema` lists the fields of a spec")])
    if not isinstance(raw, dict):
        advice = "a spec is a mapping: name, data, model, template, train, one `field: value` per line"
        raise SpecError([Issue(f"{name}:1", f"the file is {as_yaml(raw)}", advice)])
    raw = _overridden(raw, overrides, source)
    try:
        return Loaded(ExperimentSpec.model_validate(raw), source)
    except ValidationError as error:
        found = field_issues(error, ExperimentSpec)
        if not any(item["type"] == CHECK for item in error.errors()):
            found += _cross_field_issues(raw, error)
    issues = [Issue(source.at(issue.loc), issue.what, issue.advice) for issue in found]

    def line(issue: Issue) -> float:  # those of overrides come last
        return float(issue.where.removeprefix(f"{name}:")) if issue.where.startswith(f"{name}:") else float("inf")

    raise SpecError(sorted(issues, key=line))


def _overridden(raw: dict[str, Any], overrides: Sequence[str], source: Source) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    issues: list[Issue] = []
    for override in overrides:
        option = f"--set {override}"
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            issues.append(Issue(option, "is not of the form a.b=value", "for example --set train.epochs=5"))
            continue
        if path in settings:
            issues.append(Issue(option, f"{path} is set twice", "keep one of the two"))
        try:
            settings[path] = read_yaml(text, Source(option))
        except SpecError as error:
            issues += [Issue(option, issue.what, issue.advice) for issue in error.issues]
            continue
        source.set(tuple(path.split(".")), option)
    if issues:
        raise SpecError(issues)
    try:
        return apply_settings(raw, settings, ExperimentSpec)
    except NotASection as error:
        raise SpecError([Issue(source.at(tuple(error.path.split("."))), error.path, str(error))]) from error


def _cross_field_issues(raw: dict[str, Any], error: ValidationError) -> list[FieldIssue]:
    """Check across fields those sections that are valid without their wrong values, except what follows from these."""
    # Of a wrong entry the whole list is removed: without the entry, the others would move.
    locs = [locate(ExperimentSpec, item["loc"])[0] for item in error.errors()]
    removed = [loc[:-1] if isinstance(loc[-1], int) else loc for loc in locs]
    rest = _without(raw, removed)
    for above, needed, stand_in in STAND_INS:
        if isinstance(rest.get(above), dict):
            rest[above].setdefault(needed, stand_in)
    resolved = with_defaults(rest)
    valid: dict[str, Any] = {}
    hints = get_type_hints(ExperimentSpec, include_extras=True)
    for section, info in ExperimentSpec.model_fields.items():
        value = resolved.get(section, info.default) if isinstance(resolved, dict) else None
        with suppress(ValidationError):
            valid[section] = TypeAdapter(hints[section]).validate_python(value)
    wrong = {dotted(loc) for loc in removed}

    def follows(path: str) -> bool:
        return any(path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.") for other in wrong)

    issues = cross_field_issues(valid, ExperimentSpec)
    return [issue for issue in issues if not any(map(follows, (dotted(issue.loc), *issue.follows_from)))]


def _without(value: Any, removed: Sequence[Loc]) -> Any:
    """Return a copy of nested mappings and lists without these locations."""
    keys = {loc[0] for loc in removed if len(loc) == 1}

    def below(key: int | str) -> list[Loc]:
        return [loc[1:] for loc in removed if len(loc) > 1 and loc[0] == key]

    if isinstance(value, Mapping):
        return {key: _without(item, below(key)) for key, item in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(item, below(index)) for index, item in enumerate(value) if index not in keys]
    return value


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers of YAML 1.2 and without dates."""

    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse what is too deep, before Python's own limit is reached."""
        if self.levels > MOST_LEVELS:
            problem = f"more than {MOST_LEVELS} levels of sections and lists"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, problem, mark)
        self.levels += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.levels -= 1
        return node


_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("timestamp", *_NUMBERS)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class SpecDumper(yaml.SafeDumper):
    """SafeDumper that puts quotes around texts which `read_yaml` would read as numbers."""


for _name, _pattern in _NUMBERS.items():
    for _yaml in (_Loader, SpecDumper):
        _yaml.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^({_pattern})$"), list("-+.0123456789"))


class _Reader:
    """Reads one document and collects its issues."""

    def __init__(self, loader: _Loader, source: Source) -> None:
        self.loader = loader
        self.source = source
        self.issues: list[Issue] = []
        self.open: set[int] = set()
        self.merged: set[int] = set()
        self.count = 0

    def issue(self, node: yaml.Node, what: str, advice: str) -> None:
        issue = Issue(self.source.line(node.start_mark), what, advice)
        if issue not in self.issues:
            self.issues.append(issue)

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            what = f"more than {MOST_VALUES} values"
            advice = "write a shorter spec; an alias counts with all that it repeats"
            raise SpecError([Issue(self.source.line(node.start_mark), what, advice)])
        if id(node) in self.open:
            self.issue(node, dotted(loc), "an anchor cannot contain itself; write the value out")
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
            value = self.loader.construct_object(node)
            if isinstance(value, bytes):
                raise TypeError("!!binary is no value of a spec")
            if node.tag == f"{_TAG}int" and node.value.lstrip("-+").isdecimal() and int(node.value) != value:
                advice = f"is {value} in YAML 1.1 and {int(node.value)} in YAML 1.2; write it without the leading zero"
                self.issue(node, f"{dotted(loc)} = {shortened(node.value, SHOWN)}", advice)
            if isinstance(value, int) and value.bit_length() > MOST_BITS:
                advice = f"a whole number of at most {MOST_BITS} bits is needed"
                self.issue(node, f"{dotted(loc)} = {shortened(node.value, SHOWN)}", advice)
                return None
            return value
        except (yaml.YAMLError, ValueError, TypeError, LookupError):
            advice = f"cannot be read as {shortened(node.tag, SHOWN)}; write a plain value"
            self.issue(node, f"{dotted(loc)} = {shortened(node.value, SHOWN)}", advice)
            return None

    def sequence(self, node: yaml.SequenceNode, loc: Loc) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.source.origins[(*loc, index)] = self.source.line(item.start_mark)
            items.append(self.value(item, (*loc, index)))
        return items

    def mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[Any, Any]:
        if id(node) not in self.merged:
            self.check_keys(node, loc)
            self.merge(node)
        result = {}
        for key_node, value_node in node.value:
            key = self.loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                text = getattr(key_node, "value", key)
                name = text if isinstance(text, str) else "a list or mapping"
                advice = "a key must be text; put quotes around it"
                self.issue(key_node, f"{dotted((*loc, name))} as a key", advice)
                continue
            self.source.origins[(*loc, key)] = self.source.line(key_node.start_mark)
            result[key] = self.value(value_node, (*loc, key))
        return result

    def check_keys(self, node: yaml.MappingNode, loc: Loc) -> None:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in lines:
                path = dotted((*loc, key_node.value))
                self.issue(key_node, f"{path} is there twice", f"first on line {lines[key_node.value]}; keep one")
            lines.setdefault(key_node.value, key_node.start_mark.line + 1)

    def merge(self, node: yaml.MappingNode) -> None:
        self.merged.add(id(node))
        try:
            self.loader.flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            self.issue(node, "<<", f"{error.problem}")


def read_yaml(text: str, source: Source) -> Any:
    """Return the document's value and store the lines of its values in `source`.

    Raises SpecError with every issue of the YAML.
    """
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
        issue = Issue(f"{source.name}:{line}", f"the character {character}", "YAML does not allow it; delete it")
        raise SpecError([issue]) from error
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax_issue(error, source)]) from error
    if reader.issues:
        raise SpecError(reader.issues)
    return value


def _syntax_issue(error: yaml.MarkedYAMLError, source: Source) -> Issue:
    mark = error.problem_mark or error.context_mark
    where = source.line(mark) if mark is not None else source.name
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return Issue(where, "a tab in the indentation", "YAML indents with spaces; replace the tab")
    if isinstance(error, yaml.composer.ComposerError) and error.context == "expected a single document in the stream":
        return Issue(where, "a second document begins here", "one file is one experiment; make it two files")
    began = f" that begins on line {error.context_mark.line + 1}" if error.context_mark is not None else ""
    context = f"{error.context}{began}; " if error.context else ""
    return Issue(where, f"not YAML: {problem}", f"{context}correct it here or on a line above")


def _read_text(name: str) -> str:
    try:
        with Path(name).open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) <= MOST_BYTES:
            return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()  # with line ends as of open()
        issue = Issue(name, f"has more than {MOST_BYTES >> 20} MB", "a spec is a short text; give the path of one")
    except FileNotFoundError:
        issue = Issue(name, "there is no such file", "give the path of a spec, such as specs/uniform_sweep.yaml")
    except IsADirectoryError:
        issue = Issue(name, "is a folder", "give the path of a spec, such as specs/uniform_sweep.yaml")
    except UnicodeDecodeError as error:
        issue = Issue(name, f"byte {error.start} is not UTF-8", "save the file as UTF-8 text")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        issue = Issue(name, f"cannot be read: {why}", "check the file's permissions")
    raise SpecError([issue])
