"""From an experiment to its runs: the named ones, the grid, and those that a search draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import methodcaller
from typing import Any

import yaml

from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.defaults import without_defaults
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.overrides import applied
from ipcnn_ray.spec.search import (
    Choice,
    Distribution,
    GridSearch,
    LogUniform,
    NamedSearch,
    Search,
    SpaceSearch,
    stopping,
)
from ipcnn_ray.spec.section import Loc, OmitDefaultFromDigest, Section
from ipcnn_ray.spec.template import Template

SINGLE = "run"
"""Label of the one run of an experiment without a search."""
MOST_CORNERS = 1000


@dataclass(frozen=True)
class Run:
    """One run of an experiment."""

    label: str
    """Its name within the experiment: of a named run its name, of a searched one `r` and its digest; of one that is
    repeated over seeds also its seed, `l1.seed3`."""
    spec: ExperimentSpec
    """What this run trains, resolved, without a search."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The fields that differ from the experiment, by dotted path."""

    @property
    def group(self) -> str:
        """What its repeats over seeds share: the label without the seed."""
        return group_of(self.label)


@dataclass(frozen=True)
class Point:
    """A value that a searched field can take, and where the spec says so."""

    value: Any
    loc: Loc


def run_for(spec: ExperimentSpec, settings: Mapping[str, Any], label: str | None = None) -> Run:
    """The run of an experiment with these fields set. Equal settings give equal labels.

    Raises pydantic's ValidationError where they do not make a valid run, settings.NotASection where a path leads
    nowhere; for the settings of a checked spec's own runs, grid and space neither happens.
    """
    raw = without_defaults(spec.model_dump(mode="json"))
    raw["search"] = None
    raw["compute"] = {**raw["compute"], "concurrent_runs": None}
    run = ExperimentSpec.model_validate(applied(raw, settings, ExperimentSpec))
    return Run(label or f"r{digest(run)}", run, dict(settings))


def group_of(label: str) -> str:
    """The label of a run without its seed; a name has no dot."""
    return label.partition(".")[0]


def seeds(spec: ExperimentSpec) -> tuple[int, ...]:
    """Seeds that the runs of a search are repeated with: the experiment's, and those that follow it."""
    repeats = spec.search.repeats if spec.search else 1
    return tuple(range(spec.seed, spec.seed + repeats))


def _repeated(spec: ExperimentSpec, runs: Sequence[Run]) -> tuple[Run, ...]:
    """These runs with every seed, one seed after the other."""
    if len(seeds(spec)) == 1:
        return tuple(runs)
    return tuple(
        run_for(spec, {**run.settings, "seed": seed}, f"{run.label}.seed{seed}") for seed in seeds(spec) for run in runs
    )


def named_runs(spec: ExperimentSpec) -> tuple[Run, ...]:
    """The named runs of a search in their order, with every seed; without a search the one run."""
    if spec.search is None:
        return (Run(SINGLE, spec),)
    return _repeated(spec, [run_for(spec, named.set, named.name) for named in spec.search.runs])


def grid_runs(spec: ExperimentSpec) -> tuple[Run, ...]:
    """Every combination of a grid, in the order of its keys, less those that a named run trains anyway; with every
    seed."""
    if not isinstance(spec.search, GridSearch):
        return ()
    named = {digest(run_for(spec, one.set).spec) for one in spec.search.runs}
    runs = (run_for(spec, {path: point.value for path, point in chosen.items()}) for chosen in points(spec.search))
    return _repeated(spec, [run for run in runs if digest(run.spec) not in named])


def active(space: Mapping[str, Distribution], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Of chosen values those whose `when` holds, on values that are themselves active."""
    kept = dict(chosen)
    while True:
        idle = [path for path in kept if any(kept.get(on) != value for on, value in (space[path].when or {}).items())]
        if not idle:
            return kept
        for path in idle:
            del kept[path]


def _points(distribution: Distribution, loc: Loc) -> list[Point]:
    if isinstance(distribution, Choice):
        key, values = "choice", tuple(distribution.choice)
    elif isinstance(distribution, LogUniform):
        key, values = "log_uniform", distribution.log_uniform
    else:
        key, values = "uniform", distribution.uniform
    return [Point(value, (*loc, key, index)) for index, value in enumerate(values)]


def _combinations(listed: Mapping[str, list[Point]]) -> Iterator[dict[str, Point]]:
    for combination in product(*listed.values()):
        yield dict(zip(listed, combination, strict=True))


def _beside(
    first: Mapping[str, Point],
    path: str,
    point: Point,
    listed: Mapping[str, list[Point]],
    space: Mapping[str, Distribution],
) -> dict[str, Point]:
    """A value of one field beside the first values of all others, and beside what it waits for."""
    corner, waiting = {**first, path: point}, [path]
    while waiting:
        for on, value in (space[waiting.pop()].when or {}).items():
            corner[on] = next(other for other in listed[on] if other.value == value)
            waiting.append(on)
    return corner


def points(search: Search) -> list[dict[str, Point]]:
    """Every combination of a grid; of a space, every combination of choices and of the ends of ranges; of named runs
    alone, none.

    A space with more than MOST_CORNERS of these is reduced to each value of each field beside the first values of
    all others, but for those that it waits for.
    """
    if isinstance(search, NamedSearch):
        return []
    if isinstance(search, GridSearch):
        listed = {
            path: [Point(value, ("search", "grid", path, index)) for index, value in enumerate(values)]
            for path, values in search.grid.items()
        }
        return list(_combinations(listed))
    listed = {path: _points(one, ("search", "space", path)) for path, one in search.space.items()}
    count = 1
    for found in listed.values():
        count *= len(found)
    first = {path: found[0] for path, found in listed.items()}
    corners = (
        _combinations(listed)
        if count <= MOST_CORNERS
        else (_beside(first, path, point, listed, search.space) for path, found in listed.items() for point in found)
    )
    kept: list[dict[str, Point]] = []
    for corner in corners:
        names = active(search.space, {path: point.value for path, point in corner.items()})
        chosen = {path: corner[path] for path in names}
        if chosen not in kept:
            kept.append(chosen)
    return kept


def experiment_id(spec: ExperimentSpec) -> str:
    """<name>-<digest>"""
    return f"{spec.name}-{digest(spec)}"


def run_id(spec: ExperimentSpec, run: Run) -> str:
    """<name>-<digest>-<label>, of the whole experiment's name and digest."""
    return f"{experiment_id(spec)}-{run.label}"


def template_label(template: Template) -> str:
    """A template in a few characters: `plain`, `L1 β2`, `uniform L2 β2 γ0.5`; tau only where it is set."""
    return template.label()


LENGTH = 8
"""Hexadecimal characters of a digest."""


def _normal(value: Any) -> Any:
    """2 and 2.0 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return value


def _content(section: Section, dumped: dict[str, Any]) -> dict[str, Any]:
    """A dumped section without the `Later` fields that have their defaults."""
    kept = dict(dumped)
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if name in kept and isinstance(value, Section):
            kept[name] = _content(value, kept[name])
        elif (
            name in kept
            and value == info.default
            and any(isinstance(mark, OmitDefaultFromDigest) for mark in info.metadata)
        ):
            del kept[name]
    return kept


def digest(spec: ExperimentSpec) -> str:
    """First characters of the SHA-256 of the resolved spec without its name and `compute`, as canonical JSON.

    The order of keys, the way a number is written, the number of workers and the machine do not change it, nor does
    a field marked `Later` at its default.
    """
    content = _normal(_content(spec, spec.model_dump(mode="json", exclude={"name", "compute"})))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def resolved_yaml(spec: ExperimentSpec) -> str:
    """Every field with its value, defaults included; the head names the experiment's id."""
    body = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# Resolved spec of {experiment_id(spec)}\n{body}"


@dataclass(frozen=True)
class PlannedRun:
    """One run and its cost. Counts are None where they are known only after the data is prepared."""

    label: str
    template: str
    """Its template in a few characters."""
    epochs: int
    batch_size: int
    """Images per step over all workers."""
    items: int | None
    """Training items."""
    steps: int | None
    """Optimiser steps over all epochs."""
    images: int | None
    """Images trained on: steps times batch size."""


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment. Early stopping and failures can only make it cheaper."""

    runs: tuple[PlannedRun, ...]
    """The named runs and the grid, in the order in which they start."""
    drawn: int
    """Further runs that the search draws."""
    largest: PlannedRun | None
    """The costliest run that can be drawn; None where nothing is drawn."""
    workers: int
    """Data-parallel workers of each run."""
    grace_epochs: int | None
    """Epochs that no run is stopped before; None without early stopping."""

    @property
    def steps(self) -> int | None:
        """Optimiser steps of all runs, at most."""
        return self._total(lambda run: run.steps)

    @property
    def images(self) -> int | None:
        """Images trained on by all runs, at most."""
        return self._total(lambda run: run.images)

    def _total(self, cost: Callable[[PlannedRun], int | None]) -> int | None:
        all_runs = [*self.runs, *([self.largest] * self.drawn if self.largest else [])]
        costs = [cost(run) for run in all_runs]
        known = [one for one in costs if one is not None]
        return sum(known) if len(known) == len(costs) else None


def planned(run: Run, count: Callable[[Data], int | None] = methodcaller("train_items")) -> PlannedRun:
    """The cost of one run; `count` says how many training items its data has."""
    train = run.spec.train
    items = count(run.spec.data)
    steps = None if items is None else items // train.batch_size * train.epochs
    return PlannedRun(
        label=run.label,
        template=template_label(run.spec.template),
        epochs=train.epochs,
        batch_size=train.batch_size,
        items=items,
        steps=steps,
        images=None if steps is None else steps * train.batch_size,
    )


def plan(spec: ExperimentSpec, count: Callable[[Data], int | None] = methodcaller("train_items")) -> Plan:
    """The runs of an experiment and what each will cost; `count` says how many training items a run's data has."""
    search = spec.search
    drawn, largest, early = 0, None, stopping(search)
    if isinstance(search, SpaceSearch):
        drawn = search.trials
        corners = (run_for(spec, {path: point.value for path, point in one.items()}) for one in points(search))
        largest = max((planned(run, count) for run in corners), key=lambda run: (run.images or 0, run.epochs))
    return Plan(
        runs=tuple(planned(run, count) for run in (*named_runs(spec), *grid_runs(spec))),
        drawn=drawn,
        largest=largest,
        workers=spec.compute.workers,
        grace_epochs=early.grace_epochs if early else None,
    )
