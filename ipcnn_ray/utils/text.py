"""Parts of messages: suggestions and shortened text."""

from __future__ import annotations

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
