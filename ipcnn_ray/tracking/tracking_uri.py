"""Where a record is: of which kind its address is, how it may be shown, whether it answers, and what to do if not."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from filelock import FileLock, Timeout

from ipcnn_ray.errors import TrackingError, UnreachableError
from ipcnn_ray.utils.text import shortened

SQLITE = "sqlite:///"
REACH_S = 10.0
"""Seconds that a server has to answer a connection."""
LOCK_S = 60.0
"""Seconds that another launcher may take to create a store."""


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    parts = urlsplit(uri)
    if parts.password is None and parts.username is None:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def database(uri: str) -> Path | None:
    """The file of an SQLite store; None of any other store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in {"http", "https"}


def absolute(uri: str) -> str:
    """Ray's workers change directory: a relative SQLite file would be another one for each of them."""
    file = database(uri)
    return uri if file is None else f"{SQLITE}{file.expanduser().absolute()}"


def exists(uri: str) -> bool:
    """Whether there may be something to read."""
    file = database(uri)
    return file is None or file.is_file()


def make_ready(uri: str) -> None:
    """Creates the file of an SQLite store, with its folder. Raises TrackingError where nothing can be recorded."""
    if (file := database(uri)) is not None:
        _create(file)
    elif "://" not in uri or uri.startswith(("file:", "sqlite:")):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI = {uri!r} is neither a server nor a database file\n"
            "Give the address of a server or sqlite:///FILE, or unset it to record in a local file."
        )


def _create(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=REACH_S)
        try:
            connection.execute("BEGIN IMMEDIATE")
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"the record {file} cannot be written: {error}\n"
            "Set IPCNN_HOME to a folder that you may write, or MLFLOW_TRACKING_URI to another store."
        ) from error


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """One launcher at a time creates things in an SQLite store; a server sees to that itself."""
    file = database(uri)
    lock: AbstractContextManager[Any] = FileLock(f"{file}.lock", timeout=LOCK_S) if file else nullcontext()
    try:
        with lock:
            yield
    except Timeout as error:
        raise TrackingError(
            f"{file}.lock has been held for {LOCK_S:.0f} s by another process\nWait for that one to end, or end it."
        ) from error


def reach(uri: str) -> None:
    """Fails within seconds where no server listens; MLflow itself would try for minutes. Raises TrackingError."""
    parts = urlsplit(uri)
    if not is_server(uri) or getproxies().get(parts.scheme):
        return
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        socket.create_connection(address, timeout=REACH_S).close()
    except OSError as error:
        raise told(uri, error) from error


PASSING = {"", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's codes of errors that may be gone later; connections that fail are among the internal ones."""
LASTING = ("out-of-date database schema", "AccessDenied", "NoSuchBucket", "Unable to locate credentials")


def told(uri: str, error: Exception) -> TrackingError:
    """An error of the store as one for a person: the fact, and what to do about it. UnreachableError for one of a
    server that may be gone later."""
    shown = without_password(uri)
    fact = str(error).partition("\n")[0].replace(uri, shown)
    code = getattr(error, "error_code", "")
    if "out-of-date database schema" in fact:
        fact = "the store was written by another version of MLflow"
        advice = f"Copy the store, then run: mlflow db upgrade {shown}   or set IPCNN_HOME to a new folder."
    elif code == "RESOURCE_DOES_NOT_EXIST":
        advice = "It may have been deleted in the MLflow UI. Submit with --fresh to begin a new record."
    elif code in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        advice = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of this server."
    elif database(uri) is not None:
        advice = "Check that the disk has room and is a local one, and that the file may be written."
    else:
        advice = "Check that the server is up and MLFLOW_TRACKING_URI is right; unset it to record in a local file."
    passing = is_server(uri) and code in PASSING and not any(what in str(error) for what in LASTING)
    kind = UnreachableError if passing else TrackingError
    return kind(f"MLflow at {shown}: {shortened(fact, 400)}\n{advice}")


Item = TypeVar("Item")

PARAM_LENGTH, TAG_LENGTH, EXPERIMENT_TAG_LENGTH = 6000, 8000, 5000
"""Characters."""
PARAMS_PER_CALL, TAGS_PER_CALL, METRICS_PER_CALL = 100, 100, 1000


def parts(values: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of at most `size` values."""
    for first in range(0, len(values), size):
        yield values[first : first + size]
