"""Masks of parts around the centres of their boxes, and their mean over the training objects.

A patch is [G, G]: how much of the part covers the offsets -1 ... 1 from the centre of its box, in steps of 1 / STEPS of
the object's crop, rows and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

STEPS = 32
G = 2 * STEPS + 1
FINE = 4
"""Outlines are filled on a grid this much finer."""


def patch_of_mask(inside: NDArray[np.bool_], center: tuple[float, float]) -> NDArray[np.float32]:
    """The patch of a part's mask in its object's box; center: (row, col) in pixels of the box, 0 the first pixel's."""
    rows, cols = (
        np.floor(middle + np.arange(-STEPS, STEPS + 1) / STEPS * side + 0.5).astype(np.int64)
        for middle, side in zip(center, inside.shape, strict=True)
    )
    on_box = ((rows >= 0) & (rows < inside.shape[0]))[:, None] & ((cols >= 0) & (cols < inside.shape[1]))
    found = inside[np.clip(rows, 0, inside.shape[0] - 1)][:, np.clip(cols, 0, inside.shape[1] - 1)]
    return (found & on_box).astype(np.float32)


def patch_of_outline(points: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float32]:
    """The patch of a closed outline of points (x, y) in the unit square, less what lies outside of the square."""
    image = Image.new("L", (G * FINE, G * FINE))
    at = ((points - center) * STEPS + STEPS + 0.5) * FINE - 0.5
    ImageDraw.Draw(image).polygon(at.ravel().tolist(), fill=255)
    patch = np.asarray(image.reduce(FINE), np.float32) / 255
    offsets = np.arange(-STEPS, STEPS + 1) / STEPS
    on_row, on_col = ((center[axis] + offsets >= 0) & (center[axis] + offsets <= 1) for axis in (1, 0))
    return patch * (on_row[:, None] & on_col)


class MeanMasks:
    """The mean patch of each of K landmarks."""

    def __init__(self, count: int) -> None:
        self.sums_KGG = np.zeros((count, G, G), np.float64)
        self.seen_K = np.zeros(count, np.int64)

    def add(self, patches: list[NDArray[np.float32] | None]) -> None:
        """The patches of one object by landmark, None where a part is not seen."""
        for k, patch in enumerate(patches):
            if patch is not None:
                self.sums_KGG[k] += patch
                self.seen_K[k] += 1

    def mean(self) -> NDArray[np.float32]:
        """[K, G, G]; NaN for a landmark that was never seen."""
        with np.errstate(invalid="ignore"):
            return (self.sums_KGG / self.seen_K[:, None, None]).astype(np.float32)
