"""The template section: the shape of the part templates.

A shape is one class here and the function of the same name in `core/template_shapes.py`, which says its formula. The
class' fields, less `tau`, are the function's parameters; lengths are shares of n, the side of a layer's map in cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.section import Number, OmitDefaultFromDigest, Positive, Section

Norm = Literal["l1", "l2", "linf", "lp"]
SYMBOLS = {"beta": "β", "gamma": "γ", "sigma": "σ", "tau": "τ"}
Issue = tuple[str, Any, str]
"""Field, its value, and what is allowed."""


class PartTemplate(Section):
    """What every part template has."""

    shape: str
    """The template's shape."""
    tau: Positive | None = None
    """Height of the template. Default: 0.5 / n^2, n the side of the layer's map in cells."""

    form: ClassVar[str] = "exact"
    """Form of the filter loss that goes with the template unless another is asked for."""
    learned: ClassVar[str] = ""
    """The field that each filter can have a value of its own of, learned by this form; empty: none."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of `core.templates.part_templates`, all but n and tau."""
        return self.model_dump(exclude={"tau"}, exclude_none=True)

    def issues(self) -> Iterator[Issue]:
        """What fields cannot be together."""
        yield from ()

    def issues_with(self, data: Data) -> Iterator[Issue]:
        """What cannot be with this data."""
        yield from ()

    def label(self) -> str:
        """In a few characters, such as `uniform L2 β2 γ0.5`; tau only where it is set."""
        return " ".join([self.shape, *self._short(), *([f"τ{self.tau:.3g}"] if self.tau is not None else [])])

    def words(self) -> str:
        """In a few words, such as `uniform L2 template, beta 2, gamma 0.5, tau 0.5 / n^2`."""
        norm = self._norm()
        named = [f"{name} {_shown(value, 'g')}" for name, value in self._numbers().items()]
        height = "tau 0.5 / n^2" if self.tau is None else f"tau {self.tau:g}"
        return ", ".join([f"{self.shape} {norm} template" if norm else f"{self.shape} template", *named, height])

    def _norm(self) -> str:
        fields = self.arguments()
        return f"L{fields['p']:g}" if "p" in fields else str(fields.get("norm", "")).replace("l", "L")

    def _numbers(self) -> dict[str, Any]:
        return {name: value for name, value in self.arguments().items() if name not in ("shape", "norm", "p")}

    def _short(self) -> list[str]:
        norm = self._norm()
        return ([norm] if norm else []) + [
            f"{SYMBOLS[name]}{value:.3g}" if name in SYMBOLS else f"{name} {_shown(value, '.3g')}"
            for name, value in self._numbers().items()
        ]


def _shown(value: Any, form: str) -> str:
    if isinstance(value, tuple):
        return f"{len(value)}x{len(value)}"
    return value if isinstance(value, str) else format(value, form)


class Normed(PartTemplate):
    """A template that depends on a distance in some norm."""

    norm: Norm = "l1"
    """The distance: l1 (Zhang et al.; a diamond), l2 (a disc), linf (a square), or lp (in between, by `p`)."""
    p: Annotated[Positive | None, OmitDefaultFromDigest()] = None
    """Exponent of the norm lp: (|di|^p + |dj|^p)^(1/p); 1 is l1, 2 is l2, below 1 a star with hollow sides."""

    def issues(self) -> Iterator[Issue]:
        if self.norm == "lp" and self.p is None:
            yield "norm", "lp", "needs its exponent; add template.p, or take l1, l2 or linf"
        if self.norm != "lp" and self.p is not None:
            yield "p", self.p, f"norm {self.norm} has no exponent; drop this or take template.norm: lp"


class GradientTemplate(Normed):
    """A template that falls off with distance: tau * max(1 - beta * ||[i,j] - mu|| / n, -1)."""

    shape: Literal["gradient"]
    """Falls off with distance."""
    beta: Positive = 2.0
    """Slope; at a distance of n / beta cells the template crosses zero. Part-template paper 2, Zhang et al. 4."""

    learned: ClassVar[str] = "beta"

    def label(self) -> str:
        return super().label().removeprefix("gradient ")


class UniformTemplate(Normed):
    """A template that is tau inside beta * ||[i,j] - mu|| / n < gamma and -tau outside."""

    shape: Literal["uniform"]
    """Flat inside a radius, and outside it."""
    beta: Positive = 2.0
    """Inverse scale of the distance; only gamma / beta matters for a uniform template."""
    gamma: Positive = 2.0
    """Threshold of the scaled distance: the radius is n * gamma / beta cells."""


class ReleasedTemplate(PartTemplate):
    """The template of the authors' code: a gradient template of norm l1 in coordinates from -1 to 1 over the map."""

    shape: Literal["released"]
    """As the authors' code has it."""
    width: Positive = 2.0
    """Slope in those coordinates; beta is 2 * width * n / (n - 1). With loss.filter.learn_beta each filter's starts
    here."""

    form: ClassVar[str] = "released"
    learned: ClassVar[str] = "width"


class GaussianTemplate(PartTemplate):
    """A bell: tau * (2 exp(-d^2 / (2 (sigma n)^2)) - 1), d the Euclidean distance from mu in cells."""

    shape: Literal["gaussian"]
    """A bell."""
    sigma: Positive = 0.425
    """Standard deviation, share of n. The template crosses zero at 1.177 sigma n; 0.425 does where beta 2 does."""


class EllipseTemplate(PartTemplate):
    """A template that falls off with distance, faster across its long axis than along it."""

    shape: Literal["ellipse"]
    """Long in one direction."""
    beta: Positive = 2.0
    """Slope; the template crosses zero on an ellipse of half-axes n sqrt(aspect) / beta and n / (beta sqrt(aspect))."""
    aspect: Annotated[Number, Field(ge=1)] = 2.0
    """Long axis over short axis; 1 is the gradient template of norm l2, whatever the angle."""
    angle: Annotated[Number, Field(ge=0, lt=180)] = 0.0
    """Of the long axis, degrees: 0 along the columns (lying), 90 along the rows (upright), 45 rising to the right."""

    learned: ClassVar[str] = "beta"


class RingTemplate(PartTemplate):
    """A circle about mu: tau * max(1 - 2 |d - radius n| / (width n), -1). With width < 2 radius it is negative at mu:
    the mask erases a filter's peak and keeps what lies around it."""

    shape: Literal["ring"]
    """A circle about the peak."""
    radius: Annotated[Number, Field(gt=0, le=0.5)] = 0.25
    """Of the circle, share of n; up to 0.5 a part of every circle lies on the map."""
    width: Positive = 0.25
    """Between the circle's two zero crossings, share of n; below 1 / n it breaks into single cells."""


class MaskTemplate(PartTemplate):
    """Any shape, given as a table."""

    shape: Literal["mask"]
    """A table of values."""
    values: tuple[tuple[Annotated[Number, Field(ge=-1, le=1)], ...], ...]
    """Unit template as rows of values from -1 to 1, as many as each is long; the middle lies on mu."""
    extent: Positive = 1.0
    """Side of the table, share of n. In between the table is linear, outside it -1."""

    def issues(self) -> Iterator[Issue]:
        if any(len(row) != len(self.values) for row in self.values):
            lengths = ", ".join(str(len(row)) for row in self.values)
            yield "values", self.values, f"must be square: its {len(self.values)} rows have {lengths} values"
        if not any(value > 0 for row in self.values for value in row):
            yield "values", self.values, "must be above 0 somewhere, or every map is erased"


class TailoredTemplate(PartTemplate):
    """A template of the size and aspect of one part of the animal, fitted to the training split before training starts.

    It becomes an ellipse, or for part_masks a mask; what it became is in the record. n cells are taken to span a crop.
    """

    shape: Literal["tailored"]
    """Fitted to a part of the training images."""
    landmark: str
    """The part, one of data.landmarks."""
    fitted_to: Literal["part_sizes", "landmarks", "part_masks"] = "part_sizes"
    """`part_sizes`: zero on the ellipse that fills a box of the part's mean height and width. `landmarks`: an ellipse
    that reaches half-way to the nearest other landmark, its aspect that of the offsets. `part_masks`: the mean mask."""
    scale: Positive = 1.0
    """Factor on the fitted size."""

    def arguments(self) -> dict[str, Any]:
        raise TypeError("a tailored template has no shape before it is fitted: train.template_fit.fitted")

    def issues_with(self, data: Data) -> Iterator[Issue]:
        names = ", ".join(data.landmarks)
        if self.landmark not in data.landmarks:
            yield "landmark", self.landmark, f"must be one of data.landmarks: {names}"
        elif self.fitted_to == "landmarks" and len(set(data.landmarks)) == 1:
            yield "fitted_to", self.fitted_to, f"needs a second landmark; data.landmarks is only {names}"
        if self.fitted_to not in data.provides:
            yield "fitted_to", self.fitted_to, f"{data.lacking(self.fitted_to)}, or take another template.fitted_to"

    def label(self) -> str:
        words = ["tailored", self.landmark, self.fitted_to]
        words += [f"x{self.scale:.3g}"] if self.scale != 1 else []
        return " ".join(words + ([f"τ{self.tau:.3g}"] if self.tau is not None else []))

    def words(self) -> str:
        height = "tau 0.5 / n^2" if self.tau is None else f"tau {self.tau:g}"
        return f"template tailored to the {self.landmark}'s {self.fitted_to}, scale {self.scale:g}, {height}"


class NoTemplate(Section):
    """The plain network: no mask and no filter loss. The control of every comparison."""

    shape: Literal["none"]
    """No template: the plain network."""

    def label(self) -> str:
        """In a few characters."""
        return "plain"

    def words(self) -> str:
        """In a few words."""
        return "no template (the plain network)"


Template = Annotated[
    GradientTemplate
    | UniformTemplate
    | ReleasedTemplate
    | GaussianTemplate
    | EllipseTemplate
    | RingTemplate
    | MaskTemplate
    | TailoredTemplate
    | NoTemplate,
    Field(discriminator="shape"),
]
