"""What cannot be right in a search: its paths, its values, its runs, and every run that it could come to.

What cannot be right in its objective, constraints and repeats: spec/aim_checks.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.messages import FieldIssue, field_issues, shown, wrong
from ipcnn_ray.spec.overrides import NotASection
from ipcnn_ray.spec.runs import Point, digest, points, run_for
from ipcnn_ray.spec.search import (
    Choice,
    Distribution,
    EarlyStopping,
    GridSearch,
    LogUniform,
    NamedSearch,
    OneMeasure,
    Pareto,
    Search,
    SpaceSearch,
    Uniform,
    stopping,
)
from ipcnn_ray.spec.section import Loc, at, bare, dotted, kind_field, sections, walk
from ipcnn_ray.spec.training import Eval, Train
from ipcnn_ray.spec.validation import duplicates
from ipcnn_ray.utils.text import did_you_mean

NOT_SET = ("name", "compute", "search")
"""Sections that are the same for all runs of an experiment."""


def _path(loc: Loc, path: str, value: Any, *, single: bool) -> Iterator[FieldIssue]:
    """A path that a search may set: it exists, it is a run's own, and for `single` it holds one value."""
    if path.split(".")[0] in NOT_SET:
        yield wrong(loc, value, f"{path.split('.')[0]} is the same for all runs of an experiment; drop this")
        return
    found = at(ExperimentSpec, path)
    if not found:
        known = [known for known in walk(ExperimentSpec) if known.split(".")[0] not in NOT_SET]
        yield wrong(loc, value, f"a spec has no field {path}.{did_you_mean(path, known)}".removesuffix("."))
    elif single and any(sections(annotation) for annotation in found):
        yield wrong(loc, value, f"{path} is a section; name one of its fields, or give it to one of search.runs")


def _named(search: Search) -> Iterator[FieldIssue]:
    names = [run.name for run in search.runs]
    for index, name in duplicates(names):
        yield wrong(("search", "runs", index, "name"), name, "another run has this name")
    control = search.objective.control
    if control not in names:
        advice = f"must be one of search.runs: {', '.join(names)}.{did_you_mean(control, names)}".removesuffix(".")
        yield wrong(("search", "objective", "control"), control, advice)
    for index, run in enumerate(search.runs):
        for path, value in run.set.items():
            loc = ("search", "runs", index, "set", path)
            yield from _path(loc, path, value, single=False)
            for above in run.set:
                if path.startswith(f"{above}."):
                    yield wrong(loc, value, f"is inside {above}, which this run sets too; say it in one of the two")


def _grid(grid: Mapping[str, tuple[Any, ...]]) -> Iterator[FieldIssue]:
    for path, values in grid.items():
        loc = ("search", "grid", path)
        yield from _path(loc, path, values, single=True)
        for index, value in duplicates(values):
            yield wrong((*loc, index), value, "is listed twice; list it once")


def _space(space: Mapping[str, Distribution]) -> Iterator[FieldIssue]:
    for path, one in space.items():
        loc = ("search", "space", path)
        yield from _path(loc, path, one.model_dump(mode="json", exclude_defaults=True), single=True)
        if isinstance(one, Choice):
            for index, value in duplicates(one.choice):
                yield wrong((*loc, "choice", index), value, "is listed twice; list it once")
        else:
            key, low, high = _range(one)
            if low >= high:
                yield wrong((*loc, key), (low, high), "must go from its lower to its upper end: [lower, upper]")
            if any(bare(annotation) is int for annotation in at(ExperimentSpec, path)):
                yield wrong((*loc, key), (low, high), f"{path} is a whole number and a range draws any; list a choice")
        yield from _needs_when(space, path)
        for on, value in (one.when or {}).items():
            yield from _when(space, path, on, value)


def _range(one: Uniform | LogUniform) -> tuple[str, float, float]:
    return ("uniform", *one.uniform) if isinstance(one, Uniform) else ("log_uniform", *one.log_uniform)


def _needs_when(space: Mapping[str, Distribution], path: str) -> Iterator[FieldIssue]:
    """A field that some of the drawn kinds of its section do not have is drawn for the others only."""
    above, _, name = path.rpartition(".")
    owners = [owner for annotation in at(ExperimentSpec, above) for owner in sections(annotation).values()]
    for key in {kind[0] for kind in map(kind_field, owners) if kind}:
        kinds = {kind[1]: name in owner.model_fields for owner in owners if (kind := kind_field(owner))}
        drawn = space.get(f"{above}.{key}")
        if not isinstance(drawn, Choice) or f"{above}.{key}" in (space[path].when or {}):
            continue
        without = [value for value in drawn.choice if kinds.get(str(value)) is False]
        having = [value for value, has in kinds.items() if has]
        if without and having:
            loc = ("search", "space", path)
            fact = f"{dotted(loc)} is drawn for {above}.{key} = {shown(without[0])} too, which has no {name}"
            yield FieldIssue(loc, fact, f"add when: {{{above}.{key}: {having[0]}}}")


def _when(space: Mapping[str, Distribution], path: str, on: str, value: Any) -> Iterator[FieldIssue]:
    loc, other = ("search", "space", path, "when", on), space.get(on)
    if other is None or on == path:
        near = did_you_mean(on, [name for name in space if name != path])
        yield wrong(loc, value, f"must be another field of the space.{near}".removesuffix("."))
    elif not isinstance(other, Choice):
        yield wrong(loc, value, f"{on} takes any number of a range; only the values of a choice can be waited for")
    elif value not in other.choice:
        words = ", ".join(str(choice) for choice in other.choice)
        yield wrong(loc, value, f"{on} never takes this value; it takes {words}")


def _waits_for_itself(space: Mapping[str, Distribution]) -> Iterator[FieldIssue]:
    for path in space:
        reached = {on for on in space[path].when or {} if on != path}
        while True:
            further = reached | {on for name in reached if name in space for on in space[name].when or {}}
            if further == reached:
                break
            reached = further
        if path in reached:
            value = dict(space[path].when or {})
            yield wrong(("search", "space", path, "when"), value, "waits for a field that waits for this one")


def _stopping(early: EarlyStopping, train: Train | None, evaluation: Eval | None) -> Iterator[FieldIssue]:
    loc = ("search", "early_stopping", "grace_epochs")
    if train is not None and early.grace_epochs >= train.epochs:
        advice = f"must be less than train.epochs = {train.epochs}, or no run is ever stopped early"
        yield wrong(loc, early.grace_epochs, advice, ("train.epochs",))
    if evaluation is not None and evaluation.every > 1:
        advice = "early stopping judges a run after every epoch; take 1, or drop search.early_stopping"
        yield wrong(("eval", "every"), evaluation.every, advice)


def search_issues(by_name: Mapping[str, Any]) -> list[FieldIssue]:
    """What is wrong in the search section itself; other sections are read where they are at hand."""
    search = by_name.get("search")
    found: list[FieldIssue] = []
    if not isinstance(search, NamedSearch | GridSearch | SpaceSearch):
        return found
    found += _named(search)
    found += objective_issues(search, by_name)
    if isinstance(search, GridSearch):
        found += _grid(search.grid)
    elif isinstance(search, SpaceSearch):
        found += _space(search.space)
        found += _waits_for_itself(search.space)
    if (early := stopping(search)) is not None:
        found += _stopping(early, by_name.get("train"), by_name.get("eval"))
    return list(dict.fromkeys(found))


def _moved(finding: FieldIssue, where: Mapping[str, Loc], whole: Loc) -> FieldIssue:
    """A finding of a run, told at the setting that brought it about."""
    path = dotted(finding.loc)
    for setting, loc in where.items():
        if path == setting:
            fact = finding.what.removeprefix(path)
            return FieldIssue(loc, f"{dotted(loc)}{fact}", finding.advice)
        if path.startswith(f"{setting}."):
            rest = tuple(path.removeprefix(f"{setting}.").split("."))
            fact = finding.what.removeprefix(path)
            return FieldIssue((*loc, *rest), f"{dotted((*loc, *rest))}{fact}", finding.advice)
    loc = next(iter(where.values())) if len(where) == 1 else whole
    return FieldIssue(loc, f"{dotted(loc)} gives {finding.what}", finding.advice)


def _run(spec: ExperimentSpec, settings: Mapping[str, Any], where: Mapping[str, Loc], whole: Loc) -> list[FieldIssue]:
    try:
        run_for(spec, settings)
    except NotASection as error:
        return [FieldIssue(where[error.path], dotted(where[error.path]), str(error))]
    except ValidationError as error:
        return [_moved(finding, where, whole) for finding in field_issues(error, ExperimentSpec)]
    return []


def corner_issues(spec: ExperimentSpec) -> list[FieldIssue]:
    """What is wrong with the runs of a search whose section is sound: every named run, every combination of a grid,
    every combination of choices and ends of a space."""
    search = spec.search
    if search is None:
        return []
    found: list[FieldIssue] = []
    for index, named in enumerate(search.runs):
        whole: Loc = ("search", "runs", index, "set")
        found += _run(spec, named.set, {path: (*whole, path) for path in named.set}, whole)
    if not found:
        found += _same(spec, search)
    combinations: list[dict[str, Point]] = points(search)
    for chosen in combinations:
        settings = {path: point.value for path, point in chosen.items()}
        where = {path: point.loc for path, point in chosen.items()}
        found += _run(spec, settings, where, ("search", "grid" if isinstance(search, GridSearch) else "space"))
    return list(dict.fromkeys(found))


def _same(spec: ExperimentSpec, search: Search) -> Iterator[FieldIssue]:
    first: dict[str, str] = {}
    for index, named in enumerate(search.runs):
        key = digest(run_for(spec, named.set).spec)
        if key in first:
            loc = ("search", "runs", index)
            yield FieldIssue(loc, f"{dotted(loc)}.name = {named.name!r}", f"trains the same as {first[key]}; drop one")
        first.setdefault(key, named.name)


LAST_SEED = 2**32 - 1


def _constraints(search: Search) -> Iterator[FieldIssue]:
    seen: set[tuple[str, bool]] = set()
    for index, one in enumerate(search.constraints):
        loc: Loc = ("search", "constraints", index)
        if (one.at_most is None) == (one.at_least is None):
            advice = "must say one of at_most and at_least; write two constraints for two bounds"
            yield wrong(loc, one.model_dump(mode="json", exclude_none=True), advice)
        elif (one.measure, one.at_most is None) in seen:
            yield wrong((*loc, "measure"), one.measure, "is bounded twice on the same side; keep the narrower bound")
        seen.add((one.measure, one.at_most is None))


def _pareto(search: Search) -> Iterator[FieldIssue]:
    objective = search.objective
    if not isinstance(objective, Pareto):
        return
    for index, name in duplicates(objective.measures):
        yield wrong(("search", "objective", "measures", index), name, "is listed twice; list it once")
    if (early := stopping(search)) is not None:
        loc = ("search", "early_stopping")
        advice = "early stopping ranks runs by one number, and a Pareto search has several; drop one of the two"
        yield wrong(loc, early.model_dump(mode="json"), advice, ("search.objective.kind",))


def _genetic(search: Search) -> Iterator[FieldIssue]:
    if isinstance(search, SpaceSearch) and search.algorithm == "nsga2":
        for path, one in search.space.items():
            if one.when:
                advice = "nsga2 inherits only fields that every run has, and draws this one at random; take tpe"
                yield wrong(("search", "space", path, "when"), one.when, advice, ("search.algorithm",))


def _repeats(search: Search, seed: object) -> Iterator[FieldIssue]:
    if search.repeats == 1:
        return
    loc: Loc = ("search", "repeats")
    if isinstance(seed, int) and seed + search.repeats - 1 > LAST_SEED:
        advice = f"the last seed would be {seed + search.repeats - 1}; seeds end at {LAST_SEED}"
        yield wrong(loc, search.repeats, advice, ("seed",))
    if isinstance(search, GridSearch) and search.early_stopping is not None:
        advice = "a repeat that is stopped early leaves its seed without a pair; drop search.early_stopping"
        yield wrong(loc, search.repeats, advice, ("search.early_stopping",))
    set_by_hand: list[tuple[Loc, Any]] = [
        (("search", "runs", index, "set", "seed"), run.set["seed"])
        for index, run in enumerate(search.runs)
        if "seed" in run.set
    ]
    if isinstance(search, GridSearch) and "seed" in search.grid:
        set_by_hand.append((("search", "grid", "seed"), search.grid["seed"]))
    if isinstance(search, SpaceSearch) and "seed" in search.space:
        chosen = search.space["seed"].model_dump(mode="json", exclude_defaults=True)
        set_by_hand.append((("search", "space", "seed"), chosen))
    for where, value in set_by_hand:
        yield wrong(where, value, "search.repeats gives the runs their seeds; drop one of the two", ("search.repeats",))


def _taken(search: Search, evaluation: Any) -> Iterator[FieldIssue]:
    """A measure that runs are ranked by, or bounded in, is one that they take."""
    taken = getattr(evaluation, "measures", None)
    if taken is None:
        return  # the eval section is broken, and told by itself
    objective, used = search.objective, dict[str, Loc]()
    if isinstance(objective, OneMeasure):
        used[objective.measure] = ("search", "objective", "measure")
    elif isinstance(objective, Pareto):
        used |= {name: ("search", "objective", "measures", i) for i, name in enumerate(objective.measures)}
    used |= {one.measure: ("search", "constraints", i, "measure") for i, one in enumerate(search.constraints)}
    for name, loc in used.items():
        if name not in {"instability", "val_error", *taken}:
            advice = f"is not measured: add it to eval.measures, {shown(list(taken))}"
            yield FieldIssue(loc, f"{dotted(loc)} = {shown(name)}", advice, ("eval.measures",))


def objective_issues(search: Search, by_name: Mapping[str, Any]) -> Iterator[FieldIssue]:
    """What is wrong with the objective, the constraints and the repeats; other sections are read where at hand."""
    yield from _constraints(search)
    yield from _pareto(search)
    yield from _genetic(search)
    yield from _repeats(search, by_name.get("seed"))
    yield from _taken(search, by_name.get("eval"))
