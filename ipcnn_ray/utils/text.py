"""Parts of messages: suggestions, shortened text, lists, counts; and numbers in text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys, that turn the direction of text, or that are no characters; not tab and newline."""


def printable(text: str) -> str:
    """Return the text with `CONTROL` characters, which names of files may have, written out, such as \\u001b."""
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def without_passwords(text: str) -> str:
    """Return the text without user names and passwords in the URLs that it has."""
    return re.sub(r"(?<=://)[^/\s'\"?#]+@", "", text)


def csv_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: a name that begins as one does gets an apostrophe."""
    is_formula = text.startswith(("=", "@", "\t", "\r")) or re.match(r"[+-].*([|!]|\w\()", text)
    return f"'{text}" if is_formula else text


def did_you_mean(word: object, options: list[str]) -> str:
    """Return `` Did you mean 'x'?`` if an option is close to `word`, else an empty string."""
    near = get_close_matches(str(word).lower(), options, n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def shortened(text: str, length: int) -> str:
    """Return the text, cut to `length` characters with its full length appended where it has more."""
    if len(text) <= length:
        return text
    end = f" ... ({len(text)} characters in all)"
    return text[: length - len(end)] + end


def shortened_list(names: Sequence[str], most: int) -> str:
    """Return the first `most` names, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`"""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def parse_number(text: str | None) -> float | None:
    """Return the text as a number; None if it is not one."""
    try:
        return float(text or "")
    except ValueError:
        return None
