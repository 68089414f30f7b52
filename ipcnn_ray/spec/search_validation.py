"""Checks of a search: its paths, values, objective, constraints and repeats, and every run that it can expand to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from pydantic import ValidationError

from ipcnn_ray.spec.messages import FieldIssue, as_yaml, field_issues, value_issue
from ipcnn_ray.spec.overrides import NotASection, Settings
from ipcnn_ray.spec.search import (
    Choice,
    Distribution,
    EarlyStopping,
    GridSearch,
    OneMeasure,
    Pareto,
    Search,
    SpaceSearch,
    Uniform,
    early_stopping,
    points,
    settings_of,
)
from ipcnn_ray.spec.section import Loc, Section, annotations_at, dotted, field_paths, kind_field, sections, unwrapped
from ipcnn_ray.spec.training import Eval, Train
from ipcnn_ray.spec.validation import duplicate_issues, duplicates
from ipcnn_ray.utils.text import did_you_mean

SHARED_SECTIONS = ("name", "compute", "search")
"""Sections that are the same for all runs of an experiment."""
LAST_SEED = 2**32 - 1


class Expandable(Protocol):
    """The part of an experiment that the checks of its runs need."""

    search: Search | None

    def run_spec(self, settings: Settings) -> Expandable: ...

    def digest(self) -> str: ...


def search_issues(values: Mapping[str, Any], root: type[Section]) -> list[FieldIssue]:
    """Return the issues of the search section itself.

    values: the valid sections of an experiment by name; checks that need another one are left out. root: the class of
    the experiment.
    """
    search: Search | None = values.get("search")
    if search is None:
        return []
    issues = [*_named(search, root), *objective_issues(search, values)]
    if isinstance(search, GridSearch):
        issues += _grid(search.grid, root)
    elif isinstance(search, SpaceSearch):
        issues += _space(search.space, root)
        issues += _circular_conditions(search.space)
    if (stopping := early_stopping(search)) is not None:
        issues += _early_stopping(stopping, values.get("train"), values.get("eval"))
    return list(dict.fromkeys(issues))


def _settable(root: type[Section], loc: Loc, path: str, value: Any, *, scalar: bool) -> Iterator[FieldIssue]:
    """Check that a path is a field that runs can differ in, and for `scalar` not a section."""
    if path.split(".")[0] in SHARED_SECTIONS:
        yield value_issue(loc, value, f"{path.split('.')[0]} is the same for all runs of an experiment; drop this")
        return
    annotations = annotations_at(root, path)
    if not annotations:
        known = [known for known in field_paths(root) if known.split(".")[0] not in SHARED_SECTIONS]
        yield value_issue(loc, value, f"a spec has no field {path}.{did_you_mean(path, known)}".removesuffix("."))
    elif scalar and any(map(sections, annotations)):
        yield value_issue(loc, value, f"{path} is a section; name one of its fields, or give it to one of search.runs")


def _named(search: Search, root: type[Section]) -> Iterator[FieldIssue]:
    names = [run.name for run in search.runs]
    for index, name in duplicates(names):
        yield value_issue(("search", "runs", index, "name"), name, "another run has this name")
    control = search.objective.control
    if control not in names:
        advice = f"must be one of search.runs: {', '.join(names)}.{did_you_mean(control, names)}".removesuffix(".")
        yield value_issue(("search", "objective", "control"), control, advice)
    for index, run in enumerate(search.runs):
        for path, value in run.set.items():
            loc = ("search", "runs", index, "set", path)
            yield from _settable(root, loc, path, value, scalar=False)
            for above in run.set:
                if path.startswith(f"{above}."):
                    yield value_issue(loc, value, f"is inside {above}, which this run sets too; keep one of the two")


def _grid(grid: Mapping[str, tuple[Any, ...]], root: type[Section]) -> Iterator[FieldIssue]:
    for path, values in grid.items():
        loc = ("search", "grid", path)
        yield from _settable(root, loc, path, values, scalar=True)
        yield from duplicate_issues(loc, values)


def _space(space: Mapping[str, Distribution], root: type[Section]) -> Iterator[FieldIssue]:
    for path, distribution in space.items():
        loc = ("search", "space", path)
        yield from _settable(root, loc, path, distribution.model_dump(mode="json", exclude_defaults=True), scalar=True)
        if isinstance(distribution, Choice):
            yield from duplicate_issues((*loc, "choice"), distribution.choice)
        else:
            key = "uniform" if isinstance(distribution, Uniform) else "log_uniform"
            low, high = getattr(distribution, key)
            if low >= high:
                yield value_issue((*loc, key), (low, high), "must go from its lower to its upper end: [lower, upper]")
            if any(unwrapped(annotation) is int for annotation in annotations_at(root, path)):
                advice = f"{path} is a whole number and a range draws any; list a choice"
                yield value_issue((*loc, key), (low, high), advice)
        yield from _needs_condition(space, path, root)
        for on, value in (distribution.when or {}).items():
            yield from _condition(space, path, on, value)


def _needs_condition(space: Mapping[str, Distribution], path: str, root: type[Section]) -> Iterator[FieldIssue]:
    """Check that a field which some of the sampled kinds of its section lack has a `when` for the others."""
    above, _, name = path.rpartition(".")
    owners = [owner for annotation in annotations_at(root, above) for owner in sections(annotation).values()]
    kinds = {kind: name in owner.model_fields for owner in owners if (kind := kind_field(owner))}
    for key in {key for key, _ in kinds}:
        sampled = space.get(f"{above}.{key}")
        if not isinstance(sampled, Choice) or f"{above}.{key}" in (space[path].when or {}):
            continue
        without = [value for value in sampled.choice if kinds.get((key, str(value))) is False]
        having = [value for (_, value), has in kinds.items() if has]
        if without and having:
            loc = ("search", "space", path)
            fact = f"{dotted(loc)} is drawn for {above}.{key} = {as_yaml(without[0])} too, which has no {name}"
            yield FieldIssue(loc, fact, f"add when: {{{above}.{key}: {having[0]}}}")


def _condition(space: Mapping[str, Distribution], path: str, on: str, value: Any) -> Iterator[FieldIssue]:
    loc, other = ("search", "space", path, "when", on), space.get(on)
    if other is None or on == path:
        near = did_you_mean(on, [name for name in space if name != path])
        yield value_issue(loc, value, f"must be another field of the space.{near}".removesuffix("."))
    elif not isinstance(other, Choice):
        yield value_issue(loc, value, f"{on} takes any number of a range; a condition needs the value of a choice")
    elif value not in other.choice:
        yield value_issue(loc, value, f"{on} never takes this value; it takes {', '.join(map(str, other.choice))}")


def _circular_conditions(space: Mapping[str, Distribution]) -> Iterator[FieldIssue]:
    for path in space:
        reached = {on for on in space[path].when or {} if on != path}
        while True:
            further = reached | {on for name in reached if name in space for on in space[name].when or {}}
            if further == reached:
                break
            reached = further
        if path in reached:
            loc = ("search", "space", path, "when")
            yield value_issue(loc, dict(space[path].when or {}), "depends on a field that depends on this one")


def _early_stopping(stopping: EarlyStopping, train: Train | None, evaluation: Eval | None) -> Iterator[FieldIssue]:
    if train is not None and stopping.grace_epochs >= train.epochs:
        loc = ("search", "early_stopping", "grace_epochs")
        advice = f"must be less than train.epochs = {train.epochs}, or no run is ever stopped early"
        yield value_issue(loc, stopping.grace_epochs, advice, ("train.epochs",))
    if evaluation is not None and evaluation.every > 1:
        advice = "early stopping judges a run after every epoch; take 1, or drop search.early_stopping"
        yield value_issue(("eval", "every"), evaluation.every, advice)


def objective_issues(search: Search, values: Mapping[str, Any]) -> Iterator[FieldIssue]:
    """Yield the issues of the objective, the constraints and the repeats; `values` as in `search_issues`."""
    yield from _constraints(search)
    yield from _pareto(search)
    yield from _genetic(search)
    yield from _repeats(search, values.get("seed"))
    yield from _measured(search, values.get("eval"))


def _constraints(search: Search) -> Iterator[FieldIssue]:
    seen: set[tuple[str, bool]] = set()
    for index, constraint in enumerate(search.constraints):
        loc: Loc = ("search", "constraints", index)
        bound = (constraint.measure, constraint.at_most is None)
        if (constraint.at_most is None) == (constraint.at_least is None):
            advice = "must have one of at_most and at_least; write two constraints for two bounds"
            yield value_issue(loc, constraint.model_dump(mode="json", exclude_none=True), advice)
        elif bound in seen:
            advice = "is bounded twice on the same side; keep the narrower bound"
            yield value_issue((*loc, "measure"), constraint.measure, advice)
        seen.add(bound)


def _pareto(search: Search) -> Iterator[FieldIssue]:
    if not isinstance(search.objective, Pareto):
        return
    yield from duplicate_issues(("search", "objective", "measures"), search.objective.measures)
    if (stopping := early_stopping(search)) is not None:
        advice = "early stopping ranks runs by one number, and a Pareto search has several; drop one of the two"
        given = stopping.model_dump(mode="json")
        yield value_issue(("search", "early_stopping"), given, advice, ("search.objective.kind",))


def _genetic(search: Search) -> Iterator[FieldIssue]:
    if isinstance(search, SpaceSearch) and search.algorithm == "nsga2":
        for path, distribution in search.space.items():
            if distribution.when:
                advice = "nsga2 inherits only fields that every run has, and draws this one at random; take tpe"
                yield value_issue(("search", "space", path, "when"), distribution.when, advice, ("search.algorithm",))


def _repeats(search: Search, seed: object) -> Iterator[FieldIssue]:
    if search.repeats == 1:
        return
    loc: Loc = ("search", "repeats")
    if isinstance(seed, int) and seed + search.repeats - 1 > LAST_SEED:
        advice = f"the last seed would be {seed + search.repeats - 1}; seeds end at {LAST_SEED}"
        yield value_issue(loc, search.repeats, advice, ("seed",))
    if isinstance(search, GridSearch) and search.early_stopping is not None:
        advice = "a repeat that is stopped early leaves its seed without a pair; drop search.early_stopping"
        yield value_issue(loc, search.repeats, advice, ("search.early_stopping",))
    advice = "search.repeats gives the runs their seeds; drop one of the two"
    for index, run in enumerate(search.runs):
        if "seed" in run.set:
            loc = ("search", "runs", index, "set", "seed")
            yield value_issue(loc, run.set["seed"], advice, ("search.repeats",))
    if isinstance(search, GridSearch) and "seed" in search.grid:
        yield value_issue(("search", "grid", "seed"), search.grid["seed"], advice, ("search.repeats",))
    if isinstance(search, SpaceSearch) and "seed" in search.space:
        distribution = search.space["seed"].model_dump(mode="json", exclude_defaults=True)
        yield value_issue(("search", "space", "seed"), distribution, advice, ("search.repeats",))


def _measured(search: Search, evaluation: Eval | None) -> Iterator[FieldIssue]:
    """Check that runs measure what they are ranked by and constrained in."""
    if evaluation is None:
        return
    objective, used = search.objective, dict[str, Loc]()
    if isinstance(objective, OneMeasure):
        used[objective.measure] = ("search", "objective", "measure")
    elif isinstance(objective, Pareto):
        used |= {name: ("search", "objective", "measures", i) for i, name in enumerate(objective.measures)}
    used |= {bound.measure: ("search", "constraints", i, "measure") for i, bound in enumerate(search.constraints)}
    for name, loc in used.items():
        if name not in {"instability", "val_error", *evaluation.measures}:
            advice = f"is not measured: add it to eval.measures, {as_yaml(list(evaluation.measures))}"
            yield value_issue(loc, name, advice, ("eval.measures",))


def run_expansion_issues(spec: Expandable) -> list[FieldIssue]:
    """Return the issues of the runs of a valid search section: the named ones and the combinations of `points`."""
    search, issues = spec.search, list[FieldIssue]()
    if search is None:
        return issues
    for index, named in enumerate(search.runs):
        whole: Loc = ("search", "runs", index, "set")
        issues += _run_issues(spec, named.set, {path: (*whole, path) for path in named.set}, whole)
    if not issues:
        issues += _equal_runs(spec, search)
    whole = ("search", "grid" if isinstance(search, GridSearch) else "space")
    for combination in points(search):
        locs = {path: point.loc for path, point in combination.items()}
        issues += _run_issues(spec, settings_of(combination), locs, whole)
    return list(dict.fromkeys(issues))


def _run_issues(spec: Expandable, settings: Settings, locs: Mapping[str, Loc], whole: Loc) -> list[FieldIssue]:
    """Return the issues of the run with these settings, at the locations of the settings."""
    try:
        spec.run_spec(settings)
    except NotASection as error:
        return [FieldIssue(locs[error.path], dotted(locs[error.path]), str(error))]
    except ValidationError as error:
        return [_at_setting(issue, locs, whole) for issue in field_issues(error, type(spec))]  # type: ignore[arg-type]
    return []


def _at_setting(issue: FieldIssue, locs: Mapping[str, Loc], whole: Loc) -> FieldIssue:
    """Move the issue of a run to the setting that causes it."""
    path = dotted(issue.loc)
    for setting, loc in locs.items():
        if path == setting or path.startswith(f"{setting}."):
            rest = path.removeprefix(setting).removeprefix(".")
            full = (*loc, *(rest.split(".") if rest else ()))
            return FieldIssue(full, f"{dotted(full)}{issue.what.removeprefix(path)}", issue.advice)
    loc = next(iter(locs.values())) if len(locs) == 1 else whole
    return FieldIssue(loc, f"{dotted(loc)} gives {issue.what}", issue.advice)


def _equal_runs(spec: Expandable, search: Search) -> Iterator[FieldIssue]:
    first: dict[str, str] = {}
    for index, named in enumerate(search.runs):
        digest = spec.run_spec(named.set).digest()
        if digest in first:
            fact = f"search.runs.{index}.name = {named.name!r}"
            yield FieldIssue(("search", "runs", index), fact, f"trains the same as {first[digest]}; drop one")
        first.setdefault(digest, named.name)
