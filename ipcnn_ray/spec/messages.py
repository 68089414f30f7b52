"""Pydantic's errors as issues of a spec in plain words, and issues as pydantic's error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ipcnn_ray.spec.section import (
    FieldIssue,
    Loc,
    Section,
    annotations_at,
    child_annotation,
    dotted,
    field_paths,
    kind_field,
    locate,
    sections,
    unwrapped,
    value_issue,
)
from ipcnn_ray.utils.text import did_you_mean

CHECK = "ipcnn_check"
"""Type of the pydantic errors that carry a FieldIssue."""
NUMBER = re.compile(r"(?=.*[0-9])[-+]?(0|[1-9][0-9]*)?\.?[0-9]*([eE][-+]?[0-9]+)?")

LONGEST_NUMBER = 100
"""Characters; the time of the expression grows with the square of the length."""


def as_validation_error(title: str, issues: list[FieldIssue]) -> ValidationError:
    """Return the issues as pydantic's error, which a spec made in Python raises."""
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError(CHECK, "{what}: {advice}", {"what": issue.what, "advice": issue.advice}),
            "loc": issue.loc,
            "input": None,
        }
        for issue in issues
    ]
    return ValidationError.from_exception_data(title, details)


def _number(error: ErrorDetails) -> str:
    kind, value = NUMBERS[error["type"]], error["input"]
    if isinstance(value, str) and len(value) < LONGEST_NUMBER and NUMBER.fullmatch(value):
        return f"must be {kind}, and this is text: remove the quotes"
    if isinstance(value, float) and value.is_integer():
        return f"must be {kind}: write {value:.0f}"
    return f"must be {kind}"


def _literal(error: ErrorDetails) -> str:
    options = re.findall(r"[^', ]+", error["ctx"]["expected"].replace(" or ", " "))
    advice = f"must be one of {', '.join(options)}." if len(options) > 1 else f"must be {options[0]}."
    return (advice + did_you_mean(error["input"], options)).removesuffix(".")


NUMBERS = {"int_type": "a whole number", "float_type": "a number"}
ADVICE: dict[str, str | Callable[[ErrorDetails], str]] = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "int_type": _number,
    "float_type": _number,
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "literal_error": _literal,
    "tuple_type": "must be a list, such as [a, b]",
    "too_short": "must have at least {min_length} value(s)",
    "too_long": "must have at most {max_length} values",
    "dict_type": "must be a section: one `field: value` per line",
    "model_type": "must be a section: one `field: value` per line",
    "invalid_key": "a field's name must be text",
}
"""Pydantic's error type -> what the value must be, with the numbers of the error's context."""


def _advice(error: ErrorDetails) -> str:
    advice = ADVICE.get(error["type"])
    if advice is None:
        return error["msg"].replace("Input should", "must", 1)
    if not isinstance(advice, str):
        return advice(error)
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in error.get("ctx", {}).items()}
    return advice.format(**limits)


def _unknown_field(loc: Loc, parent: Any, value: object, root: type[Section]) -> FieldIssue:
    name, above = str(loc[-1]), dotted(loc[:-1])
    (owner,) = sections(parent).values()
    kind = kind_field(owner)
    title = f"{above or 'the spec'}{f' with {kind[0]}: {kind[1]}' if kind else ''}"
    names = list(owner.model_fields)
    advice = f"{title} has no such field"
    near = did_you_mean(name, names)
    elsewhere = list(dict.fromkeys(path for path in field_paths(root) if path.endswith(f".{name}")))
    if f"{above}.{name}" in elsewhere:
        others = {tag: other for union in annotations_at(root, above) for tag, other in sections(union).items()}
        key = next((f"{other[0]}: " for other in map(kind_field, others.values()) if other), "")
        having = [f"{key}{tag}" for tag, other in others.items() if name in other.model_fields]
        advice += f"; it belongs to {' or '.join(having)}"
    elif near:
        advice += f".{near}"
    elif elsewhere:
        advice += f"; there is {' and '.join(elsewhere)}"
    else:
        advice += f"; it has {', '.join(names)}"
    return value_issue(loc, value, advice)


def _unknown_kind(loc: Loc, parent: Any, value: object) -> FieldIssue:
    options = sections(child_annotation(parent, loc[-1]))
    kind = kind_field(next(iter(options.values())))
    tags = ", ".join(options)
    if not kind:
        return value_issue(loc, value, f"must be a section with one of {tags}")
    if not isinstance(value, dict):
        return value_issue(loc, value, f"must be a section with its {kind[0]}, one of {tags}")
    if value.get(kind[0]) is None:
        return FieldIssue(loc, f"{dotted(loc)}.{kind[0]} is missing", f"must be one of {tags}")
    given = value[kind[0]]
    advice = f"must be one of {tags}.{did_you_mean(given, list(options))}"
    return value_issue((*loc, kind[0]), given, advice.removesuffix("."))


def _missing(loc: Loc, parent: Any) -> FieldIssue:
    if isinstance(loc[-1], int):
        fact = f"{dotted(loc[:-1])} has only {loc[-1]} value(s)"
        return FieldIssue(loc[:-1], fact, f"must be a list of {len(get_args(unwrapped(parent)))} values")
    options = sections(child_annotation(parent, loc[-1]))
    keys = {kind[0] for kind in map(kind_field, options.values()) if kind}
    (owner,) = sections(parent).values()
    if keys:
        advice = f"needed: a section with its {keys.pop()}, one of {', '.join(options)}"
    else:
        description = owner.model_fields[str(loc[-1])].description or ""
        advice = f"needed: {' '.join(description.split())}".rstrip(".")
    return FieldIssue(loc, f"{dotted(loc)} is missing", advice)


def field_issues(error: ValidationError, root: type[Section]) -> list[FieldIssue]:
    """Return the issues of pydantic's error without duplicates, at locations without the tags of unions."""
    issues: list[FieldIssue] = []
    for item in error.errors(include_url=False):
        kind, value = item["type"], item["input"]
        if kind == CHECK:
            issues.append(FieldIssue(item["loc"], item["ctx"]["what"], item["ctx"]["advice"]))
            continue
        if kind == "too_short" and len(value) >= item["ctx"]["min_length"]:
            continue  # pydantic counts the valid values, and the wrong ones have issues of their own
        loc, parent = locate(root, item["loc"])
        if kind == "extra_forbidden":
            issues.append(_unknown_field(loc, parent, value, root))
        elif kind == "missing":
            issues.append(_missing(loc, parent))
        elif kind in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type"):
            issues.append(_unknown_kind(loc, parent, value))
        else:
            issues.append(value_issue(loc, value, _advice(item)))
    return list(dict.fromkeys(issues))
