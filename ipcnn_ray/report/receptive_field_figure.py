"""Receptive fields of one filter per run, as in figure 6 of the part-template paper: rows are images, columns runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ipcnn_ray.report.filter_figures import caption

CELL = 1.55
"""Side of an image in the figure, inches."""


@dataclass(frozen=True)
class RunColumn:
    """Receptive fields of one filter of a run."""

    title: str
    """Label of the run and its template, on one line each."""
    filter: int
    instability: float
    """Location instability of the filter, share of the image diagonal."""
    fires: int
    """Number of object images in which the filter has a region."""
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
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, wide, squeeze=False)
    left = (width - wide * CELL) / 2 / width
    figure.subplots_adjust(left, 0.8 / height, 1 - left, 1 - 0.86 / height, wspace=0.04, hspace=0.04)
    for row, image_SS3 in enumerate(images_ISS3):
        for axis, column in zip(axes[row], columns, strict=True):
            _cell(axis, image_SS3, column.regions_ISS[row])
    for axis, column in zip(axes[0], columns, strict=True):
        words = f"filter {column.filter}, {column.instability:.3f}\nfires in {column.fires} of {of}"
        axis.set_title(f"{_narrow(column.title)}\n{words}", fontsize=7, linespacing=1.25)
    text = (
        f"Rows: images, the same for all runs. Columns: runs, of each {which}, with its location instability (share of "
        "the image diagonal). Lit: the filter's receptive field, round fields of the cells above its top 0.5 % (the "
        "paper's share; the released code takes 0.3 %); dark image: no cell above. A filter that stands for a part "
        "is lit at the same part from top to bottom."
    )
    caption(figure, text, width)
    figure.savefig(path, dpi=110)


def _narrow(title: str) -> str:
    """Wrap a title to the width of a cell."""
    return "\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, 24))


def _cell(axis: Axes, image_SS3: NDArray[np.uint8], region_SS: NDArray[np.bool_]) -> None:
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
