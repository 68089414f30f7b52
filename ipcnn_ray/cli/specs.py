"""`ipcnn validate`: is this spec right, and what does it come to?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.exit_codes import WRONG_REQUEST
from ipcnn_ray.cli.options import JsonOption, OverridesOption, SpecArgument
from ipcnn_ray.errors import IpcnnError, Issue, SpecError
from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import Loaded, load
from ipcnn_ray.spec.runs import Plan, PlannedRun, experiment_id, grid_runs, named_runs, resolved_yaml, seeds
from ipcnn_ray.spec.runs import plan as plan_of
from ipcnn_ray.spec.search import Choice, Distribution, LogUniform, SpaceSearch
from ipcnn_ray.spec.starter import starter
from ipcnn_ray.utils.paths import Paths

Specs = Annotated[list[str], typer.Argument(metavar="SPEC...", help="Specs to check.", show_default=False)]
Resolved = Annotated[bool, typer.Option("--resolved", help="Print the spec with every default written out.")]


def validate(specs: Specs, set_: OverridesOption = None, resolved: Resolved = False, json: JsonOption = False) -> None:
    """Check specs completely; every error of every file is told at once. Starts nothing."""
    sound: list[tuple[str, ExperimentSpec]] = []
    issues: list[Issue] = []
    for path in specs:
        try:
            loaded = load(path, set_ or ())
            check_layers(loaded)
            sound.append((path, loaded.spec))
        except SpecError as error:
            issues += error.issues
    if json:
        told = [{"where": one.where, "what": one.what, "advice": one.advice} for one in issues]
        good = [{"spec": path, "experiment": experiment_id(spec), "runs": _runs(spec)} for path, spec in sound]
        output.print_json({"valid": not issues, "specs": good, "problems": told})
        raise typer.Exit(WRONG_REQUEST if issues else 0)
    for path, spec in sound:
        if resolved:
            output.print_document(resolved_yaml(spec))
        else:
            output.print_line(f"ok     {path}  {experiment_id(spec)}  {_words(spec)}")
    if issues:
        raise SpecError(issues)


def check_layers(loaded: Loaded) -> None:
    """Raises SpecError where an experiment names layers that a torchvision network does not have.

    torch is imported only where there is such a network.
    """
    spec = loaded.spec
    models = [spec.model, *(run.spec.model for run in (*named_runs(spec), *grid_runs(spec)))]
    drawn = isinstance(spec.search, SpaceSearch) and any(path.startswith("model.") for path in spec.search.space)
    if drawn or any(model.backbone for model in models):
        from ipcnn_ray.models.model_checks import check_backbones

        check_backbones(loaded)


def _runs(spec: ExperimentSpec) -> int:
    drawn = spec.search.trials if isinstance(spec.search, SpaceSearch) else 0
    return len(named_runs(spec)) + len(grid_runs(spec)) + drawn


def _words(spec: ExperimentSpec) -> str:
    runs = _runs(spec)
    return "1 run" if runs == 1 else f"{runs} runs"


NUMBERS = ("epochs", "batch", "steps", "images")
COLUMNS = ("run", "template", *NUMBERS)


def plan(spec: SpecArgument, set_: OverridesOption = None, json: JsonOption = False) -> None:
    """Show the runs of a spec and their cost in steps and images. Starts nothing.

    The items of real photographs are counted from their annotations where IPCNN_DATA names them.
    """
    loaded = load(spec, set_ or ())
    check_layers(loaded)
    experiment = loaded.spec
    found = plan_of(experiment, _counter(Paths.from_environment()))
    if json:
        totals = {"steps": found.steps, "images": found.images}
        output.print_json({"experiment": experiment_id(experiment), **asdict(found), **totals})
        return
    output.print_line(experiment_id(experiment), style="bold")
    rows = [_row(run) for run in found.runs]
    if found.largest is not None:
        rows.append([f"{found.drawn} drawn", "each at most", *_row(found.largest)[2:]])
    output.print_table(COLUMNS, rows, right=NUMBERS)
    for name, words in _below(experiment, found):
        output.print_line(f"{name:<16}{words}")


def _counter(paths: Paths) -> Callable[[Data], int | None]:
    @cache
    def count(data: Data) -> int | None:
        from ipcnn_ray.data.prepare import training_items

        return training_items(data, paths)

    return count


def _row(run: PlannedRun) -> list[str]:
    known = "after preparation" if run.steps is None else output.format_count(run.steps)
    images = "" if run.images is None else output.format_count(run.images)
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
        total = f"{output.format_count(found.steps)} steps, {output.format_count(found.images)} images"
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


To = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Write it here; stdout without.", show_default=False)]


def schema(file: To = None) -> None:
    """Print the JSON Schema of a spec.

    With it, an editor completes and checks a spec that begins with: # yaml-language-server: $schema=FILE
    """
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    content = json.dumps(dialect | ExperimentSpec.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
    if file is None:
        output.print_document(content)
        return
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise IpcnnError(f"{file}  cannot be written: {error.strerror}\nname a file in a folder that exists") from error


At = Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write, or a folder that exists.")]
NAME = "experiment"


def init(file: At = Path(f"{NAME}.yaml")) -> None:
    """Write a commented spec: every field, what it means, and its default. Never over a file that is there."""
    if file.is_dir():
        file = file / f"{NAME}.yaml"
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(starter(_name(file.stem), str(file)))
    except FileExistsError as error:
        raise IpcnnError(f"{file}  is there already\nName another file: ipcnn init FILE") from error
    except OSError as error:
        raise IpcnnError(f"{file}  cannot be written: {error.strerror}\nname a file in a folder that exists") from error
    output.print_line(f"wrote {file}")
    output.print_note(f"next:  ipcnn plan {file}  |  ipcnn submit {file}")


def _name(stem: str) -> str:
    """The file's name as the name of an experiment."""
    return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:40].rstrip("_") or NAME
