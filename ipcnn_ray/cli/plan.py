"""`ipcnn plan`: which runs a spec comes to, and what each will cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.validate import Json, Overrides, check_layers
from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.expand import experiment_id, seeds
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.load import load
from ipcnn_ray.spec.places import Places
from ipcnn_ray.spec.plan import Plan, PlannedRun
from ipcnn_ray.spec.plan import plan as plan_of
from ipcnn_ray.spec.search import Choice, Distribution, LogUniform, SpaceSearch

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="The experiment.", show_default=False)]
NUMBERS = ("epochs", "batch", "steps", "images")
COLUMNS = ("run", "template", *NUMBERS)


def plan(spec: Spec, set_: Overrides = None, json: Json = False) -> None:
    """Show the runs of a spec and their cost in steps and images. Starts nothing.

    The items of real photographs are counted from their annotations where IPCNN_DATA names them.
    """
    loaded = load(spec, set_ or ())
    check_layers(loaded)
    experiment = loaded.spec
    found = plan_of(experiment, _counter(Places.from_environment()))
    if json:
        totals = {"steps": found.steps, "images": found.images}
        output.print_json({"experiment": experiment_id(experiment), **asdict(found), **totals})
        return
    output.say(experiment_id(experiment), style="bold")
    rows = [_row(run) for run in found.runs]
    if found.largest is not None:
        rows.append([f"{found.drawn} drawn", "each at most", *_row(found.largest)[2:]])
    output.table(COLUMNS, rows, right=NUMBERS)
    for name, words in _below(experiment, found):
        output.say(f"{name:<16}{words}")


def _counter(places: Places) -> Callable[[Data], int | None]:
    @cache
    def count(data: Data) -> int | None:
        from ipcnn_ray.data.prepare import training_items

        return training_items(data, places)

    return count


def _row(run: PlannedRun) -> list[str]:
    known = "after preparation" if run.steps is None else output.count(run.steps)
    images = "" if run.images is None else output.count(run.images)
    return [run.label, run.template, str(run.epochs), str(run.batch_size), known, images]


def _below(experiment: ExperimentSpec, found: Plan) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if isinstance(experiment.search, SpaceSearch):
        for index, (path, one) in enumerate(experiment.search.space.items()):
            lines.append(("" if index else "drawn from", f"{path}: {_range(one)}"))
    if any(run.template.startswith("tailored ") for run in found.runs):
        lines.append(("tailored", "fitted to the training split when a run starts; the record says to what"))
    if experiment.search is not None and experiment.search.repeats > 1:
        listed = "every named run" if isinstance(experiment.search, SpaceSearch) else "every run"
        lines.append(("seeds", f"{seeds(experiment)[0]} to {seeds(experiment)[-1]}, {listed} with each of them"))
    workers = f"{found.workers} worker" + ("s" if found.workers > 1 else "")
    runs = len(found.runs) + found.drawn
    total = "steps after preparation (set IPCNN_DATA)"
    if found.steps is not None and found.images is not None:
        total = f"{output.count(found.steps)} steps, {output.count(found.images)} images"
    lines.append(("in all", f"{runs} run{'s' if runs > 1 else ''} of {workers}, {total}"))
    if found.grace_epochs is not None:
        lines.append(("early stopping", f"may end a run after epoch {found.grace_epochs}"))
    return lines


def _range(one: Distribution) -> str:
    if isinstance(one, Choice):
        words = ", ".join(str(value) for value in one.choice)
    elif isinstance(one, LogUniform):
        words = f"{one.log_uniform[0]:g} to {one.log_uniform[1]:g}, logarithmic"
    else:
        words = f"{one.uniform[0]:g} to {one.uniform[1]:g}"
    when = " and ".join(f"{path} is {value}" for path, value in (one.when or {}).items())
    return f"{words}, when {when}" if when else words
