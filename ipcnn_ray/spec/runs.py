"""From an experiment to its runs: the named ones, the grid, those that a search samples, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from operator import methodcaller
from typing import Any, Literal

import yaml

from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import SpecDumper
from ipcnn_ray.spec.search import GridSearch, SpaceSearch, points

SINGLE = "run"
"""Label of the one run of an experiment without a search."""


@dataclass(frozen=True)
class Run:
    """One run of an experiment."""

    label: str
    """Name within the experiment: the name of a named run, `r` and the digest of another one. A repeat with another
    seed ends in the seed, `l1.seed3`."""
    spec: ExperimentSpec
    """What this run trains, resolved, without a search."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields that differ from the experiment, by dotted path."""
    group: str = SINGLE
    """The label without the seed, which the repeats of a run share."""
    origin: Literal["named", "sampled"] = "named"
    """Named in the spec, or sampled: a combination of the grid or a trial of the search."""


def run_for(spec: ExperimentSpec, settings: Mapping[str, Any], label: str | None = None) -> Run:
    """Return the run of an experiment with these fields set: a named run with a label, else a sampled one.

    Equal settings give sampled runs equal labels. Raises as `ExperimentSpec.run_spec`; never for the settings of a
    checked spec's own runs, grid and space.
    """
    run_spec = spec.run_spec(settings)
    name = label or f"r{run_spec.digest()}"
    return Run(name, run_spec, dict(settings), group=name, origin="named" if label else "sampled")


def seeds(spec: ExperimentSpec) -> tuple[int, ...]:
    """Return the seeds of the repeats of every run: the experiment's seed and those that follow it."""
    return tuple(range(spec.seed, spec.seed + (spec.search.repeats if spec.search else 1)))


def _repeated(spec: ExperimentSpec, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return these runs with every seed, one seed after the other."""
    if len(seeds(spec)) == 1:
        return tuple(runs)
    repeats = []
    for seed, run in product(seeds(spec), runs):
        repeat = run_for(spec, {**run.settings, "seed": seed}, f"{run.label}.seed{seed}")
        repeats.append(replace(repeat, group=run.group, origin=run.origin))
    return tuple(repeats)


def named_runs(spec: ExperimentSpec) -> tuple[Run, ...]:
    """Return the named runs of a search in their order, with every seed; without a search, its one run."""
    if spec.search is None:
        return (Run(SINGLE, spec),)
    return _repeated(spec, [run_for(spec, named.set, named.name) for named in spec.search.runs])


def grid_runs(spec: ExperimentSpec) -> tuple[Run, ...]:
    """Return every combination of a grid except those of named runs, in the order of its keys, with every seed."""
    if not isinstance(spec.search, GridSearch):
        return ()
    named = {spec.run_spec(run.set).digest() for run in spec.search.runs}
    runs = [run_for(spec, combination) for combination in points(spec.search)]
    return _repeated(spec, [run for run in runs if run.spec.digest() not in named])


def experiment_id(spec: ExperimentSpec) -> str:
    return f"{spec.name}-{spec.digest()}"


def run_id(spec: ExperimentSpec, run: Run) -> str:
    return f"{experiment_id(spec)}-{run.label}"


def resolved_yaml(spec: ExperimentSpec) -> str:
    """Return the spec as YAML with every field, defaults included, below a comment with the experiment's id."""
    body = yaml.dump(spec.model_dump(mode="json"), Dumper=SpecDumper, sort_keys=False, allow_unicode=True)
    return f"# Resolved spec of {experiment_id(spec)}\n{body}"


@dataclass(frozen=True)
class PlannedRun:
    """One run and its cost. Counts are None if they are known only after the data is prepared."""

    label: str
    template: str
    """Label of its template."""
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
    """All runs of an experiment. Early stopping and failures can only reduce the cost."""

    runs: tuple[PlannedRun, ...]
    """The named runs and the grid, in the order in which they start."""
    drawn: int
    """Further runs that the search samples."""
    largest: PlannedRun | None
    """The most expensive run that can be sampled; None if none is sampled."""
    workers: int
    """Data-parallel workers of each run."""
    grace_epochs: int | None
    """Epochs before which no run is stopped; None without early stopping."""

    @property
    def steps(self) -> int | None:
        """Upper bound of the optimiser steps of all runs."""
        return self._total(lambda run: run.steps)

    @property
    def images(self) -> int | None:
        """Upper bound of the images trained on by all runs."""
        return self._total(lambda run: run.images)

    def _total(self, cost: Callable[[PlannedRun], int | None]) -> int | None:
        costs = [cost(run) for run in (*self.runs, *([self.largest] * self.drawn if self.largest else []))]
        known = [value for value in costs if value is not None]
        return sum(known) if len(known) == len(costs) else None


def plan_run(run: Run, count: Callable[[Data], int | None] = methodcaller("train_items")) -> PlannedRun:
    """Return the cost of one run; `count` returns the number of training items of a data section."""
    train = run.spec.train
    items = count(run.spec.data)
    steps = 0 if not train.epochs else None if items is None else items // train.batch_size * train.epochs
    return PlannedRun(
        label=run.label,
        template=run.spec.template.label(),
        epochs=train.epochs,
        batch_size=train.batch_size,
        items=items,
        steps=steps,
        images=None if steps is None else steps * train.batch_size,
    )


def plan(spec: ExperimentSpec, count: Callable[[Data], int | None] = methodcaller("train_items")) -> Plan:
    """Return the runs of an experiment and their cost; `count` returns the number of training items of a data
    section."""
    search = spec.search
    drawn, largest, stopping = 0, None, search and search.early_stopping
    if isinstance(search, SpaceSearch):
        drawn = search.trials
        corners = (plan_run(run_for(spec, corner), count) for corner in points(search))
        largest = max(corners, key=lambda run: (run.images or 0, run.epochs))
    return Plan(
        runs=tuple(plan_run(run, count) for run in (*named_runs(spec), *grid_runs(spec))),
        drawn=drawn,
        largest=largest,
        workers=spec.compute.workers,
        grace_epochs=stopping.grace_epochs if stopping else None,
    )
