"""The search section: named runs, a grid or a space, their repeats over seeds, and the objective that ranks them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ipcnn_ray.spec.metric_info import MeasureName
from ipcnn_ray.spec.section import (
    Count,
    FieldPath,
    Integer,
    Number,
    OmitDefaultFromDigest,
    Positive,
    Scalar,
    Section,
    Share,
    Slug,
)

Ranked = Literal["instability", "val_error", MeasureName]
"""What runs can be ranked by, and constrained: location instability (share of the image diagonal), validation error
(a share), and every measure of spec/measures.py."""
Repeats = Annotated[Integer, Field(ge=1, le=40), OmitDefaultFromDigest()]


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


class Combined(Section):
    """combined = w * instability / control's instability + (1 - w) * error / control's error; lower is better.

    The error of neither side counts as less than one validation image.
    """

    kind: Annotated[Literal["combined"], OmitDefaultFromDigest()] = "combined"
    """Instability and error in one number, relative to the control."""
    control: Slug = "plain"
    """Name of the run that both measures are relative to; it must be among `runs`."""
    instability_weight: Share = 0.5
    """w: 1 looks only at location instability, 0 only at the validation error."""


class OneMeasure(Section):
    """One measure by itself."""

    kind: Literal["measure"]
    """One measure by itself."""
    measure: Ranked
    """The measure; whether higher or lower is better follows from it."""
    control: Slug = "plain"
    """Name of the run that the others are compared with; it must be among `runs`."""


class Pareto(Section):
    """Several measures at once: no run is the best, and the Pareto front is those that no other run beats in all."""

    kind: Literal["pareto"]
    """Several measures at once, none of which is weighed against another."""
    measures: Annotated[tuple[Ranked, ...], Field(min_length=2)]
    """The measures; whether higher or lower is better follows from each."""
    control: Slug = "plain"
    """Name of the run that the others are compared with; it must be among `runs`."""


def _objective(value: object) -> str | None:
    """Which objective this is; one that says no kind is the combined one."""
    if isinstance(value, dict):
        return str(value.get("kind", "combined"))
    return getattr(value, "kind", None)


Objective = Annotated[
    Annotated[OneMeasure, Tag("measure")] | Annotated[Pareto, Tag("pareto")] | Annotated[Combined, Tag("combined")],
    Discriminator(_objective),
]


class Constraint(Section):
    """A bound on a measure of a run's last epoch: a run beyond it is never the best, and the search avoids it."""

    measure: Ranked
    """The measure."""
    at_most: Number | None = None
    """Upper bound, in the measure's unit; a validation error of 10 % is 0.1."""
    at_least: Number | None = None
    """Lower bound, in the measure's unit."""


class EarlyStopping(Section):
    """Asynchronous successive halving (ASHA) on the objective, which must be a single one."""

    grace_epochs: Count = 2
    """No run is stopped before this epoch."""
    reduction_factor: Annotated[Integer, Field(ge=2)] = 3
    """Of the runs that reach a rung, one in this many goes on."""


class NamedSearch(Section):
    """Named runs and nothing else: a comparison of a few settings, or one setting over several seeds."""

    kind: Literal["named"]
    """Named runs and nothing else."""
    runs: Annotated[tuple[NamedRun, ...], Field(min_length=1)]
    """Named runs; the control is one of them."""
    repeats: Repeats = 1
    """Seeds that every run is trained with: `seed`, `seed` + 1, ... Its repeats are compared with the control's of the
    same seed."""
    objective: Objective = Combined()
    """What the runs are ranked by."""
    constraints: Annotated[tuple[Constraint, ...], OmitDefaultFromDigest()] = ()
    """Bounds that the best run must keep."""


class GridSearch(Section):
    """Every combination of the listed values."""

    kind: Literal["grid"]
    """Every combination of listed values."""
    runs: Annotated[tuple[NamedRun, ...], Field(min_length=1)]
    """Named runs, trained first and in full; the control is one of them."""
    grid: Annotated[dict[FieldPath, Annotated[tuple[Scalar, ...], Field(min_length=1)]], Field(min_length=1)]
    """Field -> values; every combination is one run."""
    repeats: Repeats = 1
    """Seeds that every named run and every combination is trained with: `seed`, `seed` + 1, ... Its repeats are
    compared with the control's of the same seed."""
    objective: Objective = Combined()
    """What the runs are ranked by."""
    constraints: Annotated[tuple[Constraint, ...], OmitDefaultFromDigest()] = ()
    """Bounds that the best run must keep."""
    early_stopping: EarlyStopping | None = None
    """Whether and how hopeless runs are ended early. Default: every run is trained in full."""


class SpaceSearch(Section):
    """Runs drawn from a space of distributions."""

    kind: Literal["space"]
    """Runs drawn from distributions."""
    algorithm: Literal["tpe", "nsga2", "random"] = "tpe"
    """`tpe`: Optuna's tree-structured Parzen estimator; `nsga2`: Optuna's genetic algorithm NSGA-II, a generation of
    which is a quarter of the trials (4 to 50); `random`: independent draws."""
    trials: Count
    """Number of runs drawn, beside the named ones."""
    runs: Annotated[tuple[NamedRun, ...], Field(min_length=1)]
    """Named runs, trained first and in full; the control is one of them."""
    space: Annotated[dict[FieldPath, Distribution], Field(min_length=1)]
    """Field -> distribution."""
    repeats: Repeats = 1
    """Seeds that every named run is trained with: `seed`, `seed` + 1, ... Drawn runs are trained once, with `seed`, and
    compared with the control's of that seed: to tell whether the best of them is luck, name it in a spec of its own."""
    objective: Objective = Combined()
    """What the runs are ranked by, and the search optimises."""
    constraints: Annotated[tuple[Constraint, ...], OmitDefaultFromDigest()] = ()
    """Bounds that the best run must keep, and that the search learns to keep."""
    early_stopping: EarlyStopping | None = None
    """Whether and how hopeless runs are ended early. Default: every run is trained in full."""


Search = Annotated[NamedSearch | GridSearch | SpaceSearch, Field(discriminator="kind")]


def stopping(search: Search | None) -> EarlyStopping | None:
    """How hopeless runs are ended early; None where none are, as in a search of named runs alone."""
    return None if search is None or isinstance(search, NamedSearch) else search.early_stopping
