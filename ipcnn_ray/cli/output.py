"""Printing for all commands: plain lines when piped, colour only on a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ipcnn_ray.errors import InvalidInputError
from ipcnn_ray.utils.text import printable

if TYPE_CHECKING:
    from ipcnn_ray.report.ranking_table import Ranking

WIDTH = 80
PARAGRAPH_WIDTH = 120
"""Most columns of a sentence, on a terminal of any width."""
INDENT = " " * 7
"""The width of `error  `; advice is printed below the fact."""

PIPE_WIDTH = 160
"""Columns of tables where the output is no terminal; the environment variable COLUMNS changes it."""

stdout = Console(
    highlight=False,
    emoji=False,
    markup=False,
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH,
)
"""For results."""
stderr = Console(stderr=True, highlight=False, emoji=False, markup=False)
"""For errors, warnings and progress."""


def print_line(text: str = "", style: str = "") -> None:
    """Print one line of a result, without wrapping."""
    stdout.print(Text(printable(text), style=style), soft_wrap=True)


def print_paragraph(text: str) -> None:
    """Print a sentence of a result, wrapped between words."""
    lines = textwrap.wrap(printable(text), min(max(stdout.width, WIDTH), PARAGRAPH_WIDTH), subsequent_indent="  ")
    stdout.print(Text("\n".join(lines)), soft_wrap=True)


def print_document(content: str) -> None:
    """Print a document, such as YAML, unchanged."""
    sys.stdout.write(content if content.endswith("\n") else content + "\n")


def print_json(value: Any) -> None:
    """Print plain JSON on stdout. NaN and infinity become null."""
    sys.stdout.write(as_json(value))


def as_json(value: Any) -> str:
    """Return plain JSON with a newline at its end. NaN and infinity become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return printable(text) + "\n"  # written out as JSON does


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_note(text: str) -> None:
    """Print a remark on stderr, dimmed."""
    stderr.print(Text(printable(text), style="dim"), soft_wrap=True)


def print_progress(text: str) -> None:
    """Print a line of progress on stderr."""
    stderr.print(printable(text), soft_wrap=True)


def print_error(error: Exception) -> None:
    """Print an error on stderr: the place and the fact on one line, the advice below it."""
    if isinstance(error, InvalidInputError):
        for issue in error.issues:
            _print_fact(f"{issue.where}  {issue.what}")
            _print_advice(issue.advice)
        return
    fact, *advice = str(error).splitlines() or [type(error).__name__]
    _print_fact(fact)
    for line in advice:
        _print_advice(line.strip())


def _print_fact(text: str) -> None:
    stderr.print(Text.assemble((f"{'error':<{len(INDENT)}}", "bold red"), printable(text)), soft_wrap=True)


def _print_advice(advice: str) -> None:
    width = max(stderr.width, WIDTH) if stderr.is_terminal else WIDTH
    wrapped = textwrap.wrap(
        printable(advice),
        width,
        initial_indent=INDENT,
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    stderr.print(Text("\n".join(wrapped)), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table without frames.

    Columns named in `right` hold numbers and are aligned to the right. If the table is wider than the terminal, cells
    are wrapped, except numbers and the first column, which names the row. No text is cut off.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    tight = sum(widths) + 2 * (len(widths) - 1) > stdout.width
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1 if tight else 2, 0, 0))
    for index, column in enumerate(columns):
        number = column in right
        head = column.strip().replace(" ", "\n") if tight and number else column
        unbroken = index == 0 or number
        grid.add_column(head, justify="right" if number else "left", overflow="fold", no_wrap=unbroken)
    for row in rows:
        grid.add_row(*map(Text, row))
    stdout.print(grid)


def print_ranking(ranking: Ranking) -> None:
    """Print the settings of an experiment, the tests of their differences, the notes to both, and the verdict."""
    from ipcnn_ray.report.verdict import Verdicts

    for index, table in enumerate((ranking.table(), *ranking.luck())):
        if index:
            print_line()
        print_table(table.columns, table.rows, right=table.numbers)
    print_line()
    for line in filter(None, (ranking.headline(), *ranking.notes())):
        print_paragraph(line)
    if lines := Verdicts.of(ranking).lines:
        print_line()
        print_line("Verdict", style="bold")
        for line in lines:
            print_paragraph(line)


class CountedProgress:
    """Callback that prints the progress of long work: at most one line per tenth and per PAUSE_S, and one at the end.

    label: begins the line. unit: of what is counted, in the plural.
    """

    PAUSE_S = 2.0

    def __init__(self, label: str, unit: str, show: Callable[[str], None] | None = None) -> None:
        """show: prints a line; `print_note` by default."""
        self.label = label
        self.unit = unit
        self.show = show or print_note
        self.tenth = 0
        self.printed_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        tenth = done * 10 // max(1, total)
        if tenth > self.tenth and (time.monotonic() - self.printed_at >= self.PAUSE_S or done == total):
            self.tenth, self.printed_at = tenth, time.monotonic()
            self.show(f"{self.label} {format_count(done)} of {format_count(total)} {self.unit}")


def format_metric(metrics: Mapping[str, float], key: str, form: str, scale: float = 1.0) -> str:
    """A metric in a format such as `.3f`, multiplied by `scale`; `-` without it."""
    return format(metrics[key] * scale, form) if key in metrics else "-"


def format_count(number: int) -> str:
    """12 345"""
    return f"{number:,}".replace(",", " ")


def format_bytes(count: int) -> str:
    """512 B, 1.5 kB or 2.3 GB."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def format_clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, seconds_left = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
