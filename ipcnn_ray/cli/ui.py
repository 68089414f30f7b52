"""`ipcnn ui`: serve the MLflow UI of the recorded runs on 127.0.0.1, and open it at the results of an experiment."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import tempfile
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import experiment_argument
from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.spec.extensions import BASELINES
from ipcnn_ray.tracking import open_mlflow
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker, environment, server_command
from ipcnn_ray.tracking.tracking_uri import absolute, exists, is_server, without_password
from ipcnn_ray.utils.paths import Paths

TAGS = ("ipcnn.template", "ipcnn.verdict")
"""Columns of an experiment's view, if its runs have them."""
METRICS = ("combined", "val_error", "instability", "landmark_tracking", "following_share", *BASELINES)
"""Columns after those of the tags. The first one that the runs have sorts them."""

ExperimentArgument = Annotated[
    str | None,
    experiment_argument("[EXPERIMENT]", "Name or id of an experiment: open the table of its runs, best first."),
]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")]
PrintCommand = Annotated[bool, typer.Option("--print-command", help="Print the server's command and exit.")]


def ui(experiment: ExperimentArgument = None, port: Port = 5000, print_command: PrintCommand = False) -> None:
    """Open the recorded runs in the MLflow UI. Ctrl-C ends it.

    With an experiment, its runs are a table: template, verdict, error, instability, tracking, and their baselines.
    """
    paths = Paths.from_environment()
    uri = absolute(paths.tracking_uri)
    if is_server(uri):
        address = without_password(uri)
        if experiment:
            address = f"{address.rstrip('/')}/{_save_view(open_mlflow(paths), experiment)}"
        output.print_line(f"The record is kept by a server, which has its own page: {address}")
        return
    command = server_command(uri, port)
    if print_command:
        output.print_line(shlex.join(command))
        return
    if not exists(uri):
        raise TrackingError(f"nothing is recorded yet in {uri}\nSubmit an experiment first: ipcnn submit SPEC")
    _check_port(port)
    page = f"/{_save_view(open_mlflow(paths), experiment)}" if experiment else ""
    output.print_line(f"http://127.0.0.1:{port}{page}   (up in a few seconds; Ctrl-C ends it)")
    sys.stdout.flush()
    os.chdir(tempfile.gettempdir())
    os.execve(command[0], command, {**os.environ, **environment()})


def _save_view(tracker: MlflowTracker, experiment: str) -> str:
    """Save the view of the experiment's runs in the record; return the path of its page.

    Raises IpcnnError if nothing is recorded under the name.
    """
    from ipcnn_ray.report.experiment_record import find_runs

    (parent, runs), *older = find_runs(tracker, experiment)
    if older:
        output.print_note(f"{experiment} was submitted several times; this is {parent.run_id}, the newest")
    name, _, digest = parent.run_id.partition("-")
    tags = [tag for tag in TAGS if any(run.tags.get(tag) for run in runs)]
    metrics = [metric for metric in METRICS if any(metric in run.metrics for run in runs)]
    which = f"attributes.run_id = '{runs[0].handle}'"
    if runs[0].parent:
        which = f"tags.`mlflow.parentRunId` = '{parent.handle}'"
    return tracker.save_view(name, digest, tags, metrics, which, metrics[0] if metrics else METRICS[0])


def _check_port(port: int) -> None:
    """Raise IpcnnError if the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise IpcnnError(
                f"port {port} on 127.0.0.1 is not free: {error.strerror}\nTake another one: ipcnn ui --port {port + 1}"
            ) from error
