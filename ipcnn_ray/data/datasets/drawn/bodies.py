"""Six animals as articulated figures: outlines, a table of body plans, and the pose of a figure.

Points are (x, y) with y downwards, arrays of shape [points, 2]. Angles are degrees of elevation: 0 points along +x, 90
upwards. A figure is posed facing right, in units of its torso's length, the torso's center at the origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]
Color: TypeAlias = tuple[int, int, int]
DARK: Color = (32, 28, 28)
PINK: Color = (214, 158, 146)
HORN: Color = (222, 208, 172)


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
    rotated: Points = (points - pivot) @ np.array([[cos, -sin], [sin, cos]]) + pivot
    return rotated


@lru_cache(maxsize=32)
def _unit_round(power: float, count: int) -> Points:
    """Return a circle of radius 1, pushed towards its bounding square as `power` grows beyond 2."""
    angle = np.arange(count) * (2 * math.pi / count)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rounded: Points = np.sign(circle) * np.abs(circle) ** (2 / power)
    return rounded


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


def blob(rng: np.random.Generator, center: Points, radii: Points, roughness: float) -> Points:
    """Return a closed random outline around a center; `radii` are (x, y), roughness 0 is an ellipse."""
    swell = 1 + roughness * rng.uniform(-1, 1, 10)
    return _unit_round(2.0, 10) * swell[:, None] * radii + center


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


@dataclass(frozen=True)
class BodyPlan:
    """Proportions and colors of an animal. Lengths are in torso lengths, angles in degrees of elevation."""

    depth: float
    """Height of the torso."""
    boxy: float
    """Exponent of the torso's outline: 2 is an ellipse, more a box with round corners."""
    leg: tuple[float, float]
    """Length and thickness of a leg."""
    neck: tuple[float, float, float, float]
    """Length, width at the torso, width at the head, and angle."""
    head: tuple[float, float]
    """Length and height of the skull."""
    snout: tuple[float, float]
    """Length and height of the muzzle or beak."""
    face: float
    """Elevation of the face: 0 is level, negative is down."""
    ears: Literal["none", "pointed", "hanging", "sideways"]
    ear: float
    """Length of an ear."""
    tail: tuple[float, float, float, float]
    """Length, thickness, angle at the root, and degrees of bend over its length."""
    coats: tuple[tuple[Color, Color], ...]
    """Colors of the coat and of its pattern."""
    patterns: tuple[Literal["plain", "patches", "stripes"], ...]
    grazes: float = 0.0
    """Share of poses with the head at the ground."""
    rests: Literal["lies", "sits"] = "lies"
    nose: Color = DARK
    pitch: float = 0.0
    """Angle of the torso when standing."""


PLANS: dict[str, BodyPlan] = {
    "bird": BodyPlan(
        depth=0.52, boxy=2.0, leg=(0.30, 0.035), neck=(0.10, 0.30, 0.26, 40), head=(0.31, 0.29), snout=(0.22, 0.12),
        face=-4, ears="none", ear=0, tail=(0.52, 0.14, 168, 0), pitch=24, nose=(226, 156, 44), patterns=("plain",),
        coats=(((70, 110, 176), (214, 120, 74)), ((122, 92, 62), (224, 204, 176)), ((52, 54, 60), (120, 124, 132)),
               ((196, 66, 54), (226, 188, 150)), ((216, 182, 60), (92, 92, 62))),
    ),
    "cat": BodyPlan(
        depth=0.38, boxy=2.3, leg=(0.34, 0.085), neck=(0.12, 0.25, 0.20, 38), head=(0.31, 0.29), snout=(0.07, 0.13),
        face=-6, ears="pointed", ear=0.17, tail=(0.80, 0.075, 150, -95), nose=(208, 128, 124), rests="sits",
        patterns=("stripes", "stripes", "plain", "patches"),
        coats=(((200, 130, 66), (140, 80, 38)), ((138, 136, 134), (78, 78, 80)), ((58, 54, 54), (228, 224, 218)),
               ((166, 144, 112), (88, 70, 52)), ((226, 216, 200), (184, 142, 98))),
    ),
    "cow": BodyPlan(
        depth=0.52, boxy=2.9, leg=(0.42, 0.10), neck=(0.24, 0.36, 0.22, 16), head=(0.30, 0.21), snout=(0.19, 0.155),
        face=-36, ears="sideways", ear=0.14, tail=(0.55, 0.045, 215, 45), nose=PINK, grazes=0.22,
        patterns=("patches", "patches", "plain"),
        coats=(((228, 224, 216), (44, 40, 40)), ((52, 46, 44), (222, 218, 210)), ((146, 88, 52), (226, 216, 200)),
               ((196, 152, 104), (150, 104, 66)), ((104, 70, 50), (196, 172, 146))),
    ),
    "dog": BodyPlan(
        depth=0.38, boxy=2.3, leg=(0.44, 0.085), neck=(0.22, 0.26, 0.19, 46), head=(0.29, 0.24), snout=(0.19, 0.125),
        face=-10, ears="hanging", ear=0.20, tail=(0.44, 0.07, 130, -45), rests="sits",
        patterns=("plain", "patches", "plain"),
        coats=(((176, 126, 74), (226, 206, 172)), ((66, 54, 46), (172, 116, 64)), ((220, 208, 186), (132, 84, 48)),
               ((120, 76, 46), (206, 180, 146)), ((46, 44, 46), (226, 222, 214))),
    ),
    "horse": BodyPlan(
        depth=0.43, boxy=2.4, leg=(0.62, 0.085), neck=(0.50, 0.32, 0.17, 50), head=(0.30, 0.17), snout=(0.21, 0.115),
        face=-42, ears="pointed", ear=0.11, tail=(0.62, 0.12, 205, 50), grazes=0.15,
        patterns=("plain", "plain", "patches"),
        coats=(((132, 78, 44), (40, 30, 26)), ((84, 54, 38), (28, 24, 24)), ((196, 190, 182), (120, 116, 112)),
               ((198, 152, 92), (232, 216, 180)), ((50, 44, 42), (24, 22, 22))),
    ),
    "sheep": BodyPlan(
        depth=0.64, boxy=2.0, leg=(0.36, 0.075), neck=(0.16, 0.34, 0.24, 24), head=(0.27, 0.20), snout=(0.14, 0.13),
        face=-34, ears="sideways", ear=0.14, tail=(0.14, 0.11, 200, 60), grazes=0.22, patterns=("plain",),
        coats=(((226, 218, 200), (52, 46, 44)), ((214, 206, 190), (196, 182, 162)), ((196, 186, 168), (64, 56, 50)),
               ((104, 86, 72), (50, 42, 38)), ((232, 228, 218), (78, 68, 62))),
    ),
}  # fmt: skip


@dataclass
class Figure:
    """A posed animal. Its parts are drawn in the order coat, pattern, details."""

    coat: list[Part] = field(default_factory=list)
    pattern: list[Part] = field(default_factory=list)
    """Drawn only on the coat."""
    details: list[Part] = field(default_factory=list)
    landmarks: dict[str, Points] = field(default_factory=dict)
    """Landmark -> outline of the part; the landmark is the center of its box."""


class Poser:
    """Poses one figure: the torso first, then each part from its joint."""

    def __init__(self, category: str, rng: np.random.Generator) -> None:
        self.rng = rng
        self.plan = plan = PLANS[category]
        self.category = category
        self.figure = Figure()
        coat, second = plan.coats[rng.integers(len(plan.coats))]
        self.coat, self.second = varied(rng, coat), varied(rng, second, 8)
        self.skin = self.second if category == "sheep" else self.coat
        self.resting = rng.random() < (0.0 if category == "bird" else 0.18)
        self.sitting = self.resting and plan.rests == "sits"
        self.grazing = not self.resting and rng.random() < plan.grazes
        self.frontal = rng.random() < 0.3
        """Whether the head faces the viewer."""
        self.half = 0.5 * rng.uniform(0.72 if category == "bird" else 0.58, 1.0)
        """Half the length of the foreshortened torso."""
        self.depth = plan.depth * rng.uniform(0.88, 1.14)
        self.pitch = plan.pitch + rng.normal(0, 4) + (38 if self.sitting else 0)

    def pose(self) -> Figure:
        self._tail()
        self._legs(far=True)
        self._torso()
        self._legs(far=False)
        self._neck_and_head()
        return self.figure

    def _on_torso(self, along: float, up: float) -> Points:
        """Return a point of the torso: (1, 0) is its front end, (0, 1) its top."""
        point: Points = rotate(np.array([[along * self.half, -up * self.depth / 2]]), self.pitch)[0]
        return point

    def _torso(self) -> None:
        rng, center = self.rng, np.zeros(2)
        if self.category == "sheep":
            outline = woolly_shape(center, self.half, self.depth / 2, self.pitch, int(rng.integers(9, 13)))
        else:
            outline = round_shape(center, self.half, self.depth / 2, self.pitch, self.plan.boxy)
        torso = Part("torso", outline, self.coat)
        self.figure.coat.append(torso)
        self.figure.landmarks["torso"] = outline
        self._pattern()
        if self.category == "sheep":
            for _ in range(9):
                curl = round_shape(self._on_torso(rng.uniform(-0.75, 0.75), rng.uniform(-0.7, 0.7)), 0.075, 0.06)
                self.figure.pattern.append(Part("curl", curl, shade(self.coat, rng.uniform(0.88, 0.97)), False))
        if self.category == "bird":
            breast = round_shape(self._on_torso(0.42, -0.35), 0.5 * self.half, 0.3 * self.depth, self.pitch)
            self.figure.pattern.append(Part("breast", breast, self.second, False))
            wing = rotate(np.array([[0.45, 0.10], [0.1, -0.16], [-0.75, 0.16], [-1.0, 0.42], [-0.3, 0.40]]), self.pitch)
            wing = wing * (self.half, self.depth)
            self.figure.details.append(Part("wing", wing, shade(self.coat, 0.72)))
            self.figure.landmarks["wing"] = wing

    def _pattern(self) -> None:
        rng, pattern = self.rng, self.plan.patterns[self.rng.integers(len(self.plan.patterns))]
        if pattern == "patches":
            for _ in range(rng.integers(3, 7)):
                center = self._on_torso(rng.uniform(-1.0, 1.5), rng.uniform(-1, 1))
                size = rng.uniform(0.07, 0.24, 2) * (2 * self.half, 1)
                self.figure.pattern.append(Part("patch", blob(rng, center, size, 0.3), self.second, False))
        elif pattern == "stripes":
            width = rng.uniform(0.02, 0.04)
            for along in np.linspace(-0.9, 1.7, int(rng.integers(8, 13))):
                top, low = self._on_torso(along, 1.6), self._on_torso(along - 0.12, rng.uniform(-0.5, 0.1))
                self.figure.pattern.append(Part("stripe", limb(top, low, width * 1.7, width), self.second, False))

    def _legs(self, far: bool) -> None:
        rng, (length, width) = self.rng, self.plan.leg
        length *= rng.uniform(0.85, 1.12)
        color = self.second if self.category == "sheep" else (232, 150, 60) if self.category == "bird" else self.coat
        color = shade(color, 0.72 if far else 0.94)
        shift = rng.uniform(0.03, 0.12) * (1 if far else -1)
        if self.category == "bird":
            self._bird_leg(self._on_torso(-0.1 + shift, -0.7), length, width, color)
            return
        for along, front in ((0.70, True), (-0.72, False)):
            joint = self._on_torso(along + shift, -0.35)
            thick = width * (1.0 if front else 1.15)
            if self.sitting and not front:
                thigh = round_shape(self._on_torso(-0.62, -0.35), 0.20, 0.15, 60 + self.pitch)
                foot = limb(self._on_torso(-0.9, -0.9), self._on_torso(-0.9, -0.9) + (0.34, 0.02), thick, thick)
                self.figure.coat += [Part("leg", foot, color), Part("leg", thigh, color)]
                outline = thigh
            elif self.resting and not self.sitting:
                knee = joint + (rng.uniform(0.02, 0.14), self.depth * 0.36)
                toe = knee + (rng.uniform(0.14, 0.26), 0.03)
                foot = limb(knee, toe, thick, thick * 0.8)
                outline = ribbon([joint, knee, toe], thick * 1.6, thick * 0.8)
                self.figure.coat += [
                    Part("leg", limb(joint, knee, thick * 1.6, thick), color),
                    Part("leg", foot, color),
                ]
            else:
                reach = length + self.depth * 0.18
                swing = rng.normal(0, 13)
                knee = joint + toward(-90 + swing, reach * 0.52)
                foot = knee + toward(-90 + swing * 0.4 - (8 if not front else 0) + rng.normal(0, 6), reach * 0.48)
                hoof = foot + (0.25 * width, 0.0)
                line = [joint, knee, foot]
                outline = ribbon(line, thick * 1.7, thick * 0.72)
                self.figure.coat.append(Part("leg", outline, color))
                shoe = DARK if self.category in ("cow", "horse", "sheep") else shade(color, 0.9)
                self.figure.coat.append(Part("hoof", round_shape(hoof, width * 0.62, width * 0.40), shoe))
            self.figure.landmarks["front_leg" if front else "hind_leg"] = outline  # the near legs come last

    def _bird_leg(self, joint: Points, length: float, width: float, color: Color) -> None:
        foot = joint + toward(-90 + self.rng.normal(0, 9), length)
        outline = limb(joint, foot, width, width)
        self.figure.coat.append(Part("leg", outline, color, False))
        self.figure.landmarks["leg"] = outline
        for angle in (-20.0, -160.0):
            self.figure.coat.append(Part("toe", limb(foot, foot + toward(angle, 0.1), width, width), color, False))

    def _tail(self) -> None:
        rng, (length, width, angle, bend) = self.rng, self.plan.tail
        root = self._on_torso(-0.9, 0.0 if self.category == "bird" else 0.45)
        angle, bend = angle + self.pitch * (self.category == "bird") + rng.normal(0, 10), bend * rng.uniform(0.6, 1.4)
        if self.category == "bird":
            fan = limb(root, root + toward(angle, length * rng.uniform(0.7, 1.1)), width, width * rng.uniform(1.2, 2.2))
            self.figure.coat.append(Part("tail", fan, shade(self.coat, 0.8)))
            self.figure.landmarks["tail"] = fan
            return
        line = bent(root, angle, bend, length * rng.uniform(0.8, 1.1))
        color = self.second if self.category == "horse" else shade(self.coat, 0.86)
        outline = ribbon(line, width, width * 0.7)
        self.figure.coat.append(Part("tail", outline, color))
        self.figure.landmarks["tail"] = outline
        if self.category == "cow":
            tuft = round_shape(line[-1], 0.09, 0.045, -80)
            self.figure.coat.append(Part("tuft", tuft, self.second))

    def _neck_and_head(self) -> None:
        rng, plan = self.rng, self.plan
        length, wide, narrow, angle = plan.neck
        angle, face = angle + rng.normal(0, 13), plan.face + rng.normal(0, 11)
        length *= rng.uniform(0.85, 1.15)
        if self.grazing:
            angle, face, length = rng.uniform(-58, -34), rng.uniform(-80, -55), max(length, 0.36)
        root = self._on_torso(0.76, 0.20)
        end = root + toward(angle, length + 0.10)
        neck = limb(root - toward(angle, 0.06), end + toward(angle, 0.05), wide, narrow)
        self.figure.coat.append(Part("neck", neck, self.coat))
        self.figure.landmarks["neck"] = neck
        if self.category == "horse":
            ridge = toward(angle + 90, 1)
            mane = ribbon([root + ridge * wide * 0.5, end + ridge * narrow * 0.55], 0.07, 0.11)
            self.figure.details.append(Part("mane", mane, self.second))
        (self._frontal_head if self.frontal else self._profile_head)(end, face)

    def _profile_head(self, joint: Points, face: float) -> None:
        plan, figure, (length, height), (reach, low) = self.plan, self.figure, self.plan.head, self.plan.snout
        ahead, up = toward(face), toward(face + 90)
        skull = joint + ahead * (length * 0.22)
        tip = skull + ahead * (length * 0.42 + reach)
        sink = -up * height * 0.10
        outline = round_shape(skull, length / 2, height / 2, face)
        self._ears(skull, ahead, up, near=False)
        figure.coat.append(Part("head", outline, self.skin))
        figure.landmarks["head"] = outline
        if self.category == "bird":
            base = skull + ahead * length * 0.40
            beak = np.stack([base + up * low / 2, base + ahead * (reach + 0.04), base - up * low / 2])
            figure.details.append(Part("nose", beak, plan.nose))
            figure.landmarks["nose"] = beak
        else:
            snout = limb(skull + ahead * length * 0.10 + sink, tip - ahead * low * 0.4 + sink, height * 0.86, low)
            muzzle = round_shape(tip - ahead * low * 0.45 + sink, low * 0.62, low * 0.54, face)
            big = self.category in ("cow", "horse", "sheep")
            figure.coat.append(Part("snout", snout, self.skin, False))
            figure.details.append(Part("nose", muzzle, plan.nose if self.category == "cow" else shade(self.skin, 0.82)))
            nostril = tip + (-ahead * low * 0.10 + sink + up * low * (0.1 if big else 0.25))
            figure.details.append(
                Part("nostril", round_shape(nostril, *((0.022, 0.018) if big else (0.04, 0.034))), DARK)
            )
            figure.landmarks["nose"] = muzzle
        self._eye(skull + ahead * length * 0.16 + up * height * 0.16)
        self._ears(skull, ahead, up, near=True)
        if self.category == "cow":
            self._horn(skull + up * height * 0.42 - ahead * length * 0.05, face + 70)

    def _frontal_head(self, joint: Points, face: float) -> None:
        """Pose the head seen from the front: two eyes, two ears, the muzzle below them."""
        plan, figure, (length, height), (reach, low) = self.plan, self.figure, self.plan.head, self.plan.snout
        tilt = self.rng.normal(0, 8)
        down, right = toward(tilt - 90), toward(tilt)
        center = joint + toward(face, 0.06)
        tall, wide = (length + 0.45 * reach) * 0.5, max(height, 0.21) * 0.5
        skull = round_shape(center + down * tall * 0.35, wide, tall, tilt, 2.3)
        for side in (-1, 1):
            self._ears(center + right * side * wide * 0.62, right * side, -down, near=side > 0, frontal=True)
        figure.coat.append(Part("head", skull, self.skin))
        figure.landmarks["head"] = skull
        chin = center + down * tall * (0.62 if self.category in ("cat", "bird") else 0.98)
        if self.category == "bird":
            muzzle = np.stack([chin - right * low * 0.5, chin + right * low * 0.5, chin + down * reach * 0.6])
        else:
            muzzle = round_shape(chin, low * 0.66, low * 0.52, tilt)
        color = (
            plan.nose if self.category in ("cow", "bird") else shade(self.skin, 0.82 if sum(self.skin) > 300 else 1.4)
        )
        figure.details.append(Part("nose", muzzle, color))
        figure.landmarks["nose"] = muzzle
        for side in (-1, 1):
            self._eye(center + right * side * wide * 0.48 + down * tall * 0.10)
            if self.category in ("cow", "horse", "sheep"):
                figure.details.append(Part("nostril", round_shape(chin + right * side * low * 0.3, 0.02, 0.016), DARK))
            if self.category == "cow":
                self._horn(center + right * side * wide * 0.55 - down * tall * 0.5, 90 + tilt - side * 40)
        if self.category in ("cat", "dog"):
            figure.details.append(Part("nostril", round_shape(chin - down * low * 0.2, 0.038, 0.03), DARK))

    def _eye(self, center: Points) -> None:
        light = (206, 196, 92) if self.category == "cat" else (236, 232, 224)
        self.figure.details.append(Part("eye", round_shape(center, 0.036, 0.034), light, False))
        self.figure.details.append(Part("pupil", round_shape(center + (0.006, 0), 0.022, 0.025), (12, 10, 12), False))

    def _horn(self, root: Points, angle: float) -> None:
        line = bent(root, angle, 55 if angle < 90 else -55, 0.16, 4)
        outline = ribbon(line, 0.05, 0.015)
        self.figure.details.append(Part("horn", outline, HORN))
        self.figure.landmarks["horn"] = outline

    def _ears(self, skull: Points, ahead: Points, up: Points, near: bool, frontal: bool = False) -> None:
        """Pose the ear of the near or far side. For a head seen from the front, `ahead` is outwards."""
        kind, size, (length, height) = self.plan.ears, self.plan.ear, self.plan.head
        if kind == "none":
            return
        color = shade(self.skin, 0.86 if near else 0.7)
        top = skull + up * height * 0.36 + ahead * (0.0 if frontal else -0.12 if near else 0.14) * length
        if kind == "pointed":
            lean = ahead * (0.25 if frontal else -0.08) * size
            side = ahead * size * 0.45
            outline = np.stack([top - side - up * 0.03, top + up * size + lean, top + side - up * 0.03])
        elif kind == "hanging":
            root = top + (ahead * height * 0.12 if frontal else -ahead * length * 0.06)
            outline = round_shape(root + (0.0, size * 0.42), size * 0.26, size * 0.56)
        else:
            out = ahead if frontal else -ahead
            outline = ribbon([top, top + out * size * 0.55 + up * 0.02, top + out * size - up * 0.02], 0.09, 0.03)
        (self.figure.details if near and not frontal else self.figure.coat).append(Part("ear", outline, color))
        self.figure.landmarks["ear"] = outline  # the near ear comes last
