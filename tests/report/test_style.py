"""Colours that colour-blind readers and grey printers tell apart, computed: what the eye is left with, in CIELAB.

Protanopia and deuteranopia by the matrices of Machado, Oliveira and Fernandes (IEEE Transactions on Visualization and
Computer Graphics, 2009, table of severity 1.0), which act on linear RGB.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from fakes.tracker import half_failed_search, repeated_templates
from matplotlib import colormaps
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb

from ipcnn_ray.cli.report import build_page
from ipcnn_ray.report import filter_figures, style
from ipcnn_ray.report.experiment_record import read_experiments
from ipcnn_ray.report.style import CONTROL_STYLE, SERIES_STYLES, kind_styles

EYES = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
APART = 15.0
"""Distance in CIELAB: six times what is just noticed side by side (2.3)."""
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
KINDS = ("gradient", "uniform", "plain", "ring", "gaussian", "mask", "ellipse", "tailored", "star", "cross")
LIGHT = {"series": [look.colour for look in (*SERIES_STYLES, CONTROL_STYLE)], "landmarks": list(filter_figures.COLORS)}


def lab(colour: str, eye: str = "normal") -> np.ndarray:
    """(L*, a*, b*) of what an eye makes of a colour."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = XYZ @ (EYES[eye] @ linear).clip(0, 1) / XYZ.sum(1)
    f = [v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str, eye: str) -> float:
    return float(np.linalg.norm(lab(one, eye) - lab(other, eye)))


def test_the_simulation_itself():
    """White is white, red and green that everybody tells apart come near each other, and yellow and blue do not."""
    for eye in EYES:
        assert np.allclose(lab("#ffffff", eye), [100, 0, 0], atol=0.2)
    red, green = "#803020", "#306020"
    assert distance(red, green, "normal") > 4 * APART
    assert distance(red, green, "deuteranopia") < APART / 4
    assert min(distance("#ffd700", "#0000ff", eye) for eye in EYES) > 5 * APART


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("which", LIGHT)
def test_colours_are_told_apart(which, eye):
    pairs = {(one, other): distance(one, other, eye) for one, other in combinations(LIGHT[which], 2)}
    assert len(pairs) == 21
    assert {pair: round(found, 1) for pair, found in pairs.items() if found < APART} == {}


def test_in_grey_brightness_or_shape_tells_series_apart():
    for looks in ((*SERIES_STYLES, CONTROL_STYLE), tuple(kind_styles(KINDS).values())):
        for one, other in combinations(looks, 2):
            brightness = abs(lab(one.colour)[0] - lab(other.colour)[0])
            assert brightness > APART or (one.marker != other.marker and one.line != other.line) or one.line == ""
            assert one.marker != other.marker
    marks = [filter_figures._marker(k) for k in range(len(filter_figures.COLORS))]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("eye", EYES)
def test_a_map_of_numbers_rises_in_brightness_for_every_eye(eye):
    shades = [lab(to_hex(shade), eye)[0] for shade in colormaps[style.MAP](np.linspace(0, 1, 64))]
    assert (np.diff(shades) > 0).all() and shades[-1] - shades[0] > 60


def test_figures_use_no_other_colours():
    """Every line and point of every figure of two reports has a colour of the palette, or one of the map of numbers."""
    known = {
        to_hex(getattr(style, name)) for name in ("BLACK", "ORANGE", "SKY", "GREEN", "BLUE", "RED", "PURPLE", "GREY")
    }
    shades = colormaps[style.MAP](np.linspace(0, 1, 2048))[:, :3]
    seen: set[str] = set()
    pages = [
        build_page(read_experiments(half_failed_search(20), ["sweep"])),
        build_page(read_experiments(repeated_templates(2), ["templates"])),
    ]
    for axes in (
        axes for page in pages for part in page.chapters for plot in part.figures for axes in plot.figure.axes
    ):
        colours = [line.get_color() for line in axes.lines]
        for points in (points for points in axes.collections if isinstance(points, PathCollection)):
            colours += [*points.get_facecolor(), *points.get_edgecolor()]
        seen |= {to_hex(colour) for colour in colours if isinstance(colour, str) or colour[3] > 0}
    assert len(seen & known) >= 6
    odd = seen - known - {"#ffffff"}
    assert [one for one in odd if np.abs(shades - to_rgb(one)).max(1).min() > 0.02] == []
