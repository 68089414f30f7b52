"""`ipcnn stop`: end an experiment so that it can go on later."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.logs import Experiment, submitted_here
from ipcnn_ray.cli.remote import STOPPED, Address
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.storage import below

PAUSE_S = 0.5
Now = Annotated[bool, typer.Option("--now", help="Do not let the runs end their epoch.")]
OnCluster = Annotated[bool, typer.Option("--on-cluster", hidden=True)]


def stop(experiment: Experiment, now: Now = False, address: Address = None, on_cluster: OnCluster = False) -> None:
    """Stop an experiment: its runs end the epoch that they are in, and store it. Submitted again, it goes on."""
    if on_cluster:
        _ask(experiment, Places.from_environment())
    elif address:
        _on_cluster(experiment, address, now)
    else:
        _here(experiment, now)


def _ask(identity: str, places: Places) -> None:
    from ipcnn_ray.on_ray.home import ask_to_stop, at_work

    root = below(places.storage, identity)
    if not at_work(root):
        raise IpcnnError(f"{identity} is not under way in {places.storage}\nSee what is: ipcnn list")
    ask_to_stop(root)


def _on_cluster(wanted: str, address: str, now: bool) -> None:
    from ipcnn_ray.on_ray.jobs import Cluster
    from ipcnn_ray.on_ray.shipping import pack

    cluster = Cluster(address)
    job = cluster.named(wanted)
    if job.over:
        raise IpcnnError(f"{job.experiment} is not under way on {address}: it has {job.state}\nSee: ipcnn list")
    if now:
        cluster.end(job.id)
    else:
        with tempfile.TemporaryDirectory(prefix="ipcnn-") as folder:
            pack(Path(folder), "")
            cluster.ask(Path(folder), ["stop", job.experiment, "--on-cluster"], os.environ)
    _wait(job.experiment, lambda: cluster.submission(job.id).over)


def _here(wanted: str, now: bool) -> None:
    from ipcnn_ray.on_ray.home import at_work, worker_of
    from ipcnn_ray.tracking.storage import is_url

    places = Places.from_environment()
    identity = submitted_here(wanted, places)
    root = below(places.storage, identity)
    if now:
        process = None if is_url(root) else worker_of(root)
        if process is None:
            raise IpcnnError(
                f"{identity} is not under way in a folder of this machine ({places.storage})\n"
                "Where it was submitted, Ctrl-C ends it now."
            )
        os.kill(process, signal.SIGINT)
    else:
        _ask(identity, places)
    _wait(identity, lambda: not at_work(root))


def _wait(identity: str, over: Callable[[], bool]) -> None:
    output.note(f"{identity} is asked to stop; its runs end first (Ctrl-C: they do so without you watching)")
    try:
        while not over():
            time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    output.say(f"{identity} has ended; submitted again, it goes on")
