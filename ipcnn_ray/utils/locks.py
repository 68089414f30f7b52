"""Locks on files between processes of one machine or of a shared file system.

Lock files stay in place after release: deleting one would let two processes hold the same lock, if one of them waits
for it just then. Only `ipcnn gc` does, for locks that were taken last a day ago or earlier.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ipcnn_ray.utils.files import write_atomic

NOTICE_S = 10.0
"""Seconds of waiting after which a message is logged."""
ASKING_S = 0.5
"""Seconds that another process may hold a `pid_lock` to ask who holds it."""

log = logging.getLogger(__name__)


class LockedError(Exception):
    """The lock is held by another process."""


@contextmanager
def file_lock(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock. Raises LockedError if it is not free within `timeout`.

    Args:
        path: Lock file. It and its folder are created if missing.
        timeout: Seconds to wait for another process; None waits without limit, and logs that it does.
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
    """Hold an exclusive lock whose file contains this process's id. Raises LockedError if another process holds it.

    Waits for ASKING_S at most, because `pid_lock_holder` takes the lock for a moment. A file system without locks is
    an OSError.
    """

    def write_pid(descriptor: int) -> None:
        os.write(descriptor, str(os.getpid()).encode())

    lock = FileLock(path, fallback_to_soft=False, on_acquired=write_pid)
    try:
        lock.acquire(timeout=ASKING_S)
    except Timeout as error:
        raise LockedError(str(path)) from error
    try:
        yield
    finally:
        lock.release()


def pid_lock_holder(path: Path) -> int | None:
    """Return the id of the process that holds a `pid_lock`; None if none does, or if it has not written its id yet."""
    if not path.is_file():
        return None
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return int(path.read_text() or 0) or None
    lock.release()
    return None


def is_held(path: Path) -> bool:
    """Return whether a process holds a `file_lock` or a `pid_lock`. The file keeps its time of change."""
    try:
        with _held_for_a_moment(path):
            return False
    except FileNotFoundError:
        return False
    except LockedError:
        return True


def remove_lock(path: Path) -> None:
    """Delete a lock file that nothing has needed for long, unless a process holds it."""
    with suppress(FileNotFoundError, LockedError), _held_for_a_moment(path):
        path.unlink()


@contextmanager
def _held_for_a_moment(path: Path) -> Iterator[None]:
    with path.open("r+") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(str(path)) from error
        yield


class ChunkClaims:
    """Chunks of a job that several processes share: which are done, and which a process works on.

    The file has one byte per chunk, 1 if it is done. A chunk is claimed by a lock on its byte, so the claims of a
    process that dies are free again. One more byte is locked shared by every process that takes part. The locks are
    those of a process, whose threads share one object.
    """

    def __init__(self, path: Path) -> None:
        """Take part in the job of an existing file (`create`)."""
        self._file = path.open("r+b", buffering=0)
        self._own: set[int] = set()
        self._threads = threading.Lock()
        self.count = os.fstat(self._file.fileno()).st_size
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, self.count)

    @staticmethod
    def create(path: Path, count: int) -> None:
        """Write the file of a job of which no chunk is done."""
        write_atomic(path, bytes(count))

    def done(self) -> int:
        """Return the number of chunks that are done."""
        return os.pread(self._file.fileno(), self.count, 0).count(1)

    def claim(self) -> int | None:
        """Claim the first chunk that is neither done nor claimed; None if there is none at the moment."""
        with self._threads:
            for chunk, is_done in enumerate(os.pread(self._file.fileno(), self.count, 0)):
                if not is_done and chunk not in self._own and self._lock(chunk):
                    if os.pread(self._file.fileno(), 1, chunk) == b"\0":
                        self._own.add(chunk)
                        return chunk
                    self._unlock(chunk)
            return None

    def mark_done(self, chunk: int) -> None:
        """Release a claimed chunk as done; what it stands for must be on disk."""
        with self._threads:
            os.pwrite(self._file.fileno(), b"\1", chunk)
            self._unlock(chunk)
            self._own.remove(chunk)

    def is_of(self, path: Path) -> bool:
        """Whether the file at `path` is still the one of this job."""
        return path.exists() and path.stat().st_ino == os.fstat(self._file.fileno()).st_ino

    def is_last(self) -> bool:
        """Whether no other process takes part."""
        return self._lock(self.count)

    def close(self) -> None:
        """Take part no longer; all claims are released."""
        self._file.close()

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
