"""Summary and contact sheet of a store: what a run will see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ipcnn_ray.data.crop_store import CropStore, rows_reader

CHUNK = 64
"""Crops in memory at a time."""


def summary(store: CropStore) -> dict[str, Any]:
    """Return counts by split, visibility and spread of the landmarks, and brightness of the crops; JSON-serializable.

    Positions are (row, col) as shares of the crop's side. Brightness is the mean of all channels, 0..255.
    """
    labels = store.labels_N >= 0
    return {
        "digest": store.digest,
        "image_size": store.size,
        "tags": dict(store.tags),
        "objects": int(labels.sum()),
        "objects_of": {name: int((store.labels_N == k).sum()) for k, name in enumerate(store.categories)},
        "negatives": int((~labels).sum()),
        "left_out": dict(store.left_out),
        "splits": {"training": _split(store.train_items, labels), "validation": _split(store.val_items, labels)},
        "landmarks": {name: _landmark(store, k) for k, name in enumerate(store.landmark_names)},
        "brightness": _brightness(store, labels),
    }


def _split(items: NDArray[np.int64], labels: NDArray[np.bool_]) -> dict[str, int]:
    positive = labels[items[:, 0]]
    distinct = np.unique(items[positive, 0])
    return {
        "items": len(items),
        "positive_items": int(positive.sum()),
        "negative_items": int((~positive).sum()),
        "objects": len(distinct),
    }


def _landmark(store: CropStore, k: int) -> dict[str, Any]:
    positions = store.landmarks_NK2[store.objects, k]
    seen = positions[~np.isnan(positions).any(1)].astype(np.float64)
    enough = len(seen) > 1
    return {
        "seen": len(seen),
        "share": len(seen) / max(1, len(positions)),
        "mean": (seen.mean(0) / store.size).tolist() if enough else None,
        "deviation": (seen.std(0, ddof=1) / store.size).tolist() if enough else None,
    }


def _brightness(store: CropStore, labels: NDArray[np.bool_]) -> dict[str, float | None]:
    read = rows_reader(store.images_N3SS)
    means = np.empty(len(labels))
    for start in range(0, len(labels), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(labels)))
        means[rows] = read(rows).mean((1, 2, 3), dtype=np.float64)
    return {
        "objects": float(means[labels].mean()),
        "negatives": float(means[~labels].mean()) if (~labels).any() else None,
    }


COLORS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#ff2dd4", "#00e5ff", "#ff9500", "#ffffff")
"""Colors of the landmarks in their order; the ninth has the first again."""
TILE = 128
"""Side of a crop on the sheet, pixels."""
LINE = 14
"""Height of a line of text, pixels."""


def contact_sheet(store: CropStore, path: Path, *, per_category: int = 24, columns: int = 8) -> None:
    """Write a PNG of up to `per_category` crops of each category and of the negatives, evenly spread."""
    rows = [
        shown[start : start + columns]
        for label in (*range(len(store.categories)), -1)
        for shown in [_spread(np.flatnonzero(store.labels_N == label), per_category)]
        for start in range(0, len(shown), columns)
    ]
    width, height = columns * TILE, LINE + 6 + len(rows) * (TILE + LINE)
    page = Image.new("RGB", (width, height), "#202020")
    pen = ImageDraw.Draw(page)
    left = 4.0
    if not store.landmark_names:
        pen.text((left, 3), "no landmarks", fill="#c0c0c0")
    for k, name in enumerate(store.landmark_names):
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


def _spread(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the numbers, evenly spread, with the first and the last."""
    return np.unique(numbers[np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)])


def _mark(pen: ImageDraw.ImageDraw, store: CropStore, number: int, left: int, top: int) -> None:
    for k, (row, col) in enumerate(store.landmarks_NK2[number].tolist()):
        if np.isnan(row) or np.isnan(col):
            continue
        x, y = left + (col + 0.5) * TILE / store.size, top + (row + 0.5) * TILE / store.size
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), outline="black", width=3)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), outline=COLORS[k % len(COLORS)], width=2)
