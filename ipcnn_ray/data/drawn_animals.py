"""Drawn animals: procedural pictures with known landmarks, for a first experiment that needs no download.

An animal is a body plan (proportions), a pose and a coat, drawn side on before clutter. The picture is its bounding
box stretched to a square, as crops of real objects are. Image i depends on (drawing seed, i) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ipcnn_ray.spec.experiment import Category

VERSION = "1"
"""Changes whenever the same seed gives other pictures."""
OVERSAMPLING = 3
Points = NDArray[np.float64]
"""[M, 2] corners (x, y) in units of the body length, y down."""


@dataclass(frozen=True)
class Plan:
    """Proportions of an animal, in units of its body length, and angles in degrees."""

    height: float
    """Thickness of the torso."""
    legs: float
    """Length of the legs."""
    pairs: int
    """Visible pairs of legs."""
    neck: float
    neck_width: float
    rise: float
    """Angle of the neck above the horizontal."""
    head: float
    """Diameter of the head."""
    snout: float
    ears: float
    tail: float
    beak: bool = False


PLANS: dict[Category, Plan] = {
    "bird": Plan(0.55, 0.35, 1, 0.16, 0.22, 55, 0.32, 0.20, 0.0, 0.45, beak=True),
    "cat": Plan(0.34, 0.36, 2, 0.12, 0.20, 40, 0.30, 0.08, 0.14, 0.60),
    "cow": Plan(0.50, 0.42, 2, 0.26, 0.26, 20, 0.28, 0.18, 0.10, 0.40),
    "dog": Plan(0.36, 0.46, 2, 0.22, 0.18, 50, 0.26, 0.18, 0.14, 0.36),
    "horse": Plan(0.38, 0.62, 2, 0.44, 0.20, 50, 0.24, 0.24, 0.08, 0.42),
    "sheep": Plan(0.56, 0.32, 2, 0.18, 0.24, 25, 0.26, 0.14, 0.08, 0.12),
}


@dataclass(frozen=True)
class Shape:
    """One polygon of the animal."""

    part: str
    points: Points
    shade: float
    """Brightness relative to the coat."""


def _ellipse(x: float, y: float, width: float, height: float, angle: float = 0.0, corners: int = 28) -> Points:
    t = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    a, b = width / 2 * np.cos(t), height / 2 * np.sin(t)
    return np.stack([x + a * math.cos(angle) - b * math.sin(angle), y + a * math.sin(angle) + b * math.cos(angle)], 1)


def _limb(x: float, y: float, angle: float, length: float, start: float, end: float) -> Points:
    """A tapering quadrilateral from (x, y); angle 0 points to +x, pi / 2 down."""
    dx, dy = math.cos(angle), math.sin(angle)
    tip = (x + length * dx, y + length * dy)
    return np.array(
        [
            (x - dy * start / 2, y + dx * start / 2),
            (tip[0] - dy * end / 2, tip[1] + dx * end / 2),
            (tip[0] + dy * end / 2, tip[1] - dx * end / 2),
            (x + dy * start / 2, y - dx * start / 2),
        ]
    )


def _animal(plan: Plan, rng: np.random.Generator) -> list[Shape]:
    """The parts of one animal facing +x, far ones first."""

    def vary(value: float, share: float = 0.15) -> float:
        return value * float(rng.uniform(1 - share, 1 + share))

    height, leg = vary(plan.height), vary(plan.legs, 0.25)
    lying = rng.random() < 0.15
    if lying:
        leg *= 0.25
    shapes: list[Shape] = []
    for far in (True, False):
        for pair in range(plan.pairs):
            x = (-0.36 if pair == 0 else 0.34) if plan.pairs == 2 else 0.0
            swing = math.pi / 2 + rng.uniform(-0.35, 0.35)
            foot = _limb(x + rng.uniform(-0.05, 0.05), height * 0.2, swing, leg + height * 0.25, 0.13, 0.07)
            shapes.append(Shape("leg", foot, 0.55 if far else 0.85))
    tail_angle = math.pi + rng.uniform(-0.8, 0.9)
    shapes.append(Shape("tail", _limb(-0.45, -height * 0.2, tail_angle, vary(plan.tail, 0.4), 0.07, 0.03), 0.8))
    shapes.append(Shape("torso", _ellipse(0, 0, 1.08, height), 1.0))
    # The head may be raised or lowered to graze.
    rise = math.radians(plan.rise + rng.uniform(-30, 30) - (60 if rng.random() < 0.2 else 0))
    neck_x, neck_y, neck = 0.40, -height * 0.18, vary(plan.neck, 0.2)
    shapes.append(
        Shape("neck", _limb(neck_x, neck_y, -rise, neck + plan.head * 0.4, plan.neck_width * 1.25, plan.neck_width * 0.8), 0.92)
    )
    head = vary(plan.head)
    x = neck_x + (neck + head * 0.45) * math.cos(rise)
    y = neck_y - (neck + head * 0.45) * math.sin(rise)
    tilt = rng.uniform(-0.25, 0.5)
    for side in (-1, 1):
        ear = _limb(x - head * 0.1 + side * head * 0.16, y - head * 0.3, -math.pi / 2 + side * 0.5, vary(plan.ears), 0.09, 0.03)
        shapes.append(Shape("ear", ear, 0.7))
    shapes.append(Shape("head", _ellipse(x, y, head * 1.1, head * 0.92, tilt), 1.08))
    snout_x, snout_y = x + math.cos(tilt) * head * 0.35, y + math.sin(tilt) * head * 0.35 + head * 0.08
    snout = vary(plan.snout) + head * 0.15
    shapes.append(Shape("head", _limb(snout_x, snout_y, tilt, snout, head * 0.5, head * (0.08 if plan.beak else 0.36)), 0.8))
    nose_x, nose_y = snout_x + math.cos(tilt) * snout, snout_y + math.sin(tilt) * snout
    shapes.append(Shape("nose", _ellipse(nose_x, nose_y, head * 0.26, head * 0.26), 0.35))
    shapes.append(Shape("eye", _ellipse(x + head * 0.18, y - head * 0.12, head * 0.16, head * 0.16), 0.1))
    return shapes


def _fit(shapes: list[Shape], size: int, rng: np.random.Generator) -> list[Shape]:
    """Mirrored at random, the bounding box stretched to the square up to a few per cent, as boxes drawn by hand are."""
    facing = -1.0 if rng.random() < 0.5 else 1.0
    corners = np.concatenate([s.points for s in shapes]) * (facing, 1)
    low, high = corners.min(0), corners.max(0)
    slack = rng.uniform(-0.03, 0.08, (2, 2)) * (high - low)
    low, high = low - slack[0], high + slack[1]
    return [Shape(s.part, (s.points * (facing, 1) - low) / (high - low) * size, s.shade) for s in shapes]


def _texture(size: int, rng: np.random.Generator, base: NDArray[np.float64], contrast: float) -> NDArray[np.float64]:
    """A patchy or striped colour field [size, size, 3] around `base`."""
    cells = int(rng.integers(3, 9))
    coarse = rng.normal(0, 1, (cells, cells if rng.random() < 0.7 else 1)).astype(np.float32)
    field = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), np.float64)
    if rng.random() < 0.4:
        field = np.sign(field) * 0.8  # spots and stripes with hard edges
    other = np.clip(base + rng.normal(0, 60, 3), 10, 245)
    mix = np.clip(0.5 + contrast * field, 0, 1)[:, :, None]
    return base * mix + other * (1 - mix)


def _paint(canvas: NDArray[np.float64], points: Points, colour: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Fill a polygon with a colour or a colour field; returns the pixels that it covers."""
    mask = Image.new("1", canvas.shape[1::-1])
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in points], fill=1)
    covered = np.asarray(mask)
    canvas[covered] = np.clip(colour[covered] if colour.ndim == 3 else colour, 0, 255)
    return covered


def _blob(size: int, rng: np.random.Generator, low: float, high: float) -> Points:
    """An ellipse, stick or crooked polygon somewhere in the picture."""
    x, y = rng.uniform(0, size, 2)
    kind = rng.random()
    if kind < 0.35:
        return _ellipse(x, y, size * rng.uniform(low, high), size * rng.uniform(low, high), rng.uniform(0, math.pi))
    if kind < 0.65:
        return _limb(x, y, rng.uniform(0, 2 * math.pi), size * rng.uniform(low, 2 * high), size * 0.06, size * 0.03)
    t = np.sort(rng.uniform(0, 2 * math.pi, 6))
    r = size * rng.uniform(low, high, 6) / 2
    return np.stack([x + r * np.cos(t), y + r * np.sin(t)], 1)


def draw(
    category: Category, index: int, is_object: bool, seed: int, size: int
) -> tuple[NDArray[np.uint8], dict[str, tuple[float, float]]]:
    """Picture `index` as [size, size, 3] RGB, and its landmarks head, neck, torso, nose as (row, col) in pixels.

    A landmark is the centre of its part's box, NaN where something covers it. A picture without an object shows
    clutter with scattered body parts and has no landmarks.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, int(is_object), index)))
    plan, fine = PLANS[category], size * OVERSAMPLING
    canvas = _texture(fine, rng, rng.uniform(40, 215, 3), rng.uniform(0.1, 0.4))
    for _ in range(int(rng.integers(5, 14))):
        _paint(canvas, _blob(fine, rng, 0.1, 0.5), rng.uniform(20, 235, 3))
    coat = _texture(fine, rng, rng.uniform(40, 215, 3), rng.uniform(0.1, 0.5))
    shapes = _fit(_animal(plan, rng), fine, rng)
    landmarks = {name: (math.nan, math.nan) for name in ("head", "neck", "torso", "nose")}
    if not is_object:
        # The same parts in the same coat, each somewhere else: parts alone must not give the answer away.
        scattered = []
        for shape in shapes:
            if rng.random() < 0.6:
                angle, centre = rng.uniform(0, 2 * math.pi), shape.points.mean(0)
                turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
                place = rng.uniform(0.1, 0.9, 2) * fine
                scattered.append(Shape(shape.part, (shape.points - centre) * rng.uniform(0.5, 0.9) @ turn + place, shape.shade))
        rng.shuffle(scattered)  # type: ignore[arg-type]
        shapes = scattered
    for shape in shapes:
        _paint(canvas, shape.points, coat * shape.shade)
    covered = np.zeros((fine, fine), bool)
    for _ in range(int(rng.integers(0, 4))):
        covered |= _paint(canvas, _blob(fine, rng, 0.08, 0.28), rng.uniform(20, 235, 3))
    if is_object:
        for name in landmarks:
            corners = np.concatenate([s.points for s in shapes if s.part == name])
            col, row = (corners.min(0) + corners.max(0)) / 2
            inside = 0 <= row < fine and 0 <= col < fine
            if inside and not covered[int(row), int(col)]:
                landmarks[name] = ((row + 0.5) / OVERSAMPLING - 0.5, (col + 0.5) / OVERSAMPLING - 0.5)
    light = rng.uniform(0.7, 1.2) + rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, fine)[:, None, None]
    picture = Image.fromarray(np.clip(canvas * light, 0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BOX)
    noisy = np.asarray(picture, np.float64) + rng.normal(0, 6, (size, size, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), landmarks
