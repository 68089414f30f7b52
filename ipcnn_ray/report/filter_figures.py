"""Figures and tables of filters: distances of peaks and landmarks, receptive fields, and the part templates.

The distances on the strongest images explain the location instability of a filter.
"""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ipcnn_ray.report.ranking_table import Table
from ipcnn_ray.report.style import BLUE, GREEN, MAP, ORANGE, PURPLE, RED, SKY, new_figure
from ipcnn_ray.utils.text import csv_cell

COLORS = (ORANGE, SKY, GREEN, "#F0E442", BLUE, RED, PURPLE)
"""One per landmark; in grey print the markers distinguish them."""
MARKERS = "os^DvP*"
TILES = 12
"""Images in the figure of a filter."""


@dataclass(frozen=True)
class RankedFilter:
    """Distances of one filter of a layer, and its rank. Distances are shares of the image diagonal."""

    rank: int | None
    """1 is the most stable, without landmarks that which fires in the most images; None if the filter could not be
    measured."""
    number: int
    category: str
    """The category on whose images it was measured."""
    instability: float
    """NaN without landmarks."""
    mean_K: NDArray[np.floating]
    deviation_K: NDArray[np.floating]
    images_K: NDArray[np.integer]
    """Number of counted images per landmark."""
    fires: int
    """Number of object images in which a cell is above the filter's top 0.5 %."""


@dataclass(frozen=True)
class FilterView:
    """One measured filter of a run and its strongest images. Distances are shares of the image diagonal."""

    ranked: RankedFilter
    title: str
    """The run, its template, the layer and the filter."""
    measured: int
    """Number of filters that could be measured."""
    objects: int
    """Number of object images."""
    landmark_names: tuple[str, ...]
    image_names: tuple[str, ...]
    """The strongest images, strongest first."""
    images_ISS3: NDArray[np.uint8]
    activation_I: NDArray[np.floating]
    peak_I2: NDArray[np.floating]
    """(row, col), pixels."""
    landmarks_IK2: NDArray[np.floating]
    """(row, col), pixels; NaN if the image does not show the landmark."""
    distance_IK: NDArray[np.floating]
    """Distances on the shown images."""
    counted_K: tuple[NDArray[np.floating], ...]
    """For each landmark all distances that enter the deviation, strongest image first."""


def format_distance(value: float) -> str:
    """.083; a dash for what could not be measured."""
    return "-" if np.isnan(value) else f"{value:.3f}".replace("0.", ".", 1)


def caption(figure: Figure, text: str, width: float, size: float = 7.5) -> None:
    """Write a wrapped caption below a figure of `width` inches."""
    lines = textwrap.wrap(text, int(width * 72 / size / 0.5))
    figure.text(0.5, 0.015, "\n".join(lines), fontsize=size, ha="center", va="bottom", linespacing=1.3)


def save_filter_figure(view: FilterView, path: Path) -> None:
    """Write a PNG: the strongest images with peak and landmarks, and all counted distances by landmark."""
    figure = new_figure(12.4, 5.5, layout=None)
    across = TILES // 2
    margins = {"left": 0.012, "right": 0.99, "top": 0.89, "bottom": 0.17, "wspace": 0.06, "hspace": 0.27}
    grid = figure.add_gridspec(2, across + 1, width_ratios=[1] * across + [2.0], **margins)
    for tile in range(min(TILES, len(view.images_ISS3))):
        _tile(figure.add_subplot(grid[tile // across, tile % across]), view, tile)
    spread = figure.add_subplot(grid[:, across])
    spread.set_position((0.793, 0.25, 0.2, 0.58))
    _spread(spread, view)
    ranked = view.ranked
    figure.suptitle(
        f"{view.title}: location instability {ranked.instability:.4f}, rank {ranked.rank} of {view.measured} (1 is the "
        "most stable)",
        fontsize=11,
    )
    deviations = ranked.deviation_K[~np.isnan(ranked.deviation_K)]
    fires = (
        f"A cell is above the filter's top 0.5 % in {ranked.fires} of {view.objects} images."
        if ranked.fires
        else "After ReLU and mask the filter is zero in every image: a peak is where it is least low."
    )
    text = (
        f"Left: the filter's strongest images, strongest first; the cross is its peak, lines go to the landmarks; "
        f"below, the distances as shares of the image diagonal. Right: the distances that count (of each landmark the "
        f"strongest images that show it), bar: mean and one standard deviation. The mean of the deviations, "
        f"({' + '.join(map(format_distance, deviations))}) / {len(deviations)}, is the filter's location instability. "
        f"{fires}"
    )
    caption(figure, text, 12.4, 8)
    figure.savefig(path, dpi=100)


def _tile(axis: Axes, view: FilterView, tile: int) -> None:
    size = view.images_ISS3.shape[1]
    axis.imshow(view.images_ISS3[tile], interpolation="bilinear")
    row, col = view.peak_I2[tile]
    words = []
    for k, name in enumerate(view.landmark_names):
        y, x = view.landmarks_IK2[tile, k]
        words.append(f"{name} {format_distance(view.distance_IK[tile, k])}")
        if np.isnan(x) or np.isnan(y):
            continue
        axis.plot([col, x], [row, y], color="black", linewidth=2)
        axis.plot([col, x], [row, y], color=_color(k), linewidth=1)
        axis.plot(x, y, _marker(k), color=_color(k), markeredgecolor="black", markersize=6.5)
    axis.plot(col, row, "X", color="white", markeredgecolor="black", markersize=9, markeredgewidth=1.2)
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xticks=[], yticks=[])
    name = view.image_names[tile]
    head = name if len(name) <= 18 else f"…{name[-17:]}"
    axis.set_title(f"{tile + 1}  {head}  {view.activation_I[tile]:.3g}", fontsize=6.5, pad=2.5)
    axis.set_xlabel("\n".join(_lines(words, 27)), fontsize=6.5, labelpad=2)


def _lines(words: Sequence[str], width: int) -> list[str]:
    """Join words into lines of at most `width` characters without breaking a word."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return lines


def _spread(axis: Axes, view: FilterView) -> None:
    mean_K, deviation_K = view.ranked.mean_K, view.ranked.deviation_K
    for k, distances in enumerate(view.counted_K):
        if not len(distances):
            continue
        # Spread along x by rank, strongest image leftmost, so that points do not cover each other.
        x = k - 0.3 + 0.6 * np.arange(len(distances)) / max(1, len(distances) - 1)
        axis.plot(x, distances, _marker(k), color=_color(k), markeredgecolor="black", markeredgewidth=0.4, markersize=4)
        axis.errorbar(k, mean_K[k], np.nan_to_num(deviation_K[k]), color="black", capsize=9, linewidth=2, zorder=5)
        axis.plot([k - 0.17, k + 0.17], [mean_K[k]] * 2, color="black", linewidth=2, zorder=5)
    statistics = zip(view.landmark_names, mean_K, deviation_K, view.counted_K, strict=True)
    names = [
        f"{name}\nmean {format_distance(mean)}\ndev. {format_distance(deviation)}\nof {len(counted)}"
        for name, mean, deviation, counted in statistics
    ]
    many = len(names) > 4
    axis.set_xticks(range(len(names)), names if not many else view.landmark_names, fontsize=7.5, rotation=90 * many)
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, None))
    axis.set_ylabel("distance / image diagonal", fontsize=8)
    axis.set_title("distances that count, strongest image first", fontsize=8)
    axis.tick_params(axis="y", labelsize=7.5)
    axis.grid(axis="y", color="0.88", linewidth=0.7)
    axis.set_axisbelow(True)


def save_ranking_figure(
    filters: Sequence[RankedFilter], names: Sequence[str], pictured: Sequence[RankedFilter], title: str, path: Path
) -> None:
    """Write a PNG: instability and deviations of all measured filters, from stable to unstable.

    names: of the landmarks. pictured: the filters with a figure of their own.
    """
    instability_F = np.array([ranked.instability for ranked in filters])
    deviation_FK = np.stack([ranked.deviation_K for ranked in filters])
    figure = new_figure(7.6, 4.6, layout=None)
    axis = figure.add_axes((0.11, 0.25, 0.87, 0.67))
    rank_F = np.arange(1, len(instability_F) + 1)
    for k, name in enumerate(names):
        axis.plot(rank_F, deviation_FK[:, k], _marker(k), label=name, color=_color(k), ms=3.5, alpha=0.75, mew=0)
    axis.plot(rank_F, instability_F, color="black", linewidth=2, label="location instability")
    shown = np.array([ranked.rank for ranked in pictured], int) - 1
    axis.plot(rank_F[shown], instability_F[shown], "o", label="has a picture", color="white", mec="black", ms=7)
    mean = instability_F.mean()
    axis.axhline(mean, color="0.4", linewidth=1, linestyle=":", label=f"mean {mean:.4f}")
    axis.set(ylim=(0, None), xlabel="rank of the filter (1 is the most stable)", ylabel="deviation / image diagonal")
    axis.set_title(title, fontsize=10)
    axis.grid(axis="y", color="0.9", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.legend(fontsize=7, frameon=False, ncols=2)
    text = (
        "Line: location instability of each filter, the mean of its deviations from the landmarks (points). The dotted "
        "mean is the run's number. A flat line: the filters are alike; a rise at the right: a few spoil the mean."
    )
    caption(figure, text, 7.6)
    figure.savefig(path, dpi=110)


def _color(k: int) -> str:
    return COLORS[k % len(COLORS)]


def _marker(k: int) -> str:
    """Changes with the colour, and shifts by one with every cycle of colours."""
    return MARKERS[(k + k // len(COLORS)) % len(MARKERS)]


def terminal_table(filters: Sequence[RankedFilter], landmarks: Sequence[str]) -> Table:
    """One row per filter: the landmarks with the least and the largest deviation, as mean ± deviation."""
    rows = []
    for ranked in filters:
        known = np.flatnonzero(~np.isnan(ranked.deviation_K))
        best, worst = known[ranked.deviation_K[known].argmin()], known[ranked.deviation_K[known].argmax()]
        words = [f"{landmarks[k]} {ranked.mean_K[k]:.3f} ± {ranked.deviation_K[k]:.3f}" for k in (best, worst)]
        rows.append([str(ranked.rank), str(ranked.number), f"{ranked.instability:.4f}", *words])
    numbers = ("rank", "filter", "instability")
    return Table((*numbers, "steadiest landmark", "least steady landmark"), rows, numbers)


def filters_csv(filters: Sequence[RankedFilter], landmarks: Sequence[str], path: Path) -> None:
    """Write all filters as CSV, the most stable first, those that could not be measured last."""
    head = ["rank", "filter", "category", "instability", "fires_in_images"]
    for name in landmarks:
        head += [f"{name}_mean_distance", f"{name}_deviation", f"{name}_images"]
    rows = []
    for ranked in filters:
        row = [ranked.rank, ranked.number, ranked.category, _cell(ranked.instability), ranked.fires]
        for mean, deviation, images in zip(ranked.mean_K, ranked.deviation_K, ranked.images_K, strict=True):
            row += [_cell(mean), _cell(deviation), int(images)]
        rows.append(row)
    _write_csv(path, head, rows)


def distances_csv(rows: Sequence[tuple[int, str, float, float, float, str, float, bool]], path: Path) -> None:
    """Write one row per distance: filter, image, activation, peak (row, col; pixels), landmark, distance, counted."""
    head = ["filter", "image", "activation", "peak_row", "peak_col", "landmark", "distance", "counted"]
    _write_csv(path, head, [[*row[:2], *map(_cell, row[2:5]), row[5], _cell(row[6]), int(row[7])] for row in rows])


def _cell(value: float) -> float | None:
    """A number in full precision; None, an empty cell, for NaN."""
    return None if np.isnan(value) else float(value)


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        for row in (head, *rows):
            csv.writer(file).writerow([csv_cell(value) if isinstance(value, str) else value for value in row])


CELL = 1.55
"""Side of an image in the figure, inches."""


@dataclass(frozen=True)
class RunColumn:
    """Receptive fields of one filter of a run."""

    title: str
    """Label of the run and its template, on one line each."""
    ranked: RankedFilter
    regions_ISS: NDArray[np.bool_]
    """Region in each image; all False if no cell is above the threshold."""


def save_receptive_fields_figure(
    images_ISS3: NDArray[np.uint8], columns: Sequence[RunColumn], of: int, which: str, path: Path
) -> None:
    """Write a PNG. Regions keep their colours and are outlined; the rest of an image is dark and grey.

    of: number of object images. which: how the filter of each run was chosen, for the caption.
    """
    rows, wide = len(images_ISS3), len(columns)
    width, height = max(wide * CELL + 0.3, 5.2), rows * CELL + 1.7
    figure = new_figure(width, height, layout=None)
    axes = figure.subplots(rows, wide, squeeze=False)
    left = (width - wide * CELL) / 2 / width
    figure.subplots_adjust(left, 0.8 / height, 1 - left, 1 - 0.86 / height, wspace=0.04, hspace=0.04)
    for row, image_SS3 in enumerate(images_ISS3):
        for axis, column in zip(axes[row], columns, strict=True):
            _draw_region(axis, image_SS3, column.regions_ISS[row])
    for axis, column in zip(axes[0], columns, strict=True):
        lines = [part for line in column.title.splitlines() for part in textwrap.wrap(line, 24)]
        ranked = column.ranked
        measured = "" if math.isnan(ranked.instability) else f", {ranked.instability:.3f}"
        lines += [f"filter {ranked.number}{measured}", f"fires in {ranked.fires} of {of}"]
        axis.set_title("\n".join(lines), fontsize=7, linespacing=1.25)
    blind = all(math.isnan(column.ranked.instability) for column in columns)
    number = "" if blind else ", with its location instability (share of the image diagonal)"
    text = (
        f"Rows: images, the same for all runs. Columns: runs, of each {which}{number}. Lit: the filter's receptive "
        "field, round fields of the cells above its top 0.5 % (the paper's share; the released code takes 0.3 %); dark "
        "image: no cell above. A filter that stands for a part is lit at the same part from top to bottom."
    )
    caption(figure, text, width)
    figure.savefig(path, dpi=110)


def _draw_region(axis: Axes, image_SS3: NDArray[np.uint8], region_SS: NDArray[np.bool_]) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    grey_SS3 = np.repeat((image_SS3 @ np.array([0.299, 0.587, 0.114]))[:, :, None], 3, axis=2)
    shown = np.where(region_SS[:, :, None], image_SS3, 40 + 0.42 * grey_SS3).astype(np.uint8)
    axis.imshow(shown, interpolation="bilinear")
    if region_SS.any():
        # A border of False closes the outline of a region that meets the edge of the image.
        padded = np.pad(region_SS, 1).astype(float)
        along = np.arange(-1, len(region_SS) + 1)
        for color, line in (("black", 2.4), ("white", 1.1)):
            axis.contour(along, along, padded, levels=[0.5], colors=color, linewidths=line)
    axis.set(xlim=(-0.5, len(region_SS) - 0.5), ylim=(len(region_SS) - 0.5, -0.5))


def save_template_figure(unit_Pnn: NDArray[np.floating], title: str, path: Path) -> None:
    """Write a PNG: templates of an n x n map at three centres, outlined where they are positive, and their profiles.

    unit_Pnn: [n^2, n, n], divided by tau. The profiles are the middle row and the middle column of the middle template;
    they differ if the shape is not round.
    """
    n = unit_Pnn.shape[-1]
    middle = n // 2
    figure = new_figure(11, 3.2)
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.35))
    for axis, (row, col) in zip(axes, ((middle, middle), (0, 0), (middle, n - 1)), strict=False):
        unit_nn = unit_Pnn[row * n + col]
        image = axis.imshow(unit_nn, cmap=MAP, vmin=-1, vmax=1)
        _edge(axis, unit_nn > 0)
        axis.plot(col, row, "+", color=RED, markersize=8)
        axis.set(title=f"centre ({row}, {col})", xlabel="column, cells", ylabel="row, cells")
    figure.colorbar(image, ax=axes[:3], label="template / tau", shrink=0.8)
    unit_nn, cells = unit_Pnn[middle * n + middle], np.arange(n) - middle
    axes[3].plot(cells, unit_nn[middle], "o-", markersize=3, color="black", label="row")
    axes[3].plot(cells, unit_nn[:, middle], "s--", markersize=3, color=ORANGE, label="column")
    axes[3].axhline(0, color="grey", linewidth=0.8)
    axes[3].set(title="profile", xlabel="cells from the centre", ylabel="template / tau", ylim=(-1.1, 1.5))
    axes[3].legend(fontsize="small", frameon=False, loc="upper center", ncols=2)
    figure.suptitle(f"Part templates {title}, {n} x {n} cells: inside the line activation counts as the part")
    figure.savefig(path, dpi=110)


def _edge(axis: Axes, inside_nn: NDArray[np.bool_]) -> None:
    """Draw the border between cells inside and outside, except along the edge of the map."""
    for rows, cols in zip(*np.nonzero(inside_nn[:, 1:] != inside_nn[:, :-1]), strict=True):
        axis.plot((cols + 0.5, cols + 0.5), (rows - 0.5, rows + 0.5), color="white", linewidth=1)
    for rows, cols in zip(*np.nonzero(inside_nn[1:] != inside_nn[:-1]), strict=True):
        axis.plot((cols - 0.5, cols + 0.5), (rows + 0.5, rows + 0.5), color="white", linewidth=1)
