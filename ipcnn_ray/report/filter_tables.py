"""The filters of a run from stable to unstable, as a table for the terminal and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.report.ranking import Table

COLUMNS = ("rank", "filter", "instability", "steadiest landmark", "least steady landmark")
RIGHT = ("rank", "filter", "instability")


@dataclass(frozen=True)
class RankedFilter:
    """A filter among those of its layer; distances as shares of the image diagonal."""

    rank: int | None
    """1: the most stable; None for one that could not be measured."""
    number: int
    category: str
    """The category on whose images it was measured."""
    instability: float
    mean_K: NDArray[np.floating]
    deviation_K: NDArray[np.floating]
    images_K: NDArray[np.integer]
    """Images whose distance counts."""
    fires: int
    """Object images in which a cell is above the filter's top 0.5 %."""


def terminal_table(filters: Sequence[RankedFilter], landmarks: Sequence[str]) -> Table:
    """Rows of some filters: of each the landmarks that it keeps its distance from best and worst, mean ± deviation."""
    rows = []
    for one in filters:
        known = np.flatnonzero(~np.isnan(one.deviation_K))
        best, worst = known[one.deviation_K[known].argmin()], known[one.deviation_K[known].argmax()]
        words = [f"{landmarks[k]} {one.mean_K[k]:.3f} ± {one.deviation_K[k]:.3f}" for k in (best, worst)]
        rows.append([str(one.rank), str(one.number), f"{one.instability:.4f}", *words])
    return Table(COLUMNS, rows, RIGHT)


def filters_csv(filters: Sequence[RankedFilter], landmarks: Sequence[str], path: Path) -> None:
    """Every filter, the most stable first, those that could not be measured last."""
    head = ["rank", "filter", "category", "instability", "fires_in_images"]
    for name in landmarks:
        head += [f"{name}_mean_distance", f"{name}_deviation", f"{name}_images"]
    rows = []
    for one in filters:
        row = [one.rank, one.number, one.category, _cell(one.instability), one.fires]
        for mean, deviation, images in zip(one.mean_K, one.deviation_K, one.images_K, strict=True):
            row += [_cell(mean), _cell(deviation), int(images)]
        rows.append(row)
    _write(path, head, rows)


def distances_csv(
    rows: Sequence[tuple[int, str, float, float, float, str, float, bool]],
    path: Path,
) -> None:
    """Distance by distance: filter, image, activation, peak (row, col; pixels), landmark, distance, counted."""
    head = ["filter", "image", "activation", "peak_row", "peak_col", "landmark", "distance", "counted"]
    _write(path, head, [[*row[:2], *map(_cell, row[2:5]), row[5], _cell(row[6]), int(row[7])] for row in rows])


def _cell(value: float) -> str:
    """A number that reads back as it is; nothing where there is none."""
    return "" if np.isnan(value) else repr(float(value))


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
