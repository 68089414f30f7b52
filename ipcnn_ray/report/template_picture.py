"""A picture of part templates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


def template_picture(unit_Pnn: NDArray[np.floating], title: str, path: Path) -> None:
    """Positive templates of an n x n map at three centres and in profile, as a PNG.

    unit_Pnn: [n^2, n, n], divided by tau.
    """
    n = unit_Pnn.shape[-1]
    middle = n // 2
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    for axis, (row, col) in zip(axes, ((middle, middle), (0, 0), (middle, n - 1)), strict=False):
        image = axis.imshow(unit_Pnn[row * n + col], cmap="cividis", vmin=-1, vmax=1)
        axis.plot(col, row, "+", color="white", markersize=8)
        axis.set(title=f"centre ({row}, {col})", xlabel="column, cells", ylabel="row, cells")
    figure.colorbar(image, ax=axes[:3], label="template / tau", shrink=0.8)
    axes[3].step(range(n), unit_Pnn[middle * n + middle][middle], where="mid", color="black")
    axes[3].axhline(0, color="grey", linewidth=0.8)
    axes[3].set(title=f"row {middle}", xlabel="column, cells", ylabel="template / tau", ylim=(-1.1, 1.1))
    figure.suptitle(f"Part templates {title}, {n} x {n} cells: where they are positive, activation counts as the part")
    figure.savefig(path, dpi=110)
