"""`ipcnn compare`: in what recorded experiments or runs differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.protocol import Tracker

if TYPE_CHECKING:
    from ipcnn_ray.report.records import Experiment


def compare(
    sides: Annotated[list[str], typer.Argument(metavar="A B...", help="Names or ids of experiments, or ids of runs.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Show how experiments or runs differ: their specs, numbers, code and data. All are compared with the first."""
    from ipcnn_ray.report.differences import Differences

    places = Places.from_environment()
    found = Differences.of(chosen_sides(MlflowTracker(places.tracking_uri, places.artifacts), sides))
    if json:
        output.print_json(found.as_json())
        return
    for title, table in found.tables():
        output.say(title, style="bold")
        output.table(table.columns, table.rows, right=table.numbers)
        output.say()
    for line in found.notes():
        output.say(line)


def chosen_sides(tracker: Tracker, names: list[str]) -> list[Experiment]:
    """What is recorded under these names, at least two. A name with several experiments stands for all of them, the
    oldest first. Raises IpcnnError where there is only one, or where one is not recorded."""
    from ipcnn_ray.cli.recorded import experiments

    found = [side for name in names for side in reversed(experiments(tracker, [name], curves=False))]
    if len({side.runs[0].handle if len(side.runs) == 1 else side.parent.handle for side in found}) < 2:
        recorded = ", ".join(tracker.experiments())
        raise IpcnnError(
            f"{' '.join(names)} is one side\nName two or more experiments or runs; recorded experiments: {recorded}."
        )
    return found
