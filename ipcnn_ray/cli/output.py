"""Everything the commands print goes through here: 80 columns where piped, colour only on a terminal."""

from __future__ import annotations

import json
import math
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ipcnn_ray.errors import InvalidInputError

if TYPE_CHECKING:
    from ipcnn_ray.report.ranking import Ranking

WIDTH = 80
INDENT = " " * 7
"""The width of `error  `: advice stands below the fact."""

out = Console(highlight=False, emoji=False, markup=False)
"""Results."""
err = Console(stderr=True, highlight=False, emoji=False, markup=False)
"""Errors, warnings and progress."""


def say(text: str = "", style: str = "") -> None:
    """One line of a result, never wrapped."""
    out.print(Text(text, style=style), soft_wrap=True)


def note(text: str) -> None:
    """A remark beside the result."""
    err.print(Text(text, style="dim"), soft_wrap=True)


def print_json(value: Any) -> None:
    """For scripts: plain JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def text(content: str) -> None:
    """A document, such as YAML, as it is."""
    sys.stdout.write(content if content.endswith("\n") else content + "\n")


def _line(first: str, rest: str) -> None:
    err.print(Text.assemble((f"{first:<{len(INDENT)}}", "bold red"), rest), soft_wrap=True)


def error(problem: Exception) -> None:
    """An error as a person reads it: where and what on one line, what to do below it."""
    if isinstance(problem, InvalidInputError):
        for one in problem.issues:
            _line("error", f"{one.where}  {one.what}")
            _below(one.advice)
        return
    fact, *rest = str(problem).splitlines() or [type(problem).__name__]
    _line("error", fact)
    for line in rest:
        _below(line.strip())


def _below(advice: str) -> None:
    width = max(err.width, WIDTH) if err.is_terminal else WIDTH
    wrapped = textwrap.wrap(
        advice, width, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
    )
    err.print(Text("\n".join(wrapped)), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table without frames; columns named in `right` are numbers. Long tables lose no text when piped.

    Where it is too narrow, words are put below each other, but neither the first column, which names a thing, nor a
    number is broken.
    """
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    tight = sum(widths) + 2 * (len(widths) - 1) > out.width
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1 if tight else 2, 0, 0))
    for index, column in enumerate(columns):
        number = column in right
        head = column.strip().replace(" ", "\n") if tight and number else column
        whole = index == 0 or number
        grid.add_column(head, justify="right" if number else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    out.print(grid)


def ranking(found: Ranking) -> None:
    """The settings of an experiment, what of their differences may be luck, and what a reader must know."""
    for index, one in enumerate((found.table(), *found.luck())):
        if index:
            say()
        table(one.columns, one.rows, right=one.numbers)
    say()
    for line in filter(None, (found.headline(), *found.notes())):
        paragraph(line)


class Counted:
    """Progress of long work: a line whenever another tenth is done and the last was two seconds ago, and one when all
    is."""

    PAUSE_S = 2.0

    def __init__(self, what: str, unit: str) -> None:
        """what: begins the line; unit: of what is counted, in the plural."""
        self.what = what
        self.unit = unit
        self.tenth = 0
        self.told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        tenth = done * 10 // max(1, total)
        if tenth > self.tenth and (time.monotonic() - self.told >= self.PAUSE_S or done == total):
            self.tenth, self.told = tenth, time.monotonic()
            note(f"{self.what} {count(done)} of {count(total)} {self.unit}")


def paragraph(line: str) -> None:
    """A sentence of a result, broken between words."""
    out.print(Text("\n".join(textwrap.wrap(line, max(out.width, WIDTH), subsequent_indent="  "))), soft_wrap=True)


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: what is not finite is null."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}


def count(number: int) -> str:
    """12 345"""
    return f"{number:,}".replace(",", " ")


def clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
