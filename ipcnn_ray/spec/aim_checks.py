"""What cannot be right in what a search aims at: its objective, its constraints, and its repeats over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ipcnn_ray.spec.checks import duplicates
from ipcnn_ray.spec.fields import Loc, dotted
from ipcnn_ray.spec.findings import Finding, shown, wrong
from ipcnn_ray.spec.search import GridSearch, OneMeasure, Pareto, Search, SpaceSearch, stopping

LAST_SEED = 2**32 - 1


def _constraints(search: Search) -> Iterator[Finding]:
    seen: set[tuple[str, bool]] = set()
    for index, one in enumerate(search.constraints):
        loc: Loc = ("search", "constraints", index)
        if (one.at_most is None) == (one.at_least is None):
            advice = "must say one of at_most and at_least; write two constraints for two bounds"
            yield wrong(loc, one.model_dump(mode="json", exclude_none=True), advice)
        elif (one.measure, one.at_most is None) in seen:
            yield wrong((*loc, "measure"), one.measure, "is bounded twice on the same side; keep the narrower bound")
        seen.add((one.measure, one.at_most is None))


def _pareto(search: Search) -> Iterator[Finding]:
    objective = search.objective
    if not isinstance(objective, Pareto):
        return
    for index, name in duplicates(objective.measures):
        yield wrong(("search", "objective", "measures", index), name, "is listed twice; list it once")
    if (early := stopping(search)) is not None:
        loc = ("search", "early_stopping")
        advice = "early stopping ranks runs by one number, and a Pareto search has several; drop one of the two"
        yield wrong(loc, early.model_dump(mode="json"), advice, ("search.objective.kind",))


def _genetic(search: Search) -> Iterator[Finding]:
    if isinstance(search, SpaceSearch) and search.algorithm == "nsga2":
        for path, one in search.space.items():
            if one.when:
                advice = "nsga2 inherits only fields that every run has, and draws this one at random; take tpe"
                yield wrong(("search", "space", path, "when"), one.when, advice, ("search.algorithm",))


def _repeats(search: Search, seed: object) -> Iterator[Finding]:
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


def _taken(search: Search, evaluation: Any) -> Iterator[Finding]:
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
            yield Finding(loc, f"{dotted(loc)} = {shown(name)}", advice, ("eval.measures",))


def aim_findings(search: Search, by_name: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the objective, the constraints and the repeats; other sections are read where at hand."""
    yield from _constraints(search)
    yield from _pareto(search)
    yield from _genetic(search)
    yield from _repeats(search, by_name.get("seed"))
    yield from _taken(search, by_name.get("eval"))
