"""What is wrong with a spec, in words for a person: pydantic's errors and our own checks in one form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ipcnn_ray.spec.section import Loc, Section, bare, dotted, inside, kind_field, locate, sections, walk
from ipcnn_ray.utils.text import did_you_mean

OURS = "ipcnn_check"
"""Type of the pydantic errors that carry our own findings."""


@dataclass(frozen=True)
class FieldIssue:
    """One wrong thing at one location of a spec."""

    loc: Loc
    what: str
    """The fact with its offending value, such as `train.epochs = 0`."""
    advice: str
    """What is allowed, and the ways out."""
    about: tuple[str, ...] = ()
    """Dotted paths of other fields that this follows from."""


def shown(value: object, limit: int = 60) -> str:
    """A value as one would write it in YAML, shortened to `limit` characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) for item in value) + "]"
    elif isinstance(value, Section):
        text = shown(value.model_dump(mode="json"))
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def wrong(loc: Loc, value: object, advice: str, about: Iterable[str] = ()) -> FieldIssue:
    """A finding about a value that is there."""
    return FieldIssue(loc, f"{dotted(loc)} = {shown(value)}", advice, tuple(about))


def as_error(title: str, field_issues: list[FieldIssue]) -> ValidationError:
    """Findings as pydantic would raise them, so that a spec made in Python is checked just the same."""
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError(OURS, "{what}: {advice}", {"what": finding.what, "advice": finding.advice}),
            "loc": finding.loc,
            "input": None,
        }
        for finding in field_issues
    ]
    return ValidationError.from_exception_data(title, details)


def _number(kind: str) -> Callable[[ErrorDetails], str]:
    def words(error: ErrorDetails) -> str:
        text = error["input"]
        try:
            number = float(text) if isinstance(text, str) else None
        except ValueError:
            number = None
        if number is None or not isfinite(number):
            return f"must be {kind}"
        mantissa, exponent, power = text.lower().strip().partition("e")
        if not exponent:
            return f"must be {kind}, and this is text: take the quotes away"
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        power = power if power[0] in "+-" else f"+{power}"
        better = f"{number:.0f}" if number.is_integer() else f"{mantissa}e{power}"
        return f"must be {kind}, and YAML reads this as text: write {better}"

    return words


def _context(form: str) -> Callable[[ErrorDetails], str]:
    return lambda error: form.format(**{key: _plain(value) for key, value in error["ctx"].items()})


def _plain(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value


def _literal(error: ErrorDetails) -> str:
    options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
    words = f"must be one of {', '.join(options)}." if len(options) > 1 else f"must be {options[0]}."
    return (words + did_you_mean(error["input"], options)).removesuffix(".")


# pydantic's error type -> what the value must be
ADVICE: dict[str, Callable[[ErrorDetails], str]] = {
    "greater_than": _context("must be greater than {gt}"),
    "greater_than_equal": _context("must be at least {ge}"),
    "less_than": _context("must be less than {lt}"),
    "less_than_equal": _context("must be at most {le}"),
    "int_type": _number("a whole number"),
    "float_type": _number("a number"),
    "finite_number": lambda error: "must be a finite number",
    "bool_type": lambda error: "must be true or false",
    "string_type": lambda error: "must be text",
    "literal_error": _literal,
    "tuple_type": lambda error: "must be a list, such as [a, b]",
    "too_short": _context("must have at least {min_length} value(s)"),
    "too_long": _context("must have at most {max_length} values"),
    "dict_type": lambda error: "must be a section: one `field: value` per line",
    "model_type": lambda error: "must be a section: one `field: value` per line",
    "invalid_key": lambda error: "a field's name must be text",
    "says": lambda error: error["msg"],
}


def _unknown(plain: Loc, holder: Any, value: object, root: type[Section]) -> FieldIssue:
    name, above = str(plain[-1]), dotted(plain[:-1])
    (owner,) = sections(holder).values()
    kind = kind_field(owner)
    title = f"{above or 'the spec'}{f' with {kind[0]}: {kind[1]}' if kind else ''}"
    names = list(owner.model_fields)
    advice = f"{title} has no such field"
    near = did_you_mean(name, names)
    elsewhere = list(dict.fromkeys(path for path in walk(root) if path.endswith(f".{name}")))
    if f"{above}.{name}" in elsewhere:
        others = sections(_annotation(root, plain[:-1]))
        key = next((f"{found[0]}: " for found in map(kind_field, others.values()) if found), "")
        having = [f"{key}{tag}" for tag, other in others.items() if name in other.model_fields]
        advice += f"; it belongs to {' or '.join(having)}"
    elif near:
        advice += f".{near}"
    elif elsewhere:
        advice += f"; there is {' and '.join(elsewhere)}"
    else:
        advice += f"; it has {', '.join(names)}"
    return wrong(plain, value, advice)


def _annotation(root: type[Section], plain: Loc) -> Any:
    annotation: Any = root
    for part in plain:
        annotation = inside(annotation, part)
    return annotation


def _no_kind(plain: Loc, value: object, root: type[Section]) -> FieldIssue:
    options = sections(_annotation(root, plain))
    named = kind_field(next(iter(options.values())))
    tags = ", ".join(options)
    if not named:
        return wrong(plain, value, f"must be a section with one of {tags}")
    if not isinstance(value, dict):
        return wrong(plain, value, f"must be a section that says its {named[0]}, one of {tags}")
    if value.get(named[0]) is None:
        return FieldIssue(plain, f"{dotted(plain)}.{named[0]} is missing", f"must be one of {tags}")
    given = value[named[0]]
    words = f"must be one of {tags}.{did_you_mean(given, list(options))}"
    return wrong((*plain, named[0]), given, words.removesuffix("."))


def _missing(plain: Loc, holder: Any) -> FieldIssue:
    if isinstance(plain[-1], int):
        return FieldIssue(
            plain[:-1],
            f"{dotted(plain[:-1])} has only {plain[-1]} value(s)",
            f"must be a list of {len(get_args(bare(holder)))} values",
        )
    annotation = inside(holder, plain[-1])
    options = sections(annotation)
    kinds = {kind_field(option) for option in options.values()} - {None}
    (owner,) = sections(holder).values()
    if kinds:
        (key,) = {kind[0] for kind in kinds if kind}
        advice = f"needed: a section that says its {key}, one of {', '.join(options)}"
    else:
        words = owner.model_fields[str(plain[-1])].description or ""
        advice = f"needed: {' '.join(words.split())}".rstrip(".")
    return FieldIssue(plain, f"{dotted(plain)} is missing", advice)


def field_issues(error: ValidationError, root: type[Section]) -> list[FieldIssue]:
    """Everything that pydantic found, each thing once, at plain locations (without the tags of unions)."""
    found: list[FieldIssue] = []
    for item in error.errors(include_url=False):
        kind, value = item["type"], item["input"]
        if kind == OURS:
            found.append(FieldIssue(item["loc"], item["ctx"]["what"], item["ctx"]["advice"]))
            continue
        plain, holder = locate(root, item["loc"])
        if kind == "extra_forbidden":
            found.append(_unknown(plain, holder, value, root))
        elif kind == "missing":
            found.append(_missing(plain, holder))
        elif kind in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type"):
            found.append(_no_kind(plain, value, root))
        else:
            words = ADVICE[kind](item) if kind in ADVICE else item["msg"].replace("Input should", "must", 1)
            found.append(wrong(plain, value, words))
    return list(dict.fromkeys(found))
