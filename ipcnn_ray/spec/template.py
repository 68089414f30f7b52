"""The template section: the shape of the part templates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ipcnn_ray.spec.base import Positive, Section


class GradientTemplate(Section):
    """A template that falls off with distance: tau * max(1 - beta * ||[i,j] - mu|| / n, -1)."""

    shape: Literal["gradient"]
    """Falls off with distance."""
    norm: Literal["l1", "l2"] = "l1"
    """The distance: l1 (Zhang et al.) or l2."""
    beta: Positive = 2.0
    """Slope; at a distance of n / beta cells the template crosses zero. Part-template paper 2, Zhang et al. 4."""
    tau: Positive | None = None
    """Height of the template. Default: 0.5 / n^2, n the side of the layer's map in cells."""


class UniformTemplate(Section):
    """A template that is tau inside beta * ||[i,j] - mu|| / n < gamma and -tau outside."""

    shape: Literal["uniform"]
    """Flat inside a radius, and outside it."""
    norm: Literal["l1", "l2"] = "l1"
    """The distance: l1 or l2."""
    beta: Positive = 2.0
    """Inverse scale of the distance; only gamma / beta matters for a uniform template."""
    gamma: Positive = 2.0
    """Threshold of the scaled distance: the radius is n * gamma / beta cells."""
    tau: Positive | None = None
    """Height of the template. Default: 0.5 / n^2, n the side of the layer's map in cells."""


class NoTemplate(Section):
    """The plain network: no mask and no filter loss. The control of every comparison."""

    shape: Literal["none"]
    """No template: the plain network."""


Template = Annotated[GradientTemplate | UniformTemplate | NoTemplate, Field(discriminator="shape")]
