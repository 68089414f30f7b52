"""`ipcnn report`: everything that is recorded of experiments, on one page."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.tracker import Tracker
from ipcnn_ray.utils.paths import Paths

if TYPE_CHECKING:
    from ipcnn_ray.report.chapters import Importances
    from ipcnn_ray.report.experiment_record import Experiment
    from ipcnn_ray.report.page import Page


from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipcnn_ray.report.experiment_record import Experiment

FOLDER = "report"
"""Of the artifacts of an experiment's run."""


def report(
    experiment: Annotated[list[str], typer.Argument(metavar="EXPERIMENT...", help="Names or ids of experiments.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page; beside it come Markdown, CSV, PNG. Default: <first experiment>.html."),
    ] = None,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Keep it with the experiment's run too.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the rankings and the files written as JSON.")] = False,
) -> None:
    """Write tables and figures of recorded experiments as one page; trains nothing."""
    paths = Paths.from_environment()
    tracker = open_tracker(paths)
    output.print_note(f"reading the record of {', '.join(experiment)}")
    found = wanted(tracker, experiment)
    runs = sum(len(one.runs) for one in found)
    output.print_note(f"{runs} run{'' if runs == 1 else 's'} of {', '.join(one.name for one in found)}")
    page = make(found)
    path = out or Path(f"{found[0].name}.html")
    figures = sum(len(part.figures) for part in page.chapters)
    output.print_note(f"drawing {figures} figure{'' if figures == 1 else 's'}")
    written = write(page, path)
    if store:
        output.print_note("storing it with the experiment's run")
        keep(page, found, tracker)
    if json:
        output.print_json(_json(found, written, store))
        return
    for line in page.warnings:
        output.print_line(line, style="yellow")
    output.print_line(str(path))
    markdown, folder = path.with_suffix(".md"), written[-1].parent
    output.print_note(f"also {markdown}, and tables (CSV) and figures (PNG) in {folder}")
    if store:
        output.print_note(f"stored with the experiment's run as {FOLDER}/report.html: ipcnn ui")


def wanted(tracker: Tracker, names: list[str]) -> list[Experiment]:
    """Whole experiments. Raises IpcnnError for one that is not recorded, and for a single run of one."""
    from ipcnn_ray.cli.recorded_runs import experiments

    found = experiments(tracker, names, progress=output.CountedProgress("  read", "runs"))
    for one in found:
        for name in names:
            if any(run.run_id == name != one.name for run in one.runs):
                raise IpcnnError(f"{name} is one run\nReport its experiment: ipcnn report {one.name}")
    return found


def make(found: list[Experiment]) -> Page:
    """The page of recorded experiments."""
    from ipcnn_ray.report.page import Page

    return Page.of(found, [_importances(one) for one in found])


def _importances(experiment: Experiment) -> Importances:
    """Goal -> importance of each searched field."""
    from ipcnn_ray.report.chapters import search_goals
    from ipcnn_ray.report.search_figures import trials_of

    if not experiment.searched:
        return {}
    from ipcnn_ray.on_ray.param_importance import importances

    logarithmic = [path for path in experiment.searched if experiment.logarithmic(path)]
    found = {}
    for goal in search_goals(experiment):
        ended = [trial for trial in trials_of(experiment, goal) if trial.ended and trial.value is not None]
        settings = [({path: _value(text) for path, text in trial.values.items()}, trial.value) for trial in ended]
        found[goal] = importances(
            [(values, float(value)) for values, value in settings if value is not None], logarithmic
        )
    return found


def _value(text: str) -> Any:
    """A recorded parameter as a number, where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def write(page: Page, path: Path) -> list[Path]:
    """The page's files. Raises IpcnnError where they cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return page.write(path)
    except OSError as error:
        raise IpcnnError(f"{path}: {error.strerror or error}\nName another place with --out.") from error


def keep(page: Page, found: list[Experiment], tracker: Tracker) -> None:
    """Store the page with the run of each of its experiments, in place of an older one."""
    with tempfile.TemporaryDirectory() as folder:
        files = page.write(Path(folder) / "report.html")
        for one in found:
            run = tracker.attach(one.parent.handle)
            for file in files:
                inner = file.parent.relative_to(folder).as_posix()
                run.log_file(file, FOLDER if inner == "." else f"{FOLDER}/{inner}")


def _json(found: list[Experiment], written: list[Path], store: bool) -> dict[str, Any]:
    from ipcnn_ray.report.chapters import compute_hours, early_stopping_savings, wall_seconds, warnings
    from ipcnn_ray.report.ranking import as_json

    return {
        "files": [str(path) for path in written],
        "stored": store,
        "experiments": [
            {
                "experiment": one.name,
                "handle": one.parent.handle,
                "state": one.parent.state,
                "warnings": warnings(one),
                "runs": len(one.runs),
                "hours": {
                    kind: sum(used.hours for run in one.runs if (used := compute_hours(run)) and used.kind == kind)
                    for kind in ("cpu_hours", "gpu_hours")
                },
                "wall_seconds": wall_seconds(one.runs),
                "epochs_saved_by_early_stopping": early_stopping_savings(one.runs).epochs_saved,
                **as_json(one.ranking),
            }
            for one in found
        ],
    }


def compare(
    sides: Annotated[list[str], typer.Argument(metavar="A B...", help="Names or ids of experiments, or ids of runs.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Show how experiments or runs differ: their specs, numbers, code and data. All are compared with the first."""
    from ipcnn_ray.report.comparison import Differences

    paths = Paths.from_environment()
    found = Differences.of(chosen_sides(open_tracker(paths), sides))
    if json:
        output.print_json(found.as_json())
        return
    for title, table in found.tables():
        output.print_line(title, style="bold")
        output.print_table(table.columns, table.rows, right=table.numbers)
        output.print_line()
    for line in found.notes():
        output.print_line(line)


def chosen_sides(tracker: Tracker, names: list[str]) -> list[Experiment]:
    """What is recorded under these names, at least two. A name with several experiments stands for all of them, the
    oldest first. Raises IpcnnError where there is only one, or where one is not recorded."""
    from ipcnn_ray.cli.recorded_runs import experiments

    found = [side for name in names for side in reversed(experiments(tracker, [name], curves=False))]
    if len({side.runs[0].handle if len(side.runs) == 1 else side.parent.handle for side in found}) < 2:
        recorded = ", ".join(tracker.experiments())
        raise IpcnnError(
            f"{' '.join(names)} is one side\nName two or more experiments or runs; recorded experiments: {recorded}."
        )
    return found
