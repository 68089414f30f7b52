"""`ipcnn report` and `ipcnn compare`: recorded experiments as a report, and against each other."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import JsonOption, complete_experiment
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.tracker import Tracker
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import counted, parse_number

if TYPE_CHECKING:
    from ipcnn_ray.report.chapters import Importances
    from ipcnn_ray.report.experiment_record import Experiment
    from ipcnn_ray.report.gallery import RunGallery
    from ipcnn_ray.report.page import Page

FOLDER = "report"
"""Artifact folder of a stored report, in the run of its experiment."""

ExperimentsArgument = Annotated[
    list[str],
    typer.Argument(metavar="EXPERIMENT...", help="Names or ids of experiments.", autocompletion=complete_experiment),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="The page; beside it come Markdown, CSV, PNG. Default: <first experiment>.html."),
]
GalleryOption = Annotated[
    int,
    typer.Option(
        "--gallery",
        min=0,
        max=50,
        metavar="N",
        help="Runs of each experiment whose filters are shown with their strongest images; 0: none.",
    ),
]
StoreOption = Annotated[bool, typer.Option("--store/--no-store", help="Keep it with the experiment's run too.")]
SidesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="A B...", help="Names or ids of experiments, or ids of runs.", autocompletion=complete_experiment
    ),
]


def report(
    experiment: ExperimentsArgument,
    out: OutOption = None,
    gallery: GalleryOption = 4,
    store: StoreOption = True,
    json: JsonOption = False,
) -> None:
    """Write tables, figures and filters of experiments as one page.

    The page is an HTML file without external links, with Markdown, CSV and PNG files beside it. Nothing is trained; for
    the filters' images, the networks look at them once more.
    """
    paths = Paths.from_environment()
    tracker = open_tracker(paths)
    output.print_note(f"reading the record of {', '.join(experiment)}")
    experiments = find_experiments(tracker, experiment)
    from ipcnn_ray.cli.filter_gallery import galleries

    runs = sum(len(each.runs) for each in experiments)
    output.print_note(f"{counted(runs, 'run')} of {', '.join(each.name for each in experiments)}")
    shown = [galleries(tracker, paths, each, gallery) for each in experiments]
    for line in [f"{run.label}: no pictures: {run.note}" for of_each in shown for run in of_each if run.note]:
        output.print_note(line)
    page = build_page(experiments, shown)
    path = out or Path(f"{experiments[0].name}.html")
    figures = sum(len(chapter.figures) for chapter in page.chapters)
    output.print_note(f"drawing {counted(figures, 'figure')}")
    files = _write_page(page, path)
    if store:
        output.print_note("storing it with the experiment's run")
        _store_page(page, experiments, tracker)
    if json:
        output.print_json(_as_json(experiments, files, store))
        return
    for line in page.warnings:
        output.print_line(line, style="yellow")
    output.print_line(str(path))
    markdown, folder = path.with_suffix(".md"), files[-1].parent
    output.print_note(
        f"{path.stat().st_size / 1e6:.1f} MB; also {markdown}, and tables (CSV) and figures (PNG) in {folder}"
    )
    if store:
        output.print_note(f"stored with the experiment's run as {FOLDER}/report.html: ipcnn ui")


def find_experiments(tracker: Tracker, names: list[str]) -> list[Experiment]:
    """Complete experiments by name or id. Raises IpcnnError for an unknown name and for the id of a single run."""
    from ipcnn_ray.report.experiment_record import read_experiments

    experiments = read_experiments(tracker, names, progress=output.CountedProgress("  read", "runs"))
    for experiment in experiments:
        for name in names:
            if any(run.run_id == name != experiment.name for run in experiment.runs):
                raise IpcnnError(f"{name} is one run\nReport its experiment: ipcnn report {experiment.name}")
    return experiments


def build_page(experiments: list[Experiment], galleries: Sequence[Sequence[RunGallery]] = ()) -> Page:
    """The report on recorded experiments, with any filters of each."""
    from ipcnn_ray.report.page import Page

    return Page.of(experiments, [_importances(experiment) for experiment in experiments], galleries)


def _importances(experiment: Experiment) -> Importances:
    """Goal -> importance of each searched field."""
    if not experiment.searched:
        return {}
    from ipcnn_ray.on_ray.param_importance import importances
    from ipcnn_ray.report.chapters import search_goals
    from ipcnn_ray.report.search_figures import Trial, trials_of

    logarithmic = [path for path in experiment.searched if experiment.logarithmic(path)]

    def values(trial: Trial) -> dict[str, float | str]:
        numbers = {path: parse_number(text) for path, text in trial.values.items()}
        return {path: trial.values[path] if number is None else number for path, number in numbers.items()}

    return {
        goal: importances(
            [
                (values(trial), trial.value)
                for trial in trials_of(experiment, goal)
                if trial.ended and trial.value is not None
            ],
            logarithmic,
        )
        for goal in search_goals(experiment)
    }


def _write_page(page: Page, path: Path) -> list[Path]:
    """Paths of the written files. Raises IpcnnError if they cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return page.write(path)
    except OSError as error:
        raise IpcnnError(f"{path}: {error.strerror or error}\nName another place with --out.") from error


def _store_page(page: Page, experiments: list[Experiment], tracker: Tracker) -> None:
    """Store the page with the run of each of its experiments; replaces an older report."""
    with tempfile.TemporaryDirectory() as folder:
        files = page.write(Path(folder) / "report.html")
        for experiment in experiments:
            run = tracker.attach(experiment.parent.handle)
            for file in files:
                inner = file.parent.relative_to(folder).as_posix()
                run.log_file(file, FOLDER if inner == "." else f"{FOLDER}/{inner}")


def _as_json(experiments: list[Experiment], files: list[Path], stored: bool) -> dict[str, Any]:
    from ipcnn_ray.report.chapters import compute_hours, early_stopping_savings, wall_seconds, warnings
    from ipcnn_ray.report.experiment_record import KINDS
    from ipcnn_ray.report.ranking_table import as_json
    from ipcnn_ray.report.verdict import Verdicts

    return {
        "files": [str(path) for path in files],
        "stored": stored,
        "experiments": [
            {
                "experiment": experiment.name,
                "handle": experiment.parent.handle,
                "state": experiment.parent.state,
                "warnings": warnings(experiment),
                "runs": len(experiment.runs),
                "hours": {
                    kind: sum(
                        used.hours for run in experiment.runs if (used := compute_hours(run)) and used.kind == kind
                    )
                    for kind in sorted(KINDS)
                },
                "wall_seconds": wall_seconds(experiment.runs),
                "epochs_saved_by_early_stopping": early_stopping_savings(experiment.runs).epochs_saved,
                **as_json(experiment.ranking),
                **Verdicts.of(experiment.ranking).as_json(),
            }
            for experiment in experiments
        ],
    }


def compare(sides: SidesArgument, json: JsonOption = False) -> None:
    """Show how experiments or runs differ.

    Shows differences in specs, results, code and data. All sides are compared with the first.
    """
    from ipcnn_ray.report.comparison import Differences

    differences = Differences.of(find_sides(open_tracker(Paths.from_environment()), sides))
    if json:
        output.print_json(differences.as_json())
        return
    for title, table in differences.tables():
        output.print_line(title, style="bold")
        output.print_table(table.columns, table.rows, right=table.numbers)
        output.print_line()
    for line in differences.notes():
        output.print_line(line)


def find_sides(tracker: Tracker, names: list[str]) -> list[Experiment]:
    """At least two recorded experiments or runs. A name with several experiments stands for all, oldest first.

    Raises IpcnnError if there is only one, or if a name is not recorded.
    """
    from ipcnn_ray.report.experiment_record import read_experiments

    sides = [side for name in names for side in reversed(read_experiments(tracker, [name], curves=False))]
    if len({side.runs[0].handle if len(side.runs) == 1 else side.parent.handle for side in sides}) < 2:
        recorded = ", ".join(tracker.experiments())
        raise IpcnnError(
            f"{' '.join(names)} is one side\nName two or more experiments or runs; recorded experiments: {recorded}."
        )
    return sides
