"""Where a square crop lies in its image. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

Edges = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax in pixels, 0 the left or upper edge of the image."""


@dataclass(frozen=True)
class CropPlace:
    """Where a square crop lies in its image."""

    width: int
    """Of the image, pixels."""
    height: int
    edges: Edges
    """The part of the image that the crop shows."""
    side: int
    """S, pixels of the crop."""

    def in_image(self, crop_x: float, crop_y: float) -> tuple[float, float]:
        """Return the position in the image of a position in the crop, both with 0 the center of the first pixel."""
        xmin, ymin, xmax, ymax = self.edges
        x = xmin + (crop_x + 0.5) * (xmax - xmin) / self.side - 0.5
        y = ymin + (crop_y + 0.5) * (ymax - ymin) / self.side - 0.5
        return x, y
