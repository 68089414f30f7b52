"""The search section: named runs, a grid or a space, repeats over seeds; its points and its objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite, prod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from ipcnn_ray.spec.extensions import INSTABILITY, METRICS
from ipcnn_ray.spec.section import (
    Count,
    FieldPath,
    Integer,
    NameIn,
    Number,
    OmitDefaultFromDigest,
    Positive,
    Scalar,
    Section,
    Share,
    Slug,
)

Ranked = Annotated[str, NameIn(METRICS, besides=(INSTABILITY, "val_error"))]
"""What runs can be ranked by, and constrained: validation error (a share), the metrics that every run records, and
those of `eval.measures`."""


class Drawn(Section):
    """A field of the space."""

    key: ClassVar[str]
    """Name of the field that holds the values, by which distributions are told apart."""
    when: Annotated[dict[FieldPath, Scalar], Field(min_length=1)] | None = None
    """Sample the field only if these other fields of the space have these values; otherwise it keeps its own value."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The options of a choice, or the two ends of a range."""
        values: tuple[Any, ...] = getattr(self, self.key)
        return values


class Choice(Drawn):
    """One of several values."""

    key: ClassVar[str] = "choice"
    choice: Annotated[tuple[Scalar, ...], Field(min_length=1)]
    """The values, equally likely at first."""


class Uniform(Drawn):
    """A number from a uniform distribution."""

    key: ClassVar[str] = "uniform"
    uniform: tuple[Number, Number]
    """Lower and upper end."""


class LogUniform(Drawn):
    """A positive number from a log-uniform distribution."""

    key: ClassVar[str] = "log_uniform"
    log_uniform: tuple[Positive, Positive]
    """Lower and upper end."""


def _key(value: object) -> str | None:
    """Return the key of a distribution, which is its tag."""
    if isinstance(value, dict):
        return next((key for key in ("choice", "uniform", "log_uniform") if key in value), None)
    return getattr(value, "key", None)


Distribution = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Uniform, Tag("uniform")] | Annotated[LogUniform, Tag("log_uniform")],
    Discriminator(_key),
]


class NamedRun(Section):
    """A run that a search always trains in full, such as the control."""

    name: Slug
    """Name and label of the run."""
    set: dict[FieldPath, Any] = Field(default_factory=dict)
    """Fields that differ from the experiment; a mapping replaces the whole section."""


class ObjectiveSection(Section):
    """Base class of the objectives."""

    location: ClassVar = ("search", "objective")
    kind: str
    control: Slug = "plain"
    """Name of the run that the others are compared with, one of `runs`."""


class Combined(ObjectiveSection):
    """combined = w * instability / control's instability + (1 - w) * error / control's error; lower is better.

    Both errors are at least one standard error of the control's error, and at least one validation image. In place of
    location instability any metric can stand; see `interpretability`.
    """

    kind: Annotated[Literal["combined"], OmitDefaultFromDigest()] = "combined"
    """Instability and error in one number, relative to the control."""
    instability_weight: Share = 0.5
    """w: 1 is location instability (or `interpretability`) only, 0 the validation error only."""
    interpretability: Annotated[str, NameIn(METRICS), OmitDefaultFromDigest()] = INSTABILITY
    """The metric in place of location instability. Of a metric with a best value (0 for instability and errors, 1 for
    tracking and shares) the distance from this value counts, relative to the control's; of others the value, or its
    inverse if higher is better."""


class OneMeasure(ObjectiveSection):
    """A single metric."""

    kind: Literal["measure"]
    """A single metric."""
    measure: Ranked
    """The metric. It determines whether higher or lower is better."""


class Pareto(ObjectiveSection):
    """Several metrics without weights. The result is the Pareto front: the runs that no other run beats in all."""

    kind: Literal["pareto"]
    """Several metrics without weights."""
    measures: Annotated[tuple[Ranked, ...], Field(min_length=2)]
    """The metrics. Each determines whether higher or lower is better."""


def _objective(value: object) -> str | None:
    """Return the tag of an objective; without a kind it is the combined one."""
    if isinstance(value, dict):
        return str(value.get("kind", "combined"))
    return getattr(value, "kind", None)


Objective = Annotated[
    Annotated[OneMeasure, Tag("measure")] | Annotated[Pareto, Tag("pareto")] | Annotated[Combined, Tag("combined")],
    Discriminator(_objective),
]


class Constraint(Section):
    """A bound on a metric of a run's last epoch. A run that violates it is never the best, and the search avoids it."""

    measure: Ranked
    """The metric."""
    at_most: Number | None = None
    """Upper bound, in the metric's unit; a validation error of 10 % is 0.1."""
    at_least: Number | None = None
    """Lower bound, in the metric's unit."""

    def __str__(self) -> str:
        if self.at_most is not None:
            return f"{self.measure} <= {self.at_most!r}"
        return f"{self.measure} >= {self.at_least!r}"

    def violation(self, metrics: Mapping[str, float]) -> float | None:
        """Return the amount of the violation in the metric's unit: at most 0 if the constraint is satisfied, None if
        the metric is missing or not finite."""
        value = metrics.get(self.measure)
        if value is None or not isfinite(value):
            return None
        if self.at_most is not None:
            return value - self.at_most
        assert self.at_least is not None
        return self.at_least - value


class EarlyStopping(Section):
    """Asynchronous successive halving (ASHA) on the objective, which must be a single one."""

    location: ClassVar = ("search", "early_stopping")
    grace_epochs: Count = 2
    """No run is stopped before this epoch."""
    reduction_factor: Annotated[Integer, Field(ge=2)] = 3
    """One in this many runs that reach a rung continues."""


class SearchSection(Section):
    """Base class of the searches."""

    location: ClassVar = ("search",)
    kind: str
    runs: Annotated[tuple[NamedRun, ...], Field(min_length=1)]
    """Named runs, trained first and in full; the control is one of them."""
    repeats: Annotated[Integer, Field(ge=1, le=40), OmitDefaultFromDigest()] = 1
    """Number of seeds that every named run and every combination of a grid is trained with: `seed`, `seed` + 1, ... A
    repeat is compared with the control's repeat of the same seed. Runs sampled from a space are trained once, with
    `seed`; to repeat the best of them, name it in another spec."""
    objective: Objective = Combined()
    """The objective that ranks the runs and that a search of a space optimises."""
    constraints: Annotated[tuple[Constraint, ...], OmitDefaultFromDigest()] = ()
    """Constraints that the best run must satisfy, and that a search of a space learns to satisfy."""


class NamedSearch(SearchSection):
    """Named runs only: a comparison of a few settings, or one setting with several seeds."""

    kind: Literal["named"]
    """Named runs only."""
    early_stopping: ClassVar[None] = None


class StoppableSearch(SearchSection):
    """Base class of the searches with runs that can be stopped early."""

    early_stopping: EarlyStopping | None = None
    """Early stopping of bad runs. Default: every run is trained in full."""


class GridSearch(StoppableSearch):
    """Every combination of the listed values."""

    kind: Literal["grid"]
    """Every combination of listed values."""
    grid: Annotated[dict[FieldPath, Annotated[tuple[Scalar, ...], Field(min_length=1)]], Field(min_length=1)]
    """Field -> values; every combination is one run."""


class SpaceSearch(StoppableSearch):
    """Runs sampled from a space of distributions."""

    kind: Literal["space"]
    """Runs sampled from distributions."""
    algorithm: Literal["tpe", "nsga2", "random"] = "tpe"
    """`tpe`: Optuna's tree-structured Parzen estimator; `nsga2`: Optuna's genetic algorithm NSGA-II, a generation of
    which is a quarter of the trials (4 to 50); `random`: independent draws."""
    trials: Count
    """Number of sampled runs, besides the named ones."""
    space: Annotated[dict[FieldPath, Distribution], Field(min_length=1)]
    """Field -> distribution."""


Search = Annotated[NamedSearch | GridSearch | SpaceSearch, Field(discriminator="kind")]


MAX_CORNERS = 1000


def active(space: Mapping[str, Distribution], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of those fields whose `when` holds, given other active fields."""
    kept = dict(values)
    while True:
        idle = [path for path in kept if any(kept.get(on) != value for on, value in (space[path].when or {}).items())]
        if not idle:
            return kept
        for path in idle:
            del kept[path]


def points(search: Search) -> list[dict[str, Any]]:
    """Return the combinations that represent a search, as values by dotted path.

    Of a grid, every combination. Of a space, every combination of choices and of the ends of ranges; if there are more
    than MAX_CORNERS, one field is varied at a time, all others at their first value, with the `when` conditions of
    that field satisfied. None for a search of named runs only.
    """
    if isinstance(search, NamedSearch):
        return []
    if isinstance(search, GridSearch):
        return list(_product(search.grid))
    values = {path: distribution.values for path, distribution in search.space.items()}
    if prod(map(len, values.values())) <= MAX_CORNERS:
        corners = _product(values)
    else:
        corners = (_varied(path, value, values, search.space) for path in values for value in values[path])
    combinations = [active(search.space, corner) for corner in corners]
    return list({repr(combination): combination for combination in combinations}.values())  # 1 and true are not equal


def _product(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _varied(
    path: str, value: Any, values: Mapping[str, Sequence[Any]], space: Mapping[str, Distribution]
) -> dict[str, Any]:
    corner, pending = {**{other: options[0] for other, options in values.items()}, path: value}, [path]
    while pending:
        for on, needed in (space[pending.pop()].when or {}).items():
            corner[on] = next(option for option in values[on] if option == needed)
            pending.append(on)
    return corner


COMBINED = "combined"
"""Name of the combined objective in the record."""
VAL_ERROR = "val_error"


class MetricInfo(NamedTuple):
    """Facts about a metric that runs can be ranked by."""

    unit: str
    better: Literal["higher", "lower"]
    description: str
    """One line."""
    best: float | None = None
    """The best value that it can have; None where there is no such value."""


def ranked_names() -> tuple[str, ...]:
    """Return the names of all metrics that runs can be ranked by."""
    return (COMBINED, INSTABILITY, VAL_ERROR, *(name for name in METRICS.names() if name != INSTABILITY))


def metric_info(name: str) -> MetricInfo:
    """Return unit, direction and description of a metric that runs can be ranked by. Imports the metric."""
    if name == COMBINED:
        return MetricInfo("1 is the control", "lower", "instability and error relative to the control")
    if name == VAL_ERROR:
        return MetricInfo("share of validation items", "lower", "classification error on the validation items", 0.0)
    metric = METRICS.load(name)
    return MetricInfo(metric.unit, metric.better, metric.description, metric.best)


def lower_is_better(name: str) -> bool:
    """Return whether lower values of a metric are better. Imports it, unless every run has it."""
    return name in (COMBINED, INSTABILITY, VAL_ERROR) or metric_info(name).better == "lower"


@dataclass(frozen=True)
class Objectives:
    """Metrics and constraints that the runs of an experiment are ranked by. The record stores them as tags."""

    goals: tuple[str, ...]
    """One metric, or those of a Pareto search."""
    constraints: tuple[Constraint, ...] = ()
    control: str | None = None
    """Name of the run that the others are compared with; None without a search."""

    @classmethod
    def of(cls, search: Search | None, *, landmarks: bool = True) -> Objectives:
        """Return the objectives of a search; of a single run its instability, of one on data without landmarks its
        error."""
        if search is None:
            return cls((INSTABILITY if landmarks else VAL_ERROR,))
        objective = search.objective
        if isinstance(objective, Combined):
            goals: tuple[str, ...] = (COMBINED,)
        else:
            goals = (objective.measure,) if isinstance(objective, OneMeasure) else tuple(objective.measures)
        return cls(goals, search.constraints, objective.control)

    def costs(self, metrics: Mapping[str, float]) -> list[float] | None:
        """Return the values of the goals, negated if higher is better; None if one is missing or not finite."""
        values = [metrics.get(goal) for goal in self.goals]
        known = [value for value in values if value is not None and isfinite(value)]
        if len(known) < len(self.goals):
            return None
        return [value if lower_is_better(goal) else -value for goal, value in zip(self.goals, known, strict=True)]

    def tags(self) -> dict[str, str]:
        """Return the tags of the experiment's record."""
        return {
            "ipcnn.goals": ", ".join(self.goals),
            "ipcnn.constraints": "; ".join(map(str, self.constraints)),
            "ipcnn.control": self.control or "",
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Objectives:
        """Return the objectives that `tags` wrote. Old records without them have the combined objective and the
        control `plain`."""
        goals = tuple(filter(None, tags.get("ipcnn.goals", COMBINED).split(", ")))
        constraints = filter(None, tags.get("ipcnn.constraints", "").split("; "))
        return cls(goals, tuple(map(_constraint, constraints)), tags.get("ipcnn.control", "plain") or None)


def _constraint(text: str) -> Constraint:
    """Parse the text of a constraint. The package of its metric need not be installed."""
    measure, sign, bound = text.split()
    bounds = {"at_most" if sign == "<=" else "at_least": float(bound)}
    return Constraint.model_construct(measure=measure, **bounds)  # type: ignore[arg-type]
