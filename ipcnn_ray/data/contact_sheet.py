"""Crops of a store on one page, with their landmarks drawn in, for a person to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ipcnn_ray.data.store import CropStore, rows_reader

COLORS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#ff2dd4", "#00e5ff", "#ff9500", "#ffffff")
"""One for each landmark, in their order."""
TILE = 128
"""Side of a crop on the page, pixels."""
LINE = 14
"""Height of a line of text, pixels."""


def contact_sheet(store: CropStore, path: Path, *, per_category: int = 24, columns: int = 8) -> None:
    """Write a PNG: of each category and of the negatives as many crops, evenly spread over the store."""
    shown = [_spread(np.flatnonzero(store.labels_N == label), per_category) for label in _labels(store)]
    rows = [chunk for rows_N in shown for chunk in _chunks(rows_N, columns)]
    legend = [f"{name}" for name in store.landmark_names]
    width, height = columns * TILE, LINE + 6 + len(rows) * (TILE + LINE)
    page = Image.new("RGB", (width, height), "#202020")
    pen = ImageDraw.Draw(page)
    left = 4.0
    for k, name in enumerate(legend):
        pen.text((left, 3), name, fill=COLORS[k % len(COLORS)])
        left += pen.textlength(name) + 16
    read = rows_reader(store.images_N3SS)
    for line, numbers in enumerate(rows):
        top = LINE + 6 + line * (TILE + LINE)
        for column, (number, crop) in enumerate(zip(numbers.tolist(), read(numbers), strict=True)):
            tile = Image.fromarray(crop.transpose(1, 2, 0)).resize((TILE, TILE), Image.Resampling.BILINEAR)
            page.paste(tile, (column * TILE, top))
            _mark(pen, store, number, column * TILE, top)
            pen.text((column * TILE + 2, top + TILE), store.names[number][: TILE // 6], fill="#c0c0c0")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def _labels(store: CropStore) -> list[int]:
    return [label for label in [*range(len(store.categories)), -1] if (store.labels_N == label).any()]


def _spread(numbers: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of them, evenly spread, the first and the last among them."""
    return np.unique(numbers[np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)])


def _chunks(numbers: np.ndarray, columns: int) -> list[np.ndarray]:
    return [numbers[start : start + columns] for start in range(0, len(numbers), columns)]


def _mark(pen: ImageDraw.ImageDraw, store: CropStore, number: int, left: int, top: int) -> None:
    for k, (row, col) in enumerate(store.landmarks_NK2[number].tolist()):
        if np.isnan(row) or np.isnan(col):
            continue
        x, y = left + (col + 0.5) * TILE / store.size, top + (row + 0.5) * TILE / store.size
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), outline="black", width=3)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), outline=COLORS[k % len(COLORS)], width=2)
