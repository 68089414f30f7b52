"""What an experiment will cost, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipcnn_ray.spec.counts import train_items
from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.expand import Run, grid_runs, named_runs, points, run_for, template_label
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.search import SpaceSearch, stopping


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


def planned(run: Run, count: Callable[[Data], int | None] = train_items) -> PlannedRun:
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


def plan(spec: ExperimentSpec, count: Callable[[Data], int | None] = train_items) -> Plan:
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
