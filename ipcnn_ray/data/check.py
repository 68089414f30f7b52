"""What is in a store, for a person who wants to know what a run will see."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.store import CropStore, rows_reader

CHUNK = 64
"""Crops in memory at a time."""


def summary(store: CropStore) -> dict[str, Any]:
    """Counts per split, visibility and spread of the landmarks, and brightness of the crops; JSON-serialisable.

    Places are (row, col) as shares of the crop's side; brightness is the mean of all channels, 0..255.
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
        "splits": {
            "training": _split(store.train_items, labels),
            "validation": _split(store.val_items, labels),
        },
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
    places = store.landmarks_NK2[store.objects, k]
    seen = places[~np.isnan(places).any(1)].astype(np.float64)
    enough = len(seen) > 1
    return {
        "seen": len(seen),
        "share": len(seen) / max(1, len(places)),
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
