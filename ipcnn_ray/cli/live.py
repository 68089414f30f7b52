"""Display of a running experiment: a live table on a terminal, one line per event when piped."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ipcnn_ray.cli.output import CountedProgress, format_clock, format_metric
from ipcnn_ray.on_ray.events import (
    DataProgress,
    EpochDone,
    Event,
    Logged,
    PhaseStarted,
    RunEnded,
    RunStarted,
    StageReached,
    Warned,
)
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_dir import ProgressUpdate
from ipcnn_ray.utils.text import counted, printable

QUIET_S, FIRST_S = 20.0, 4.0
"""Seconds between progress lines of a run when piped; delay before the first of each stage of its first epoch."""
TABLE_METRICS = {
    "train_loss": ".3f",
    "filter_loss": ".2f",
    "val_error": ".1%",
    "instability": ".4f",
    "images_per_second": ".0f",
}
"""Metrics of the live table -> their formats."""
HEADS = {
    "train_loss": "loss",
    "filter_loss": "filter",
    "val_error": "error",
    "instability": "instab.",
    "images_per_second": "img/s",
}
"""Metrics of the live table -> heads of their columns."""


@dataclass
class _Row:
    """State of one running run."""

    epochs: int
    metrics: dict[str, float] = field(default_factory=dict)
    stage: ProgressUpdate | None = None
    printed_at: float = 0.0
    """Time of its last line, when piped."""


def _is_without_landmarks(metrics: Mapping[str, float]) -> bool:
    """Whether a run was evaluated, and on data that have no location instability."""
    return "val_error" in metrics and "instability" not in metrics


def _format_stage(row: _Row) -> str:
    """`training 40%`"""
    if row.stage is None:
        return "starting" if not row.metrics else ""
    name = row.stage.what.partition(" epoch")[0]
    return f"{name} {100 * row.stage.done // max(1, row.stage.total)}%"


class Progress:
    """Listener of the events of an experiment; a context manager around the experiment.

    epochs: number of epochs of runs that have not reported theirs. goals: metrics printed at the end of each run.
    """

    def __init__(self, console: Console, epochs: int, goals: Sequence[str] = ("combined",)) -> None:
        self.console = console
        self.epochs = epochs
        self.goals = [goal for goal in goals if goal not in ("instability", "val_error")]
        self.rows: dict[str, _Row] = {}
        self.ended = 0
        self.phase = ""
        self.total = 0
        self.began = time.monotonic()
        self.data = CountedProgress("  data:", "images", self._line)
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseStarted():
                self.phase, self.total, self.ended = event.name, event.total, 0
                self._line(f"{event.name}: {counted(event.total, 'run')}")
            case RunStarted():
                again = event.label in self.rows
                self.rows[event.label] = _Row(event.epochs, printed_at=time.monotonic())
                if not self.live:
                    self._line(f"{event.label:<12} started{' again' if again else ''}")
            case StageReached():
                row = self.rows.setdefault(event.label, _Row(self.epochs))
                new = not row.metrics and (row.stage is None or row.stage.what != event.stage.what)
                row.stage = event.stage
                if not self.live and time.monotonic() - row.printed_at >= (FIRST_S if new else QUIET_S):
                    row.printed_at = time.monotonic()
                    self._line(f"{event.label:<12} {event.stage}")
            case EpochDone():
                row = self.rows.setdefault(event.label, _Row(self.epochs))
                row.metrics, row.stage = dict(event.metrics), None
                if not self.live:
                    row.printed_at = time.monotonic()
                    self._line(self._epoch_line(event.label, row))
            case RunEnded():
                self.rows.pop(event.run.label, None)
                self.ended += 1
                self._line(self._end_line(event.run))
            case Warned():
                self._line(f"warning: {event.text}")
            case Logged():
                self._line(event.text)
            case DataProgress():
                self.data(event.done, event.total)
        if self.live:
            self.live.update(self._view())

    def _line(self, text: str) -> None:
        """Print a line; wrapped between words on a terminal."""
        text = printable(text)
        if self.live:
            text = "\n".join(textwrap.wrap(text, self.console.width, subsequent_indent=" " * 13))
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _epoch_line(self, label: str, row: _Row) -> str:
        metric = partial(format_metric, row.metrics)
        measured = ""  # not every epoch is evaluated
        if "val_error" in row.metrics:
            measured = f"  error {metric('val_error', '.1f', 100)}%"
            if not _is_without_landmarks(row.metrics):
                measured += f"  instability {metric('instability', '.4f')}"
        return (
            f"{label:<12} epoch {int(row.metrics.get('epoch', 0))}/{row.epochs}"
            f"  loss {metric('train_loss', '.3f')}  filter {metric('filter_loss', '.2f')}{measured}"
            f"  {metric('images_per_second', '.0f')} img/s  {self._left(row)} left"
        )

    def _end_line(self, run: RunSummary) -> str:
        m = run.metrics
        parts = [f"{run.label:<12} {run.state}"]
        if "val_error" in m:
            parts.append(f"error {m['val_error']:.1%}")
        if "val_error" in m and not _is_without_landmarks(m):
            parts.append(f"instability {format_metric(m, 'instability', '.4f')}")
        parts += [f"{goal} {format_metric(m, goal, '.3f')}" for goal in self.goals if goal in m]
        if run.cause:
            parts.append(run.cause)
        return "  ".join(parts)

    def _left(self, row: _Row) -> str:
        """Remaining time of a run, from the seconds of its last epoch."""
        if "seconds" not in row.metrics:
            return "-"
        return format_clock((row.epochs - row.metrics.get("epoch", 0)) * row.metrics["seconds"])

    def _view(self) -> Group:
        taken = f"{format_clock(time.monotonic() - self.began)} so far"
        head = Text(f"{self.phase}: {self.ended} of {self.total} done, {taken}" if self.phase else taken)
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        shown = dict(TABLE_METRICS)
        if any(_is_without_landmarks(row.metrics) for row in self.rows.values()):
            del shown["instability"]
        heads = [HEADS[metric] for metric in shown]
        for name in ("run", "epoch", "now", *heads, "left"):
            table.add_column(name, justify="left" if name in ("run", "now") else "right", no_wrap=True)
        for label, row in self.rows.items():
            epoch = f"{int(row.metrics.get('epoch', 0))}/{row.epochs}"
            numbers = [format_metric(row.metrics, metric, form) for metric, form in shown.items()]
            table.add_row(label, epoch, _format_stage(row), *numbers, self._left(row))
        return Group(head, table)
