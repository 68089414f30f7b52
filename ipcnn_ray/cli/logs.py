"""`ipcnn logs`: what an experiment has told, from this machine or from a cluster."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.remote import STOPPED, Address
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.fields import did_you_mean
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.storage import below

PAUSE_S = 0.5
Experiment = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="Name or id of an experiment.", show_default=False)
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the experiment has ended.")]


def logs(experiment: Experiment, follow: Follow = False, address: Address = None) -> None:
    """Show what an experiment has told."""
    try:
        for piece in _of_cluster(address, experiment, follow) if address else _of_this_machine(experiment, follow):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        output.note("The experiment goes on.")
        raise typer.Exit(STOPPED) from None


def _of_cluster(address: str, experiment: str, follow: bool) -> Iterator[str]:
    from ipcnn_ray.on_ray.jobs import Cluster

    cluster = Cluster(address)
    return cluster.logs(cluster.named(experiment).id, follow=follow)


def _of_this_machine(experiment: str, follow: bool) -> Iterator[str]:
    places = Places.from_environment()
    identity = submitted_here(experiment, places)
    from ipcnn_ray.on_ray.home import at_work

    with log_file(identity, places).open(encoding="utf-8") as file:
        while True:
            working = follow and at_work(below(places.storage, identity))
            if text := file.read():
                yield text
            if not working:
                return
            time.sleep(PAUSE_S)


def log_file(identity: str, places: Places) -> Path:
    """Where a submission on this machine writes what it tells."""
    return places.home / "logs" / f"{identity}.log"


def submitted_here(wanted: str, places: Places) -> str:
    """Id of the experiment that was submitted on this machine, from its id or its name. Raises IpcnnError."""
    files = sorted((places.home / "logs").glob("*.log"), key=lambda file: file.stat().st_mtime, reverse=True)
    known = [file.stem for file in files]
    for identity in known:
        if wanted in (identity, re.sub(r"-[0-9a-f]{8}$", "", identity)):
            return identity
    guess = did_you_mean(wanted, known).strip()
    listed = f"Submitted: {', '.join(known)}." if known else "Nothing was submitted yet."
    raise IpcnnError(f"no experiment {wanted!r} was submitted on this machine\n{guess or listed}")
