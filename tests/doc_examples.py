"""Code in docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap


def examples(doc: str) -> list[str]:
    """The indented blocks behind `::` of a docstring."""
    blocks = re.findall(r"::\n\n((?:(?:    .*)?\n)+)", inspect.cleandoc(doc) + "\n")
    return [textwrap.dedent(block) for block in blocks]
