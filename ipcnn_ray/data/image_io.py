"""Photographs to square crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax; 1-based and inclusive, as VOC writes them."""


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header."""
    with Image.open(path) as image:
        return image.size


def square_crop(path: Path, box: Box | None, size: int) -> NDArray[np.uint8]:
    """The box of a photograph (all of it for None) resized to [3, size, size] RGB: bilinear, antialiased, the aspect
    ratio not kept (released `getI`). Grey becomes RGB. Raises OSError for a file that does not decode to its end."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")  # decodes; PIL raises OSError on a truncated file
    if box is not None:
        xmin, ymin, xmax, ymax = box
        rgb = rgb.crop((xmin - 1, ymin - 1, xmax, ymax))
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
