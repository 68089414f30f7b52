"""Parts of messages: suggestions, shortened text, lists, counts; and numbers in text."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


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
