"""`ipcnn validate`, `plan`, `schema` and `init`: the commands about spec files. They start nothing."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import WRONG_REQUEST, JsonOption, OverridesOption, SpecArgument
from ipcnn_ray.errors import IpcnnError, Issue, SpecError
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import counted

if TYPE_CHECKING:
    from ipcnn_ray.spec.data import Data
    from ipcnn_ray.spec.experiment import ExperimentSpec

PLAN_NUMBERS = ("epochs", "batch", "steps", "images")
DEFAULT_NAME = "experiment"
JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"

SpecsArgument = Annotated[list[str], typer.Argument(metavar="SPEC...", help="Specs to check.", show_default=False)]
ResolvedOption = Annotated[bool, typer.Option("--resolved", help="Print the spec with every default written out.")]
SchemaFile = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="Write it here; stdout without.", show_default=False)
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="PATH", help="Your photographs: a folder of class folders, a CSV table, COCO JSON."),
]
NewFile = Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write, or a folder that exists.")]


def validate(
    specs: SpecsArgument, set_: OverridesOption = None, resolved: ResolvedOption = False, json: JsonOption = False
) -> None:
    """Check specs and report every error of every file."""
    from ipcnn_ray.cli.plan_table import check_layers, count_runs
    from ipcnn_ray.spec.loader import load
    from ipcnn_ray.spec.runs import experiment_id, resolved_yaml

    valid: list[tuple[str, ExperimentSpec]] = []
    issues: list[Issue] = []
    for path in specs:
        try:
            loaded = load(path, set_ or ())
            check_layers(loaded)
            valid.append((path, loaded.spec))
        except SpecError as error:
            issues += error.issues
    if json:
        problems = [asdict(issue) for issue in issues]
        summaries = [
            {"spec": path, "experiment": experiment_id(spec), "runs": count_runs(spec)} for path, spec in valid
        ]
        output.print_json({"valid": not issues, "specs": summaries, "problems": problems})
        raise typer.Exit(WRONG_REQUEST if issues else 0)
    for path, spec in valid:
        if resolved:
            output.print_document(resolved_yaml(spec))
        else:
            output.print_line(f"ok     {path}  {experiment_id(spec)}  {counted(count_runs(spec), 'run')}")
    if issues:
        raise SpecError(issues)


def plan(spec: SpecArgument, set_: OverridesOption = None, json: JsonOption = False) -> None:
    """Show the runs of a spec and their cost in steps and images.

    The items of real photographs are counted from their annotations if IPCNN_DATA is set.
    """
    from ipcnn_ray.cli.plan_table import check_layers, plan_notes, plan_row
    from ipcnn_ray.spec.loader import load
    from ipcnn_ray.spec.runs import experiment_id
    from ipcnn_ray.spec.runs import plan as plan_of

    loaded = load(spec, set_ or ())
    check_layers(loaded)
    experiment, paths = loaded.spec, Paths.from_environment()

    @cache
    def count_items(data: Data) -> int | None:
        from ipcnn_ray.data.datasets.dataset import as_dataset

        return as_dataset(data).count_train_items(paths.data)

    planned = plan_of(experiment, count_items)
    if json:
        totals = {"steps": planned.steps, "images": planned.images}
        output.print_json({"experiment": experiment_id(experiment), **asdict(planned), **totals})
        return
    output.print_line(experiment_id(experiment), style="bold")
    rows = [plan_row(run) for run in planned.runs]
    if planned.largest is not None:
        rows.append([f"{planned.drawn} drawn", "each at most", *plan_row(planned.largest)[2:]])
    output.print_table(("run", "template", *PLAN_NUMBERS), rows, right=PLAN_NUMBERS)
    for name, text in plan_notes(experiment, planned, paths.data):
        output.print_line(f"{name:<16}{text}")


def schema(file: SchemaFile = None) -> None:
    """Print the JSON Schema of specs.

    An editor uses it for completion and checks in specs that begin with: # yaml-language-server: $schema=FILE
    """
    from ipcnn_ray.spec.experiment import ExperimentSpec

    content = json.dumps({"$schema": JSON_SCHEMA} | ExperimentSpec.model_json_schema(), indent=2, ensure_ascii=False)
    if file is None:
        output.print_document(content)
        return
    try:
        file.write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise _not_written(file, error) from error


def init(file: NewFile = Path(f"{DEFAULT_NAME}.yaml"), data: DataOption = None) -> None:
    """Write a commented spec with all fields and defaults: on drawn animals, or on your own photographs.

    An existing file is never overwritten.
    """
    from ipcnn_ray.spec.starter import starter

    section = None
    if data is not None:
        from ipcnn_ray.data.section_of_files import section_of_files

        section = section_of_files(data, Paths.from_environment().data)
    if file.is_dir():
        file = file / f"{DEFAULT_NAME}.yaml"
    name = re.sub(r"[^a-z0-9]+", "_", file.stem.lower()).strip("_")[:40].rstrip("_") or DEFAULT_NAME
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(starter(name, str(file), section))
    except FileExistsError as error:
        raise IpcnnError(f"{file}  is there already\nName another file: ipcnn init FILE") from error
    except OSError as error:
        raise _not_written(file, error) from error
    output.print_line(f"wrote {file}")
    verbs = ["data check"] * bool(section) + ["plan", "submit"]
    output.print_note(f"next:  {'  |  '.join(f'ipcnn {verb} {shlex.quote(str(file))}' for verb in verbs)}")


def _not_written(file: Path, error: OSError) -> IpcnnError:
    return IpcnnError(f"{file}  cannot be written: {error.strerror}\nname a file in a folder that exists")
