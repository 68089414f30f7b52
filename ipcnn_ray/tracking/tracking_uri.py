"""Tracking URIs: kinds of store, checks, and errors with advice."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit
from urllib.request import getproxies

from ipcnn_ray.errors import TrackingError, UnreachableError
from ipcnn_ray.utils.locks import LockedError, file_lock
from ipcnn_ray.utils.text import shortened, without_passwords

SQLITE = "sqlite:///"
CONNECT_S = 10.0
"""Timeout of a connection to a server or a database."""
LOCK_S = 60.0
"""Timeout of the lock under which a launcher creates a store."""

TEMPORARY = {"", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's codes of errors that may pass; failed connections are internal errors."""
PERMANENT = ("out-of-date database schema", "AccessDenied", "NoSuchBucket", "Unable to locate credentials")
"""Texts of internal errors that do not pass."""


def without_password(uri: str) -> str:
    """Return the URI without user name and password."""
    parts = urlsplit(uri)
    if parts.password is None and parts.username is None:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for any other store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in {"http", "https"}


def absolute(uri: str) -> str:
    """Return the URI with an absolute SQLite path: Ray workers have other working directories."""
    file = sqlite_file(uri)
    return uri if file is None else f"{SQLITE}{file.expanduser().absolute()}"


def exists(uri: str) -> bool:
    """Return False for an SQLite store without a file, else True."""
    file = sqlite_file(uri)
    return file is None or file.is_file()


def create_store(uri: str) -> None:
    """Create the file of an SQLite store and its folder. Raises TrackingError if they cannot be written, or if the
    URI is neither SQLite nor a server."""
    file = sqlite_file(uri)
    if file is None:
        if "://" not in uri or uri.startswith(("file:", "sqlite:")):
            raise TrackingError(
                f"MLFLOW_TRACKING_URI = {uri!r} is neither a server nor a database file\n"
                "Give the address of a server or sqlite:///FILE, or unset it to record in a local file."
            )
        return
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=CONNECT_S)
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
def exclusive_launcher(uri: str) -> Iterator[None]:
    """Hold the lock of an SQLite store while experiments and runs are created. A server needs no lock."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    try:
        with file_lock(Path(f"{file}.lock"), timeout=LOCK_S):
            yield
    except LockedError as error:
        raise TrackingError(
            f"{file}.lock has been held for {LOCK_S:.0f} s by another process\nWait for that one to end, or end it."
        ) from error


def check_reachable(uri: str) -> None:
    """Connect to the server within seconds; MLflow itself retries for minutes. Raises UnreachableError."""
    parts = urlsplit(uri)
    if not is_server(uri) or getproxies().get(parts.scheme):
        return
    try:
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except ValueError as error:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI = {without_password(uri)}: {error}\nGive http://HOST:PORT."
        ) from error
    try:
        socket.create_connection(address, timeout=CONNECT_S).close()
    except OSError as error:
        raise store_error(uri, error) from error


def store_error(uri: str, error: Exception) -> TrackingError:
    """Return an error of the store as a TrackingError with advice; an UnreachableError if it may pass."""
    shown = without_password(uri)
    fact = without_passwords(str(error).partition("\n")[0])
    code = getattr(error, "error_code", "")
    if "out-of-date database schema" in fact:
        fact = "the store was written by another version of MLflow"
        advice = f"If that was a later one, install it; else copy the store, then run: mlflow db upgrade {quote(shown)}"
    elif code == "RESOURCE_DOES_NOT_EXIST":
        advice = "It may have been deleted in the MLflow UI. Submit with --fresh to begin a new record."
    elif code in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        advice = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of this server."
    elif sqlite_file(uri) is not None:
        advice = "Check that the disk has room and is a local one, and that the file may be written."
    else:
        advice = "Check that the server is up and MLFLOW_TRACKING_URI is right; unset it to record in a local file."
    may_pass = is_server(uri) and code in TEMPORARY and not any(text in str(error) for text in PERMANENT)
    kind = UnreachableError if may_pass else TrackingError
    return kind(f"MLflow at {shown}: {shortened(fact, 400)}\n{advice}")
