"""Crops of photographs: decoding, positions in a crop, and the masks of parts."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, UnidentifiedImageError

from ipcnn_ray.core.crop_place import CropPlace

Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax; 1-based and inclusive, as in VOC."""

Photograph = Path | bytes | Image.Image | NDArray[np.uint8]
"""A file, its bytes, an image that is open already, or RGB pixels [H, W, 3]."""

STEPS = 32
"""A mask of a part is a patch [G, G]: how much of the part covers the offsets -1 ... 1 from the center of its box, in
steps of 1 / STEPS of the object's crop, rows and columns. What lies outside the crop is 0."""
G = 2 * STEPS + 1
SUPERSAMPLING = 4
"""Outlines are filled on a grid this much finer."""
ORIENTATION = 0x0112
"""EXIF tag."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read. Pillow knows more, of which EPS starts another program."""
MOST_PIXELS = 89_000_000
"""Pixels of the largest image that is read, as Pillow advises; decoded they take 360 MB."""


class ImageFileError(ValueError):
    """A file that does not decode to an image. The text says how it fails, without the path."""


def image_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Return (width, height) from the file's header.

    upright: Of the image as viewers show it, turned by its EXIF orientation. Only images of 8 bits per channel are
    accepted then.

    Raises ImageFileError.
    """
    with _opened(path) as image:
        if not upright:
            return image.size
        width, height = _of_8_bits(image).size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where none can be read, as viewers do."""
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1
    return value if value in TURNS else 1


def square_crop(path: Path, box: Box | None, size: int, *, upright: bool = False) -> NDArray[np.uint8]:
    """Return the box of a photograph (all of it for None) as [3, size, size] RGB; gray becomes RGB.

    Bilinear, antialiased when it shrinks, the aspect ratio not kept (released `getI`). Raises ImageFileError for a
    file that does not decode to its end.

    upright: Turn the image by its EXIF orientation first, as viewers do.
    """
    with _opened(path) as image:
        return crop_of(rgb_image(image, upright=upright), box, size)


def rgb_image(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """Return an opened image in RGB, turned by its EXIF orientation if `upright`. Raises ImageFileError for a file that
    does not decode to its end."""
    try:
        rgb = image.convert("RGB")
    except Exception as error:
        raise ImageFileError(f"does not decode to its end: {error}") from error
    turn = TURNS.get(_orientation(image)) if upright else None
    return rgb if turn is None else rgb.transpose(turn)


def crop_of(rgb: Image.Image, box: Box | None, size: int) -> NDArray[np.uint8]:
    """Return the box of an RGB image (all of it for None) as [3, size, size]: see `square_crop`."""
    if box is not None:
        xmin, ymin, xmax, ymax = box
        rgb = rgb.crop((xmin - 1, ymin - 1, xmax, ymax))
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def place_in_crop(landmarks_K2: NDArray[np.float64], box: Box, size: int) -> NDArray[np.float64]:
    """Map positions in a box to its `square_crop`: (row, col) in crop pixels, pixel centers at whole numbers.

    `landmarks_K2` are (row, col) as shares of the box, 0 at the center of its first pixel and 1 at that of its last.
    """
    extent = np.array([box[3] - box[1] + 1, box[2] - box[0] + 1], np.float64)
    return (landmarks_K2 * (extent - 1) + 0.5) * size / extent - 0.5


def crop_with_place(
    source: Photograph, edges: Sequence[float] | None, size: int, *, upright: bool = False
) -> tuple[NDArray[np.uint8], CropPlace]:
    """Return the `square_crop` of a photograph, [3, size, size] RGB, and where it lies in the photograph.

    edges: xmin, ymin, xmax, ymax in pixels, 0 the left or upper edge, rounded to whole pixels as those of a table of
    photographs; None for all of it. upright: see `open_photograph`.
    Raises ImageFileError as `open_photograph`, and for edges that are not a box inside the photograph.
    """
    rgb = open_photograph(source, upright=upright)
    width, height = rgb.size
    given = (0, 0, width, height) if edges is None else tuple(edges)
    if len(given) != 4 or not all(map(math.isfinite, given)):
        raise ImageFileError(f"has the box {given}: expected xmin, ymin, xmax, ymax")
    xmin, ymin, xmax, ymax = (math.floor(edge + 0.5) for edge in given)
    if not (0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height):
        box, whole = (", ".join(f"{edge:g}" for edge in box) for box in (given, (0, 0, width, height)))
        raise ImageFileError(f"has the box {box}, which is not a box inside its {whole}")
    crop_3SS = crop_of(rgb, (xmin + 1, ymin + 1, xmax, ymax), size)
    return crop_3SS, CropPlace(width, height, (xmin, ymin, xmax, ymax), size)


def open_photograph(source: Photograph, *, upright: bool = False) -> Image.Image:
    """Return a photograph in RGB.

    upright: Turn the image by its EXIF orientation, as viewers do; pixels have none.
    Raises ImageFileError for a file that does not decode to its end, images of more than 8 bits per channel, and arrays
    of another shape or type.
    """
    if isinstance(source, Image.Image):
        return rgb_image(_of_8_bits(source), upright=upright)
    if isinstance(source, Path | bytes):
        with _opened(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            return rgb_image(_of_8_bits(image), upright=upright)
    pixels = np.asarray(source)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size or pixels.dtype != np.uint8:
        raise ImageFileError(f"is an array of {pixels.dtype}, shape {pixels.shape}: expected uint8 RGB [H, W, 3]")
    return Image.fromarray(pixels)


def preview(source: Photograph, most: int, *, upright: bool = False) -> NDArray[np.uint8]:
    """Return a photograph as RGB pixels [h, w, 3], shrunk to at most `most` pixels a side, its aspect ratio kept.
    upright, errors: see `open_photograph`."""
    rgb = open_photograph(source, upright=upright)
    rgb.thumbnail((most, most))
    return np.asarray(rgb)


def _of_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ImageFileError(f"has more than 8 bits per channel (mode {image.mode})")
    return image


def _opened(file: Path | io.BytesIO) -> Image.Image:
    if isinstance(file, Path) and not os.path.isfile(file):  # a pipe would never end
        raise ImageFileError("is not a file")
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageFileError("is not an image") from error
    except Exception as error:  # Pillow has no exception of its own for damaged files
        raise ImageFileError(f"cannot be opened as an image: {error}") from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise ImageFileError(f"has {width} x {height} pixels, more than {MOST_PIXELS // 10**6} million")
    return image


def decode(
    crops: Sequence[tuple[Path, Box | None]],
    images_N3SS: NDArray[np.uint8],
    progress: Callable[[int, int], None] | None = None,
    *,
    upright: bool = False,
) -> dict[Path, str]:
    """Decode the `square_crop` of each photograph and box into an array, in threads. Return how files fail that do not
    decode to their end."""

    def decode_into(i: int) -> str:
        try:
            images_N3SS[i] = square_crop(*crops[i], images_N3SS.shape[-1], upright=upright)
        except ImageFileError as error:
            return str(error)
        return ""

    failures: dict[Path, str] = {}
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        try:
            for i, failure in enumerate(pool.map(decode_into, range(len(crops)))):
                if failure:
                    failures.setdefault(crops[i][0], failure)
                if progress:
                    progress(i + 1, len(crops))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failures


def part_of_mask(
    mask: NDArray[np.bool_] | None, box: Box
) -> tuple[tuple[float, float], tuple[float, float], NDArray[np.float32] | None]:
    """Measure the part of a mask that lies inside an object's box.

    Args:
        mask: [rows, columns] of the whole photograph; None for a part that is not seen.
        box: The object's box.

    Returns:
        Center and (height, width) of the smallest box around the part, shares of the object's box, and its patch;
        NaN and None where nothing is seen.
    """
    xmin, ymin, xmax, ymax = box
    inside = np.empty((0, 0), np.bool_) if mask is None else mask[max(0, ymin - 1) : ymax, max(0, xmin - 1) : xmax]
    if not inside.any():
        return (math.nan, math.nan), (math.nan, math.nan), None
    rows, cols = np.nonzero(inside)
    row, col = (rows.min() + rows.max()) / 2, (cols.min() + cols.max()) / 2
    size = (np.ptp(rows) + 1) / (ymax - ymin + 1), (np.ptp(cols) + 1) / (xmax - xmin + 1)
    return (row / (ymax - ymin), col / (xmax - xmin)), size, patch_of_mask(inside, (row, col))


def patch_of_mask(inside: NDArray[np.bool_], center: tuple[float, float]) -> NDArray[np.float32]:
    """Return the patch of a mask in its object's box. `center` is (row, col) in pixels, 0 the center of the first."""
    rows, cols = (
        np.floor(middle + np.arange(-STEPS, STEPS + 1) / STEPS * side + 0.5).astype(np.int64)
        for middle, side in zip(center, inside.shape, strict=True)
    )
    on_box = ((rows >= 0) & (rows < inside.shape[0]))[:, None] & ((cols >= 0) & (cols < inside.shape[1]))
    nearest = inside[np.clip(rows, 0, inside.shape[0] - 1)][:, np.clip(cols, 0, inside.shape[1] - 1)]
    patch: NDArray[np.float32] = (nearest & on_box).astype(np.float32)
    return patch


def patch_of_outline(points: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the patch of a closed outline of points (x, y) in the unit square, cut at its edges."""
    image = Image.new("L", (G * SUPERSAMPLING, G * SUPERSAMPLING))
    at = ((points - center) * STEPS + STEPS + 0.5) * SUPERSAMPLING - 0.5
    ImageDraw.Draw(image).polygon(at.ravel().tolist(), fill=255)
    patch = np.asarray(image.reduce(SUPERSAMPLING), np.float32) / 255
    offsets = np.arange(-STEPS, STEPS + 1) / STEPS
    on_row, on_col = ((center[axis] + offsets >= 0) & (center[axis] + offsets <= 1) for axis in (1, 0))
    visible: NDArray[np.float32] = patch * (on_row[:, None] & on_col)
    return visible


class MeanMasks:
    """The mean patch of each of K landmarks."""

    def __init__(self, count: int) -> None:
        self.sums_KGG = np.zeros((count, G, G), np.float64)
        self.seen_K = np.zeros(count, np.int64)

    def add(self, patches: Sequence[NDArray[np.float32] | None]) -> None:
        """Add the patches of one object by landmark, None where a part is not seen."""
        for k, patch in enumerate(patches):
            if patch is not None:
                self.sums_KGG[k] += patch
                self.seen_K[k] += 1

    def mean(self) -> NDArray[np.float32]:
        """Return [K, G, G]; NaN for a landmark that was never seen."""
        with np.errstate(invalid="ignore"):
            return (self.sums_KGG / self.seen_K[:, None, None]).astype(np.float32)
