"""Figure of part templates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ipcnn_ray.report.style import MAP, ORANGE, RED


def save_template_figure(unit_Pnn: NDArray[np.floating], title: str, path: Path) -> None:
    """Write a PNG: templates of an n x n map at three centres, outlined where they are positive, and their profiles.

    unit_Pnn: [n^2, n, n], divided by tau. The profiles are the middle row and the middle column of the middle template;
    they differ if the shape is not round.
    """
    n = unit_Pnn.shape[-1]
    middle = n // 2
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
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
