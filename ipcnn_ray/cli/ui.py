"""`ipcnn ui`: the record in a browser, on this machine and to this machine only."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Annotated, NoReturn
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.tracking.mlflow_tracker import environment, server_command
from ipcnn_ray.tracking.tracking_uri import absolute, exists, is_server, without_password
from ipcnn_ray.utils.paths import Paths

START_S = 60.0
STOP_S = 10.0

Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")]
PrintCommand = Annotated[bool, typer.Option("--print-command", help="Print the command that would be run, and end.")]


def ui(port: Port = 5000, print_command: PrintCommand = False) -> None:
    """Open the record of all runs in the MLflow UI. Ctrl-C ends it."""
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
    _free(port)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log, _terminating():
        child = subprocess.Popen(
            command,
            env={**os.environ, **environment()},
            cwd=tempfile.gettempdir(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_up(child, url, log)
            output.print_line(f"{url}   (Ctrl-C ends it)")
            child.wait()
            raise IpcnnError(f"the MLflow server ended by itself\n{_tail(log)}")
        except KeyboardInterrupt:
            output.print_note("stopped")
        finally:
            _stop(child)


def _free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise IpcnnError(
                f"port {port} on 127.0.0.1 is not free: {error.strerror}\nTake another one: ipcnn ui --port {port + 1}"
            ) from error


@contextmanager
def _terminating() -> Iterator[None]:
    """A polite kill ends this as Ctrl-C does, so that the server does not outlive it."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_until_up(child: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    opener = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise IpcnnError(f"the MLflow server did not start\n{_tail(log)}")
        try:
            opener.open(f"{url}/health", timeout=2).close()
            return
        except (URLError, OSError):
            time.sleep(0.2)
    raise IpcnnError(f"the MLflow server did not answer within {START_S:.0f} s\n{_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    """The end of what the server said."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-5:]) or "It said nothing."


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ends the server with the processes that it started; they are a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            continue
