"""Outlines of shapes as points, and a canvas that fills them.

Points are (x, y) with y downwards, arrays of shape [points, 2]. Angles are degrees of elevation: 0 points along
+x, 90 upwards. On a canvas the unit square is the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points: TypeAlias = NDArray[np.float64]
Color: TypeAlias = tuple[int, int, int]
BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Part:
    """One filled outline."""

    name: str
    points: Points
    color: Color
    outlined: bool = True
    """Whether it has a darker edge."""


def toward(angle: float, length: float = 1.0) -> Points:
    """Return the vector of this elevation and length."""
    return np.array([math.cos(math.radians(angle)) * length, -math.sin(math.radians(angle)) * length])


def rotate(points: Points, angle: float, about: Points | tuple[float, float] = (0.0, 0.0)) -> Points:
    """Rotate points by `angle`; the direction +x becomes that elevation."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    pivot = np.asarray(about)
    return (points - pivot) @ np.array([[cos, -sin], [sin, cos]]) + pivot


@lru_cache(maxsize=32)
def _unit_round(power: float, count: int) -> Points:
    """Return a circle of radius 1, pushed towards its bounding square as `power` grows beyond 2."""
    angle = np.arange(count) * (2 * math.pi / count)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.sign(circle) * np.abs(circle) ** (2 / power)


def round_shape(center: Points, radius_x: float, radius_y: float, angle: float = 0, power: float = 2) -> Points:
    """Return an ellipse (power 2) or a box with round corners (power > 2), its x axis along `angle`."""
    shape = _unit_round(power, 20) * (radius_x, radius_y)
    return (rotate(shape, angle) if angle else shape) + center


def woolly_shape(center: Points, radius_x: float, radius_y: float, angle: float, bumps: int) -> Points:
    """Return an ellipse with a bumpy edge."""
    count = 8 * bumps
    swell = 0.94 + 0.11 * np.abs(np.sin(np.arange(count) * (math.pi / 8)))
    return rotate(_unit_round(2.0, count) * swell[:, None] * (radius_x, radius_y), angle) + center


def limb(start: Points, end: Points, start_width: float, end_width: float) -> Points:
    """Return a straight band that narrows from one width to the other."""
    return ribbon([start, end], start_width, end_width)


def ribbon(line: Sequence[Points], start_width: float, end_width: float) -> Points:
    """Return a band along a line of points that narrows from one width to the other."""
    middle = np.asarray(line)
    along = np.gradient(middle, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / (np.hypot(along[:, 0], along[:, 1])[:, None] + 1e-9)
    half = np.linspace(start_width / 2, end_width / 2, len(middle))[:, None]
    return np.concatenate([middle + across * half, (middle - across * half)[::-1]])


def bent(start: Points, angle: float, bend: float, length: float, count: int = 6) -> list[Points]:
    """Return a line of points that starts along `angle` and turns by `bend` degrees over its length."""
    line = [start]
    for step in range(count - 1):
        line.append(line[-1] + toward(angle + bend * step / (count - 1), length / (count - 1)))
    return line


def blob(rng: np.random.Generator, center: Points, radius_x: float, radius_y: float, roughness: float) -> Points:
    """Return a closed random outline around a center; roughness 0 is an ellipse."""
    swell = 1 + roughness * rng.uniform(-1, 1, 10)
    return _unit_round(2.0, 10) * swell[:, None] * (radius_x, radius_y) + center


def box_of(points: Sequence[Points]) -> Points:
    """Return the smallest box around all points: [[left, top], [right, bottom]]."""
    every = np.concatenate(list(points))
    return np.stack([every.min(axis=0), every.max(axis=0)])


def contains(points: Points, point: Points) -> bool:
    """Return whether a closed outline contains a point (even-odd rule)."""
    a, b = points, np.roll(points, -1, axis=0)
    crosses = (a[:, 1] > point[1]) != (b[:, 1] > point[1])
    rise = np.where(crosses, b[:, 1] - a[:, 1], 1.0)
    return bool(
        np.count_nonzero(crosses & (point[0] < a[:, 0] + (point[1] - a[:, 1]) / rise * (b[:, 0] - a[:, 0]))) % 2
    )


def shade(color: Color, factor: float) -> Color:
    """Return the color, darker (factor < 1) or lighter (> 1)."""
    red, green, blue = (min(255, int(channel * factor)) for channel in color)
    return red, green, blue


def varied(rng: np.random.Generator, color: Color, spread: float = 14) -> Color:
    """Return a random color near this one: each channel moves, and all of them together."""
    moved = np.clip(np.asarray(color) + rng.normal(0, spread) + rng.normal(0, spread / 2, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


class Canvas:
    """A square image whose unit square outlines are filled on."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.side = image.width
        self.pen = ImageDraw.Draw(image)

    def _at(self, points: Points) -> list[float]:
        flat: list[float] = (points * self.side - 0.5).ravel().tolist()
        return flat

    def fill(self, points: Points, color: Color | int, edge: Color | None = None) -> None:
        self.pen.polygon(self._at(points), fill=color, outline=edge)

    def part(self, part: Part) -> None:
        self.fill(part.points, part.color, shade(part.color, 0.62) if part.outlined else None)

    def line(self, points: Points, color: Color, width: float) -> None:
        """Draw a line. `width` is a share of the image's side."""
        self.pen.line(self._at(points), fill=color, width=max(1, round(width * self.side)))


def soft_colors(colors: NDArray[np.uint8], side: int) -> Image.Image:
    """Return a small grid of colors [rows, columns, 3], interpolated over side x side pixels."""
    return Image.fromarray(colors, "RGB").resize((side, side), BILINEAR)


def soft_field(values: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Return a small grid of numbers [rows, columns], interpolated over side x side pixels."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), BILINEAR))
