"""`ipcnn delete` and `ipcnn gc`: delete an experiment or a run, and what no recorded experiment needs."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.jobs import cluster_client
from ipcnn_ray.cli.options import AddressOption, experiment_argument
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking import open_mlflow, open_tracker
from ipcnn_ray.tracking.tracking_uri import is_server, without_password
from ipcnn_ray.utils.paths import Paths

COLUMNS = ("what", "size", "place", "reason")

Named = Annotated[str, experiment_argument("EXPERIMENT|RUN", "Name or id of an experiment, or id of a run.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, and delete nothing.")]


def delete(name: Named, yes: YesOption = False, address: AddressOption = None) -> None:
    """Delete an experiment or one of its runs.

    Checkpoints, results and log are deleted for good. The record is marked as deleted, and stays with its artifacts
    until `ipcnn gc` or `mlflow gc`. An experiment in progress is refused.
    """
    if address:
        _delete_on_cluster(name, address, yes)
        return
    from ipcnn_ray.on_ray.experiment_dir import is_running
    from ipcnn_ray.on_ray.garbage import delete_target, find_target

    paths = Paths.from_environment()
    tracker = open_tracker(paths)
    target = find_target(tracker, paths, name)
    experiment = target.root.rpartition("/")[2]
    if is_running(target.root) and "://" not in target.root:  # a driver in S3 may have died: `exclusive` finds out
        raise IpcnnError(f"{experiment} is in progress\nStop it first: ipcnn stop {experiment}")
    count, size = len(target.sizes), output.format_bytes(sum(target.sizes))
    output.print_line(f"{target.name}: {count} files ({size}) in {paths.storage}, deleted for good")
    uri = without_password(tracker.uri)
    if target.records:
        runs = f"{len(target.records)} {'run' if len(target.records) == 1 else 'runs'}"
        output.print_line(f"{' ' * len(target.name)}  {runs} in the record at {uri}, marked as deleted")
    _confirm(f"Delete {target.name}?", yes)
    delete_target(target, tracker, output.print_note)
    output.print_line(f"{target.name} is deleted")
    if target.records:
        back = f"mlflow runs restore --run-id {target.records[0].handle}"
        where = "`mlflow gc` where the server runs" if is_server(tracker.uri) else "`ipcnn gc`"
        output.print_note(f"Its record can be brought back ({back}) until {where} removes it.")


def _delete_on_cluster(name: str, address: str, yes: bool) -> None:
    from ipcnn_ray.on_ray.job_client import write_working_dir

    client = cluster_client(address)
    job = client.find("-".join(name.split("-")[:2]))
    if not job.finished:
        stop = f"ipcnn stop {job.experiment} --address {address}"
        raise IpcnnError(f"{job.experiment} is in progress on {address}\nStop it first: {stop}")
    name = name if "-" in name else job.experiment
    _confirm(f"Delete {name}, its files and its record, on {address}?", yes)
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as folder:
        write_working_dir(Path(folder), "")
        client.run_command(Path(folder), ["delete", name, "--yes"], os.environ)
    output.print_line(f"{name} is deleted")


def gc(dry_run: DryRunOption = False, yes: YesOption = False) -> None:
    """Delete what no recorded experiment needs.

    Unused caches of this machine, runs without a record in the storage, what killed processes left, and records that
    are marked as deleted. Nothing of an experiment in progress.
    """
    from ipcnn_ray.on_ray.garbage import find_garbage

    paths = Paths.from_environment()
    tracker = open_mlflow(paths)
    found = sorted(find_garbage(tracker, paths), key=lambda garbage: -garbage.size)
    if is_server(tracker.uri):
        output.print_note("Records that are marked as deleted stay: run `mlflow gc` where the server runs.")
    if not found:
        output.print_line("nothing to delete")
        return
    rows = [[one.kind, output.format_bytes(one.size), one.place, one.reason] for one in found]
    output.print_table(COLUMNS, rows, right=("size",))
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in found).items())
    output.print_line(f"{output.format_bytes(sum(one.size for one in found))} in all: {kinds}")
    if dry_run:
        return
    _confirm("Delete all of this for good?", yes)
    left = []
    for one in found:
        try:
            one.delete()
        except (IpcnnError, OSError) as error:
            left.append(f"{one.place}: {str(error).partition(chr(10))[0]}")
    if left:
        raise IpcnnError("not everything was deleted\n" + "\n".join(left))
    output.print_line(f"deleted: {len(found)}")


def _confirm(question: str, yes: bool) -> None:
    """Ask, unless `--yes` was given. Raises IpcnnError without a terminal or another answer, typer.Exit after a no."""
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort as error:
        raise IpcnnError("nothing was deleted: nobody answered\nGive --yes to delete without being asked.") from error
    if not agreed:
        output.print_line("nothing was deleted")
        raise typer.Exit
