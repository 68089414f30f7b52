"""The search section: named runs, a grid or a space, and the objective that ranks them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ipcnn_ray.spec.base import Count, FieldPath, Integer, Number, Positive, Scalar, Section, Share, Slug


class Drawn(Section):
    """A field of the space."""

    when: Annotated[dict[FieldPath, Scalar], Field(min_length=1)] | None = None
    """Drawn only when these other fields of the space have these values; else the field keeps its own."""


class Choice(Drawn):
    """One of several values."""

    choice: Annotated[tuple[Scalar, ...], Field(min_length=1)]
    """The values, all equally likely before anything is learned."""


class Uniform(Drawn):
    """A number between two ends, all equally likely."""

    uniform: tuple[Number, Number]
    """Lower and upper end."""


class LogUniform(Drawn):
    """A positive number between two ends, its logarithm equally likely."""

    log_uniform: tuple[Positive, Positive]
    """Lower and upper end."""


def _key(value: object) -> str | None:
    """Which distribution this is: the one whose key is there."""
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((key for key in ("choice", "uniform", "log_uniform") if key in keys), None)


Distribution = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Uniform, Tag("uniform")] | Annotated[LogUniform, Tag("log_uniform")],
    Discriminator(_key),
]


class NamedRun(Section):
    """A run that every search of this experiment trains in full, such as the control."""

    name: Slug
    """Its name, which is also its label among the runs."""
    set: dict[FieldPath, Any] = Field(default_factory=dict)
    """Fields that differ from the experiment; a mapping replaces the whole section."""


class Objective(Section):
    """combined = w * instability / control's instability + (1 - w) * error / control's error; lower is better.

    The error of neither side counts as less than one validation image.
    """

    control: Slug = "plain"
    """Name of the run that both measures are relative to; it must be among `runs`."""
    instability_weight: Share = 0.5
    """w: 1 looks only at location instability, 0 only at the validation error."""


class EarlyStopping(Section):
    """Asynchronous successive halving (ASHA) on the combined objective."""

    grace_epochs: Count = 2
    """No run is stopped before this epoch."""
    reduction_factor: Annotated[Integer, Field(ge=2)] = 3
    """Of the runs that reach a rung, one in this many goes on."""


class GridSearch(Section):
    """Every combination of the listed values."""

    kind: Literal["grid"]
    """Every combination of listed values."""
    runs: Annotated[tuple[NamedRun, ...], Field(min_length=1)]
    """Named runs, trained first and in full; the control is one of them."""
    grid: Annotated[dict[FieldPath, Annotated[tuple[Scalar, ...], Field(min_length=1)]], Field(min_length=1)]
    """Field -> values; every combination is one run."""
    objective: Objective = Objective()
    """What the runs are ranked by, and the search minimises."""
    early_stopping: EarlyStopping | None = None
    """Whether and how hopeless runs are ended early. Default: every run is trained in full."""


class SpaceSearch(Section):
    """Runs drawn from a space of distributions."""

    kind: Literal["space"]
    """Runs drawn from distributions."""
    algorithm: Literal["tpe", "random"] = "tpe"
    """`tpe`: Optuna's tree-structured Parzen estimator; `random`: independent draws."""
    trials: Count
    """Number of runs drawn, beside the named ones."""
    runs: Annotated[tuple[NamedRun, ...], Field(min_length=1)]
    """Named runs, trained first and in full; the control is one of them."""
    space: Annotated[dict[FieldPath, Distribution], Field(min_length=1)]
    """Field -> distribution."""
    objective: Objective = Objective()
    """What the runs are ranked by, and the search minimises."""
    early_stopping: EarlyStopping | None = None
    """Whether and how hopeless runs are ended early. Default: every run is trained in full."""


Search = Annotated[GridSearch | SpaceSearch, Field(discriminator="kind")]
