"""Exclusive locks on files (flock), between processes of one machine or of a shared file system.

Lock files stay in place after release: deleting one would let two processes hold the same lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NOTICE_S = 10.0
"""Seconds of waiting after which a message is logged."""

log = logging.getLogger(__name__)


class LockedError(Exception):
    """The lock is held by another process."""


@contextmanager
def file_lock(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock.

    Args:
        path: Lock file. It and its folder are created if missing.
        timeout: Seconds to wait for another process; None waits without limit, and logs that it does.

    Raises:
        LockedError: If the lock is not free within `timeout`.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=NOTICE_S if timeout is None else timeout)
    except Timeout as error:
        if timeout is not None:
            raise LockedError(str(path)) from error
        log.warning("waiting for another process that holds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def pid_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock whose file contains this process's id. Does not wait.

    Raises:
        LockedError: If another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _flock(file.fileno(), path)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def pid_lock_holder(path: Path) -> int | None:
    """Return the id of the process that holds a `pid_lock`; None if none does, or if it has not written its id yet."""
    if not path.is_file():
        return None
    with path.open("r+") as file:
        try:
            _flock(file.fileno(), path)
        except LockedError:
            return int(file.read() or 0) or None
    return None


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(str(path)) from error
