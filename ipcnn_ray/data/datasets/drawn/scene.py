"""Draws one image: an articulated animal on clutter with known landmarks, or clutter without an animal.

Each image is drawn from its own generator, seeded by (drawing seed, animal or not, index) and, of several animals, by
which it is: an image does not depend on how many are drawn, in which order, or in which process, and the same scene is
drawn at every size.
The images stand for object crops: the animal fills most of a square, its box warped to it as VOC crops are, with
truncated animals, varying margins and occluders. Images without an animal have the same clutter with ellipses and
sticks in it, or with parts of an animal: scattered, or an animal that lacks something.

Deviations: bytes are the same on one machine and versions of numpy and Pillow; sines may differ in the last bit
between processors, and an edge pixel with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ipcnn_ray.data.crops import patch_of_outline
from ipcnn_ray.data.datasets.drawn.bodies import (
    PLANS,
    Color,
    Figure,
    Part,
    Points,
    Poser,
    blob,
    box_of,
    contains,
    limb,
    ribbon,
    rotate,
    round_shape,
    shade,
    toward,
    varied,
)

BILINEAR = Image.Resampling.BILINEAR
SUPERSAMPLING = 2
SCATTERED = ("torso", "neck", "leg", "hoof", "toe", "tail", "tuft")
"""Parts that are scattered in images without an animal, unless they show heads, too."""
HEAD = ("head", "snout", "nose", "nostril", "eye", "pupil", "ear", "horn")
LACKING: dict[str, tuple[str, ...]] = {
    "head": HEAD,
    "torso": ("torso", "wing", "breast", "curl"),
    "legs": ("leg", "hoof", "toe"),
    "body": (*SCATTERED, "wing", "breast", "curl", "mane"),
}
"""What an incomplete animal lacks -> names of its parts that are not drawn."""
GROUNDS: tuple[Color, ...] = (
    (96, 128, 62), (132, 146, 84), (150, 124, 86), (176, 160, 122), (118, 116, 112), (70, 84, 60), (164, 176, 188),
    (196, 204, 212), (120, 150, 190), (88, 70, 56), (206, 196, 176),
)  # fmt: skip


@dataclass(frozen=True)
class DrawnImage:
    """One drawn image, and what is known of the parts of its animal."""

    pixels: NDArray[np.uint8]
    """[size, size, 3]"""
    landmarks_K2: NDArray[np.float32]
    """(row, col) in pixels, 0 the center of the first; NaN where hidden, cut off, or without an animal."""
    sizes_K2: NDArray[np.float32]
    """(height, width) of the box of the part's share inside the image, shares of it; NaN where mostly cut off."""
    masks: Sequence[NDArray[np.float32] | None] = ()
    """Patch of each part (see `STEPS` of crops.py), occluders not counted; None where mostly cut off."""


def draw_animal(
    size: int, seed: int, index: int, category: str, landmarks: Sequence[str], *, one_of_several: bool
) -> DrawnImage:
    """Draw image number `index` of an animal, `size` x `size` pixels. The same animal alone is drawn otherwise than as
    one of several."""
    key = (list(PLANS).index(category),) if one_of_several else ()
    rng = _generator(seed, 1, index, *key)
    figure = Poser(category, rng).pose()
    to_crop = _crop(figure, rng)
    scene = _Scene(size, rng, category)
    scene.surroundings()
    scene.animal(figure, to_crop)
    occluders = scene.occluders(0.35)
    positions, sizes = np.full((2, len(landmarks), 2), np.nan, np.float32)
    masks: list[NDArray[np.float32] | None] = []
    for k, name in enumerate(landmarks):
        outline = to_crop(figure.landmarks[name])
        center = _landmark(outline, occluders)
        if center is not None:
            positions[k] = center[::-1] * size - 0.5
        box = _seen_box(outline)
        if box is not None:
            sizes[k] = (box[1] - box[0])[::-1]
        masks.append(None if box is None else patch_of_outline(outline, box.mean(axis=0)))
    return DrawnImage(scene.finished(), positions, sizes, masks)


def draw_negative(size: int, seed: int, index: int, category: str, landmarks: Sequence[str], shows: str) -> DrawnImage:
    """Draw image number `index` without an animal, in the colors and shapes of this category.

    shows: `limbs`, `heads` or `incomplete`, as `data.negatives_show`.
    """
    rng = _generator(seed, 0, index)
    scene = _Scene(size, rng, category)
    scene.surroundings()
    kind, heads = rng.random(), shows != "limbs"
    if kind < 0.3:
        scene.taken_apart(heads=heads)
    elif shows == "incomplete" and kind < 0.8:
        scene.incomplete()
    elif shows == "heads" and kind < 0.6:
        scene.taken_apart(heads=heads)
    else:
        scene.sticks_and_stones()
    scene.occluders(0.35)
    unknown = np.full((len(landmarks), 2), np.nan, np.float32)
    return DrawnImage(scene.finished(), unknown, unknown)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def _landmark(outline: Points, occluders: list[Points]) -> Points | None:
    """Return the center (x, y) of the part's box inside the image; None if it is hidden or mostly cut off."""
    box = _seen_box(outline)
    if box is None:
        return None
    center: Points = (box[0] + box[1]) / 2
    return None if any(contains(shape, center) for shape in occluders) else center


def _seen_box(outline: Points) -> Points | None:
    """Return the part's box inside the image, [[left, top], [right, bottom]]; None if less than 0.3 of it is inside."""
    box = box_of([outline])
    inner: Points = np.clip(box, 0, 1)
    return None if np.prod(inner[1] - inner[0]) < 0.3 * np.prod(box[1] - box[0]) else inner


def _crop(figure: Figure, rng: np.random.Generator) -> Callable[[Points], Points]:
    """Return the map from the figure's frame to the unit square of the crop: facing, roll, truncation, margins."""
    mirror = np.array([1.0 if rng.random() < 0.5 else -1.0, 1.0])
    roll = rng.normal(0, 4)

    def stand(points: Points) -> Points:
        return rotate(points * mirror, roll)

    low, high = box_of([stand(part.points) for part in figure.coat + figure.details])
    head = box_of([stand(figure.landmarks["head"])]).mean(axis=0)
    cut = rng.random()
    if cut < 0.20:  # the front half, as at the edge of a photograph
        keep = rng.uniform(0.45, 0.8) * (high[0] - low[0])
        if head[0] > (low + high)[0] / 2:
            low[0] = high[0] - keep
        else:
            high[0] = low[0] + keep
    elif cut < 0.34:  # without feet
        high[1] -= rng.uniform(0.15, 0.35) * (high[1] - low[1])
    elif cut < 0.38:  # without the front
        keep = rng.uniform(0.6, 0.8) * (high[0] - low[0])
        if head[0] > (low + high)[0] / 2:
            high[0] = low[0] + keep
        else:
            low[0] = high[0] - keep
    side = high - low
    margins = rng.uniform(-0.03, 0.10, (2, 2)) * side
    low, high = low - margins[0], high + margins[1]
    side = high - low
    missing = np.maximum(side.max() / 1.5 - side, 0)  # beyond 3:2, surroundings are added before the warp to a square
    share = rng.random(2)
    low, high = low - missing * share, high + missing * (1 - share)
    return lambda points: (stand(points) - low) / (high - low)


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


class _Scene:
    """An image being drawn, in the unit square."""

    def __init__(self, size: int, rng: np.random.Generator, category: str) -> None:
        self.size = size
        self.rng = rng
        self.category = category
        self.canvas = Canvas(Image.new("RGB", (size * SUPERSAMPLING,) * 2))

    def _ground(self) -> Color:
        return varied(self.rng, GROUNDS[self.rng.integers(len(GROUNDS))], 18)

    def _any_color(self) -> Color:
        """Return a color of the surroundings or of an animal's coat."""
        rng = self.rng
        if rng.random() < 0.7:
            return self._ground()
        coats = PLANS[self.category].coats
        return varied(rng, coats[rng.integers(len(coats))][rng.integers(2)], 18)

    def surroundings(self) -> None:
        """Draw blended colors, perhaps a ground with a horizon, then polygons, blobs, and strokes."""
        rng, canvas = self.rng, self.canvas
        base = np.array([self._ground(), self._ground()], np.float64)[rng.integers(0, 2, (4, 4))]
        base = np.clip(base + rng.normal(0, 10, (4, 4, 3)), 0, 255)
        canvas.image.paste(soft_colors(base.astype(np.uint8), canvas.side))
        if rng.random() < 0.5:
            left, right = rng.uniform(0.2, 0.8) + rng.normal(0, 0.05, 2)
            canvas.fill(np.array([[0, left], [1, right], [1, 1.1], [0, 1.1]]), self._ground())
        for _ in range(rng.integers(2, 7)):
            self._clutter()
        if rng.random() < 0.35:
            self._strokes()

    def _clutter(self) -> None:
        rng, canvas = self.rng, self.canvas
        center, color, kind = rng.uniform(-0.05, 1.05, 2), self._any_color(), rng.random()
        if kind < 0.35:
            canvas.fill(blob(rng, center, rng.uniform(0.04, 0.22, 2), 0.35), color)
        elif kind < 0.6:
            canvas.fill(center + rng.normal(0, 0.14, (4, 2)), color)
        elif kind < 0.8:
            canvas.line(np.stack([center, center + toward(rng.uniform(0, 360), rng.uniform(0.2, 0.9))]), color, 0.02)
        else:
            canvas.fill(limb(center, center + toward(rng.uniform(45, 135), 0.5), *rng.uniform(0.03, 0.09, 2)), color)

    def _strokes(self) -> None:
        """Draw grass, straw or rain: many short lines of one direction."""
        rng, color, slant = self.rng, self._ground(), self.rng.uniform(60, 120)
        for start in rng.uniform(0, 1, (14, 2)):
            self.canvas.line(np.stack([start, start + toward(slant, 0.09)]), color, 0.012)

    def animal(self, figure: Figure, to_crop: Callable[[Points], Points]) -> None:
        canvas = self.canvas
        for part in figure.coat:
            canvas.part(replace(part, points=to_crop(part.points)))
        if figure.pattern:
            coat = Canvas(Image.new("L", canvas.image.size))
            for part in figure.coat:
                if part.name in ("torso", "neck", "head", "snout"):
                    coat.fill(to_crop(part.points), 255)
            over = Canvas(canvas.image.copy())
            for part in figure.pattern:
                over.part(replace(part, points=to_crop(part.points)))
            canvas.image.paste(over.image, mask=coat.image)
        for part in figure.details:
            canvas.part(replace(part, points=to_crop(part.points)))

    def taken_apart(self, *, heads: bool) -> None:
        """Draw scattered parts of an animal of this category: the same shapes and colors. heads: its head, too."""
        rng = self.rng
        figure = Poser(self.category, rng).pose()
        parts = [[part] for part in figure.coat if part.name in SCATTERED]
        pieces = [parts[chosen] for chosen in rng.permutation(len(parts))[: rng.integers(3, 7)]]
        if heads:
            head = [part for part in figure.coat + figure.details if part.name in HEAD]
            pieces.insert(int(rng.integers(len(pieces) + 1)), head)
        for piece in pieces:
            middle = box_of([part.points for part in piece]).mean(axis=0)
            angle, scale, center = rng.uniform(0, 360), rng.uniform(0.5, 0.8), rng.uniform(0.08, 0.92, 2)
            for part in piece:
                self.canvas.part(replace(part, points=rotate(part.points - middle, angle) * scale + center))

    def incomplete(self) -> None:
        """Draw an animal of this category that lacks its head, its torso, its legs, or all but its head."""
        figure = Poser(self.category, self.rng).pose()
        to_crop = _crop(figure, self.rng)
        lacking = list(LACKING.values())[self.rng.integers(len(LACKING))]
        coat, pattern, details = (
            [part for part in parts if part.name not in lacking]
            for parts in (figure.coat, figure.pattern, figure.details)
        )
        self.animal(Figure(coat, pattern, details), to_crop)

    def sticks_and_stones(self) -> None:
        """Draw ellipses, sticks and triangles in coat colors."""
        rng = self.rng
        for _ in range(rng.integers(2, 6)):
            center, color, kind = rng.uniform(0.05, 0.95, 2), self._any_color(), rng.random()
            angle, long = rng.uniform(0, 180), rng.uniform(0.08, 0.3)
            if kind < 0.45:
                shape = round_shape(center, long, long * rng.uniform(0.4, 0.9), angle, rng.uniform(2, 3))
            elif kind < 0.8:
                shape = ribbon([center, center + toward(angle, long)], 0.09, 0.05)
            else:
                shape = center + rng.normal(0, 0.08, (3, 2))
            self.canvas.part(Part("stone", shape, color))

    def occluders(self, share: float) -> list[Points]:
        """Draw one or two objects in front of everything, in this share of images; return their outlines."""
        rng, shapes = self.rng, []
        if rng.random() < share:
            for _ in range(rng.integers(1, 3)):
                kind, center = rng.random(), rng.uniform(0, 1, 2)
                if kind < 0.4:  # a trunk or a pole
                    top, foot = np.array([center[0], -0.1]), np.array([center[0] + rng.normal(0, 0.1), 1.1])
                    shape = limb(top, foot, 0.1, 0.13)
                elif kind < 0.75:  # a bush or a stone
                    shape = blob(rng, center, rng.uniform(0.08, 0.19, 2), 0.25)
                else:  # tall grass or a fence along the lower edge
                    edge = np.stack([np.linspace(0, 1, 6), rng.uniform(0.78, 0.95) + rng.normal(0, 0.03, 6)], axis=1)
                    shape = np.concatenate([edge, [[1.0, 1.1], [0.0, 1.1]]])
                self.canvas.part(Part("occluder", shape, self._ground()))
                shapes.append(shape)
        return shapes

    def finished(self) -> NDArray[np.uint8]:
        """Return the image [size, size, 3] with lighting and camera noise."""
        rng, size = self.rng, self.size
        pixels = np.asarray(self.canvas.image.reduce(SUPERSAMPLING), np.float32)
        light = soft_field(rng.uniform(0.72, 1.18) * (1 + rng.normal(0, 0.09, (3, 3))), size)
        grain = soft_field(rng.normal(0, rng.uniform(3, 10), (64, 64)), size)
        tint = (1 + rng.normal(0, 0.04, 3)).astype(np.float32)
        lit = pixels * light[:, :, None] * tint + grain[:, :, None]
        image: NDArray[np.uint8] = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
        return image
