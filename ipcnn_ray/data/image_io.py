"""Photographs to square crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax; 1-based and inclusive, as VOC writes them."""


class ImageFileError(ValueError):
    """A file that does not decode to an image; the text says how it fails, without its path."""


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header."""
    with _opened(path) as image:
        return image.size


def square_crop(path: Path, box: Box | None, size: int) -> NDArray[np.uint8]:
    """The box of a photograph (all of it for None) as [3, size, size] RGB; grey becomes RGB.

    Bilinear, antialiased when it shrinks, the aspect ratio not kept (released `getI`). Raises ImageFileError for a
    file that does not decode to its end.
    """
    with _opened(path) as image:
        try:
            rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageFileError(f"does not decode to its end: {error}") from error
    if box is not None:
        xmin, ymin, xmax, ymax = box
        rgb = rgb.crop((xmin - 1, ymin - 1, xmax, ymax))
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def place_in_crop(share_K2: NDArray[np.float64], box: Box, size: int) -> NDArray[np.float64]:
    """Where `square_crop` takes positions of a box: (row, col) in crop pixels, pixel centres at whole numbers.

    `share_K2` are (row, col) as shares of the box, 0 at the centre of its first pixel and 1 at that of its last.
    """
    extent = np.array([box[3] - box[1] + 1, box[2] - box[0] + 1], np.float64)
    return (share_K2 * (extent - 1) + 0.5) * size / extent - 0.5


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageFileError("is not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageFileError(f"cannot be opened as an image: {error}") from error
