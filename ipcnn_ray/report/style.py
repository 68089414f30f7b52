"""Colours, line styles and markers of all figures. They stay distinct for colour-blind readers and in grey print.

Colours: Okabe and Ito, Color Universal Design, 2008. Maps of numbers use cividis, whose brightness rises as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
MAP = "cividis"
DPI = 110


class SeriesStyle(NamedTuple):
    """Colour, line style and marker of one series."""

    colour: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str


SERIES_STYLES = (
    SeriesStyle(BLUE, "-", "o"),
    SeriesStyle(RED, "--", "s"),
    SeriesStyle(GREEN, "-.", "^"),
    SeriesStyle(ORANGE, ":", "D"),
    SeriesStyle(PURPLE, (0, (5, 1, 1, 1, 1, 1)), "v"),
    SeriesStyle(SKY, (0, (8, 2)), "P"),
)
CONTROL_STYLE = SeriesStyle(BLACK, "-", "*")
"""The plain network, with which all others are compared."""

KNOWN_KINDS = {
    "gradient": SeriesStyle(BLUE, "", "o"),
    "uniform": SeriesStyle(ORANGE, "", "s"),
    "plain": SeriesStyle(BLACK, "", "*"),
}
"""Points of the paper's kinds of templates, the same in every figure."""
KIND_COLOURS = (GREEN, PURPLE, SKY, RED, BLUE, ORANGE)
KIND_MARKERS = "^vDP<X>pdh8"
"""Their number and that of KIND_COLOURS have no common divisor: 66 kinds get different points."""
BASELINE_LINES: tuple[Any, ...] = ((0, (1, 1.5)), (0, (6, 2)), (0, (3, 1.5, 1, 1.5)))
"""Line styles of baselines; several are often near each other."""


def kind_styles(kinds: Iterable[str]) -> dict[str, SeriesStyle]:
    """A style for each kind of template. The paper's kinds come first, the others follow by name."""
    kinds = set(kinds)
    others = enumerate(sorted(kinds - KNOWN_KINDS.keys()))
    return {kind: style for kind, style in KNOWN_KINDS.items() if kind in kinds} | {
        kind: SeriesStyle(KIND_COLOURS[i % len(KIND_COLOURS)], "", KIND_MARKERS[i % len(KIND_MARKERS)])
        for i, kind in others
    }


def draw_baselines(axis: Axes, values: Mapping[str, float]) -> None:
    """Draw a horizontal line at each of the values, with its key as label."""
    for (label, value), line in zip(values.items(), cycle(BASELINE_LINES), strict=False):
        axis.axhline(value, color=GREY, linestyle=line, linewidth=1.4, label=label, zorder=1)


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure; width and height in inches. layout: None for axes that are placed by hand."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def to_svg(figure: Figure) -> str:
    """SVG text; equal figures give equal text."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ipcnn", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None}, dpi=2 * DPI)
    return out.getvalue()


def to_png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()
