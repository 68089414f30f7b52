"""From an experiment to its runs: the named ones, the grid, and those that a search draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ipcnn_ray.spec.digest import digest
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.fields import Loc
from ipcnn_ray.spec.resolve import without_defaults
from ipcnn_ray.spec.search import Choice, Distribution, GridSearch, LogUniform, NamedSearch, Search
from ipcnn_ray.spec.settings import applied
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


def points(search: Search) -> list[dict[str, Point]]:
    """Every combination of a grid; of a space, every combination of choices and of the ends of ranges; of named runs
    alone, none.

    A space with more than MOST_CORNERS of these is reduced to each value of each field beside the first values of
    all others.
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
        else ({**first, path: point} for path, found in listed.items() for point in found)
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
