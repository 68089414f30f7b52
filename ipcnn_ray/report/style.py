"""How figures look: colours that colour-blind readers tell apart, and beside each a marker and a line for grey print.

Colours: Okabe and Ito, Color Universal Design, 2008; maps of numbers in cividis, which also rises in brightness.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#999999"
MAP = "cividis"
DPI = 110


class Look(NamedTuple):
    """Of one series."""

    colour: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str


LOOKS = (
    Look(BLUE, "-", "o"),
    Look(RED, "--", "s"),
    Look(GREEN, "-.", "^"),
    Look(ORANGE, ":", "D"),
    Look(PURPLE, (0, (5, 1, 1, 1, 1, 1)), "v"),
    Look(SKY, (0, (8, 2)), "P"),
)
CONTROL = Look(BLACK, "-", "*")
"""Of the plain network that all others are compared with."""
STATES = {"succeeded": Look(BLUE, "", "o"), "stopped": Look(GREY, "", "o"), "failed": Look(RED, "", "x")}


def canvas(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def svg(figure: Figure) -> str:
    """The same figure gives the same text."""
    out = io.StringIO()
    settings = {"svg.hashsalt": "ipcnn", "svg.fonttype": "path"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata={"Date": None}, dpi=2 * DPI)
    return out.getvalue()


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()
