"""`ipcnn ui`: serve the MLflow UI of the recorded runs on 127.0.0.1."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import tempfile
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.tracking.mlflow_tracker import environment, server_command
from ipcnn_ray.tracking.tracking_uri import absolute, exists, is_server, without_password
from ipcnn_ray.utils.paths import Paths

Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")]
PrintCommand = Annotated[bool, typer.Option("--print-command", help="Print the server's command and exit.")]


def ui(port: Port = 5000, print_command: PrintCommand = False) -> None:
    """Open the recorded runs in the MLflow UI. Ctrl-C ends it."""
    uri = absolute(Paths.from_environment().tracking_uri)
    if is_server(uri):
        output.print_line(f"The record is kept by a server, which has its own page: {without_password(uri)}")
        return
    command = server_command(uri, port)
    if print_command:
        output.print_line(shlex.join(command))
        return
    if not exists(uri):
        raise TrackingError(f"nothing is recorded yet in {uri}\nSubmit an experiment first: ipcnn submit SPEC")
    _check_port(port)
    output.print_line(f"http://127.0.0.1:{port}   (up in a few seconds; Ctrl-C ends it)")
    sys.stdout.flush()
    os.chdir(tempfile.gettempdir())
    os.execve(command[0], command, {**os.environ, **environment()})


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
