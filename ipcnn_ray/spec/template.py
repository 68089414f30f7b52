"""The template section: the shape of the part templates, and the mask.

A shape is one section class, here or in another package, and one function that computes its unit template. The fields
of the class, except those of every template, are the parameters of the function. Lengths are shares of n, the side of a
layer's map in cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.extensions import TEMPLATES
from ipcnn_ray.spec.section import (
    FieldIssue,
    Integer,
    Number,
    OmitDefaultFromDigest,
    Positive,
    RegisteredKinds,
    Section,
)

Norm = Literal["l1", "l2", "linf", "lp"]
SYMBOLS = {"beta": "β", "gamma": "γ", "sigma": "σ", "tau": "τ"}
COMMON = ("tau", "mask", "narrowing")
"""Fields of every template, which are no parameters of its shape."""


class Narrowing(Section):
    """A template that is wide in the first epochs, so that every cell still gets a gradient, and narrows to its own
    width."""

    location: ClassVar = ("template", "narrowing")
    scale: Annotated[Number, Field(ge=1)]
    """Factor on every length of the template in the first epoch. It falls to 1 in equal logarithmic steps."""
    epochs: Annotated[Integer, Field(ge=2)]
    """Epoch from which on the template has its own width."""


class PartTemplate(Section):
    """Base class of the part templates.

    A package adds a shape with a subclass and an entry point in the group ``ipcnn.templates``; CONTRIBUTING.md has an
    example. Import only `spec.template` and `spec.section` in the module of the class, and not torch: specs are checked
    without it.
    """

    location: ClassVar = ("template",)
    shape: str
    """Shape of the template; a `Literal` with the name of the entry point."""
    tau: Positive | None = None
    """Height of the template. Default: 0.5 / n^2, n the side of the layer's map in cells."""
    mask: Annotated[Literal["none", "peak", "centroid"] | None, OmitDefaultFromDigest()] = None
    """Where the layer's maps are masked by the template: not at all (`none`), around each map's peak, or around its
    activation-weighted centroid as in the authors' code. Independent of `loss.filter`. Default: `centroid` with
    loss.filter.form: released, else `peak`."""
    narrowing: Annotated[Narrowing | None, OmitDefaultFromDigest()] = None
    """Widen the template in the first epochs, in the mask and in the filter loss. An epoch is evaluated with its own
    template. Default: the template's own width in all epochs."""

    function: ClassVar[str] = ""
    """Function of the unit template, as `module:function`; its arguments and result are those of
    `core.templates.gradient`. Default: the function of `core.templates` with the name of the shape."""
    form: ClassVar[str] = "exact"
    """Default form of the filter loss."""
    learned: ClassVar[str] = ""
    """Field that `loss.filter.learn_beta` turns into one parameter per filter, with the filter loss of `form`; empty
    if there is none. With the exact form the unit template must be max(1 - field * distance, -1)."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `core.templates.part_templates` except n and tau."""
        return {"shape": self.function or self.shape, **self.model_dump(exclude={"shape", *COMMON}, exclude_none=True)}

    def widening(self, epoch: int) -> float:
        """Return the factor on every length of the template in an epoch, counted from 1; 1 in epoch 0, of a run that
        is not trained."""
        if self.narrowing is None or not 1 <= epoch < self.narrowing.epochs:
            return 1.0
        return float(self.narrowing.scale ** (1 - (epoch - 1) / (self.narrowing.epochs - 1)))

    def issues(self) -> Iterator[FieldIssue]:
        """Yield the issues of fields that contradict each other."""
        yield from ()

    def data_issues(self, data: Data) -> Iterator[FieldIssue]:
        """Yield the issues of fields that contradict the data section."""
        yield from ()

    def label(self) -> str:
        """Return a short label, such as `uniform L2 β2 γ0.5, no mask`; it has tau, the mask and the narrowing
        only if they are set."""
        norm = self._norm()
        words = [
            f"{SYMBOLS[name]}{value:.3g}" if name in SYMBOLS else f"{name} {_formatted(value, '.3g')}"
            for name, value in self._parameters().items()
        ]
        return " ".join([self.shape, *([norm] if norm else []), *words, *self._tau_label()]) + self._use()

    def describe(self) -> str:
        """Return a description, such as `uniform L2 template, beta 2, gamma 0.5, tau 0.5 / n^2`."""
        norm = self._norm()
        words = [f"{name} {_formatted(value, 'g')}" for name, value in self._parameters().items()]
        title = f"{self.shape} {norm} template" if norm else f"{self.shape} template"
        return ", ".join([title, *words, self._height()]) + self._use()

    def _norm(self) -> str:
        parameters = self.arguments()
        return f"L{parameters['p']:g}" if "p" in parameters else str(parameters.get("norm", "")).replace("l", "L")

    def _parameters(self) -> dict[str, Any]:
        return {name: value for name, value in self.arguments().items() if name not in ("shape", "norm", "p")}

    def _tau_label(self) -> list[str]:
        return [f"τ{self.tau:.3g}"] if self.tau is not None else []

    def _height(self) -> str:
        return "tau 0.5 / n^2" if self.tau is None else f"tau {self.tau:g}"

    def _use(self) -> str:
        """What is set of how the template is used, for the end of a label or a description."""
        masks = {"none": ", no mask", "peak": ", mask at the peak", "centroid": ", mask at the centroid"}
        mask = masks[self.mask] if self.mask else ""
        if self.narrowing is None:
            return mask
        return f"{mask}, narrowing from x{self.narrowing.scale:g} in {self.narrowing.epochs} epochs"


def _formatted(value: Any, form: str) -> str:
    if isinstance(value, tuple):
        return f"{len(value)}x{len(value)}"
    return format(value, form) if isinstance(value, float) and not isinstance(value, bool) else str(value)


class NormedTemplate(PartTemplate):
    """A template that depends on a distance in some norm."""

    norm: Norm = "l1"
    """Norm of the distance: l1 (Zhang et al.; a diamond), l2 (a disc), linf (a square), or lp (in between, by `p`)."""
    p: Annotated[Positive | None, OmitDefaultFromDigest()] = None
    """Exponent of the norm lp: (|di|^p + |dj|^p)^(1/p). 1 is l1, 2 is l2; below 1 it is a star with hollow sides."""

    def issues(self) -> Iterator[FieldIssue]:
        if self.norm == "lp" and self.p is None:
            yield self.issue("norm", "needs its exponent; add template.p, or take l1, l2 or linf")
        if self.norm != "lp" and self.p is not None:
            yield self.issue("p", f"norm {self.norm} has no exponent; drop this or take template.norm: lp")


class GradientTemplate(NormedTemplate):
    """A template that falls off with distance: tau * max(1 - beta * ||[i,j] - mu|| / n, -1)."""

    shape: Literal["gradient"]
    """Falls off with distance."""
    beta: Positive = 2.0
    """Slope. The template crosses zero at a distance of n / beta cells. Part-template paper: 2; Zhang et al.: 4."""

    learned: ClassVar[str] = "beta"

    def label(self) -> str:
        return super().label().removeprefix("gradient ")


class UniformTemplate(NormedTemplate):
    """A template that is tau inside beta * ||[i,j] - mu|| / n < gamma and -tau outside."""

    shape: Literal["uniform"]
    """Constant inside a radius, and outside it."""
    beta: Positive = 2.0
    """Inverse scale of the distance. Only gamma / beta matters for a uniform template."""
    gamma: Positive = 2.0
    """Threshold of the scaled distance: the radius is n * gamma / beta cells."""


class ReleasedTemplate(PartTemplate):
    """The template of the authors' code: a gradient template of norm l1 in coordinates from -1 to 1 over the map."""

    shape: Literal["released"]
    """As in the authors' code."""
    width: Positive = 2.0
    """Slope in those coordinates: beta is 2 * width * n / (n - 1). Initial value of every filter with
    loss.filter.learn_beta."""

    form: ClassVar[str] = "released"
    learned: ClassVar[str] = "width"


class GaussianTemplate(PartTemplate):
    """A bell: tau * (2 exp(-d^2 / (2 (sigma n)^2)) - 1), d the Euclidean distance from mu in cells."""

    shape: Literal["gaussian"]
    """A bell."""
    sigma: Positive = 0.425
    """Standard deviation, share of n. The template crosses zero at 1.177 sigma n; with 0.425 that is where a gradient
    template with beta 2 does."""


class EllipseTemplate(PartTemplate):
    """A template that falls off with distance, faster across its long axis than along it."""

    shape: Literal["ellipse"]
    """Long in one direction."""
    beta: Positive = 2.0
    """Slope. The template crosses zero on an ellipse with half-axes n sqrt(aspect) / beta and
    n / (beta sqrt(aspect))."""
    aspect: Annotated[Number, Field(ge=1)] = 2.0
    """Long axis over short axis. 1 is the gradient template of norm l2 at any angle."""
    angle: Annotated[Number, Field(ge=0, lt=180)] = 0.0
    """Angle of the long axis, degrees: 0 along the columns (horizontal), 90 along the rows (vertical), 45 rising to the
    right."""

    learned: ClassVar[str] = "beta"


class RingTemplate(PartTemplate):
    """A circle about mu: tau * max(1 - 2 |d - radius n| / (width n), -1). With width < 2 radius it is negative at mu:
    the mask erases a filter's peak and keeps what surrounds it."""

    shape: Literal["ring"]
    """A circle about the peak."""
    radius: Annotated[Number, Field(gt=0, le=0.5)] = 0.25
    """Radius of the circle, share of n. Up to 0.5, a part of every circle is on the map."""
    width: Positive = 0.25
    """Distance of the circle's two zero crossings, share of n. Below 1 / n the circle breaks into single cells."""


class MaskTemplate(PartTemplate):
    """Any shape, given as a table."""

    shape: Literal["mask"]
    """A table of values."""
    values: tuple[tuple[Annotated[Number, Field(ge=-1, le=1)], ...], ...]
    """Square unit template as rows of values from -1 to 1, its middle on mu."""
    extent: Positive = 1.0
    """Side of the table, share of n. Values are interpolated linearly inside it, and -1 outside."""

    def issues(self) -> Iterator[FieldIssue]:
        if any(len(row) != len(self.values) for row in self.values):
            lengths = ", ".join(str(len(row)) for row in self.values)
            yield self.issue("values", f"must be square: its {len(self.values)} rows have {lengths} values")
        if not any(value > 0 for row in self.values for value in row):
            yield self.issue("values", "must be above 0 somewhere, or every map is erased")


class TailoredTemplate(PartTemplate):
    """A template with the size and aspect of one part of the animal, fitted to the training split before training.

    The fitted template is an ellipse, or a mask for part_masks, and is recorded with the run. A map of n cells is taken
    to span a crop.
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
        raise TypeError("a tailored template has no shape before train.final_model.fit_template")

    def data_issues(self, data: Data) -> Iterator[FieldIssue]:
        names = ", ".join(data.landmarks)
        if not data.landmarks:
            advice = f"{data.kind} has no data.landmarks to fit it to; take another shape"
            yield self.issue("shape", advice, "data.landmarks")
            return
        if self.landmark not in data.landmarks:
            yield self.issue("landmark", f"must be one of data.landmarks: {names}", "data.landmarks")
        elif self.fitted_to == "landmarks" and len(set(data.landmarks)) == 1:
            advice = f"needs a second landmark; data.landmarks is only {names}"
            yield self.issue("fitted_to", advice, "data.landmarks")
        if self.fitted_to not in data.provides:
            advice = f"{data.lacking(self.fitted_to)}, or take another template.fitted_to"
            yield self.issue("fitted_to", advice, "data.landmarks")

    def label(self) -> str:
        scale = [f"x{self.scale:.3g}"] if self.scale != 1 else []
        return " ".join(["tailored", self.landmark, self.fitted_to, *scale, *self._tau_label()]) + self._use()

    def describe(self) -> str:
        fit = f"template tailored to the {self.landmark}'s {self.fitted_to}"
        return f"{fit}, scale {self.scale:g}, {self._height()}{self._use()}"


class NoTemplate(Section):
    """The plain network: no mask and no filter loss. The control of every comparison."""

    shape: Literal["none"]
    """No template: the plain network."""

    def label(self) -> str:
        return "plain"

    def describe(self) -> str:
        return "no template (the plain network)"


Template = Annotated[PartTemplate | NoTemplate, RegisteredKinds("shape", TEMPLATES, PartTemplate)]
"""The section of any registered shape."""
