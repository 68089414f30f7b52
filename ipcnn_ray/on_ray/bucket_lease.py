"""The lease of an experiment in a bucket, which has no locks: a file that its driver rewrites, its heartbeat.

driver.json is absent or `{"owner": ""}` while no driver holds the experiment, else `{"owner": ..., "beat": N}`. Every
change of it (claim, heartbeat, takeover, release) is a request on the condition that the file is as it was read, so of
two drivers one succeeds. A driver whose file is unchanged for LEASE_S seconds is dead; no clocks are compared, each
process measures only its own seconds. A driver that was taken for dead and goes on cannot change the lease of its
successor. The file is never deleted: few servers know a conditional DeleteObject, and another one could delete the
lease of a successor.

Servers without conditional requests are detected (`S3Storage.conditional_writes`). There, a claim is written after the
file was read, and is valid if it is still there SETTLE_S later. Two drivers both hold the lease if one of them reads
before the other has written and its own request takes longer than that; the one that wrote first notices it at its
next heartbeat.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.train.run_dir import STORAGE_TIMEOUT_S, read_file
from ipcnn_ray.utils.locks import LockedError

if TYPE_CHECKING:
    from ipcnn_ray.tracking.s3_storage import S3Storage, Version

DRIVER = "driver.json"
HEARTBEAT_S = 10.0
"""Seconds between two heartbeats."""
LEASE_S = 60.0
"""Seconds without a heartbeat after which a driver counts as dead."""
SETTLE_S = 1.0
"""Seconds after which a claim is read back, on a server without conditional requests."""

log = logging.getLogger(__name__)


def is_leased(root: str) -> bool:
    """Return whether a driver holds the experiment, or died while it held it."""
    content = read_file(root, DRIVER)
    return content is not None and _owner(content) != ""


@contextmanager
def bucket_lease(root: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold an experiment in a bucket. Raises LockedError if another driver holds it."""
    from ipcnn_ray.tracking.s3_storage import S3Storage

    files = S3Storage(root, STORAGE_TIMEOUT_S)
    conditional = files.conditional_writes()
    if not conditional:
        warn(
            f"the server of {root} does not know conditional requests (If-None-Match, If-Match): of two submissions of "
            "this experiment that start within the same second, both may train it"
        )
    lease = _Lease(files, conditional)
    lease.claim(warn)
    ended = threading.Event()

    def heartbeat() -> None:
        lease.files = S3Storage(root)  # without retries: the next heartbeat is the retry
        while not ended.wait(HEARTBEAT_S):
            try:
                held = lease.renew()
            except TrackingError:
                continue  # an outage of the storage stops the other drivers, too
            if not held:
                log.warning(
                    "%s was taken over by another driver, which took this one for dead; its runs end at their next "
                    "checkpoint",
                    root,
                )
                return

    thread = threading.Thread(target=heartbeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(HEARTBEAT_S)
        lease.files = files
        lease.release()


class _Lease:
    """The file of one experiment, as this driver last read or wrote it."""

    def __init__(self, files: S3Storage, conditional: bool) -> None:
        self.files = files
        self.conditional = conditional
        self.owner = secrets.token_hex(8)
        self.beat = 0
        self.seen: Version | None = None

    def claim(self, warn: Callable[[str], None]) -> None:
        self.seen = self.files.get_version(DRIVER)
        if not self._is_free():
            url = self.files.url
            warn(f"{url} has a driver that may still be alive: waiting up to {LEASE_S:.0f} s for its heartbeat")
            self._wait_for_heartbeat()
        while not self._write(self.owner, settle_s=SETTLE_S):
            self.seen = self.files.get_version(DRIVER)
            if not self._is_free():
                raise LockedError(self.files.url)

    def renew(self) -> bool:
        """Write the next heartbeat; return False if another driver has taken over."""
        self.beat += 1
        if self._write(self.owner):
            return True
        now = self.files.get_version(DRIVER)
        if now is not None and _owner(now.data) != self.owner:
            return False
        # Ours: a heartbeat whose answer was lost. Absent: deleted by hand, and claimed again by the next heartbeat.
        self.seen = now
        return True

    def release(self) -> None:
        """Free the lease if it is still this driver's."""
        if self.renew() and self.seen is not None:
            self._write("")

    def _is_free(self) -> bool:
        return self.seen is None or _owner(self.seen.data) == ""

    def _wait_for_heartbeat(self) -> None:
        """Return when the lease is free or has had no heartbeat for LEASE_S. Raises LockedError at a heartbeat."""
        end, before = time.monotonic() + LEASE_S, self.seen
        while time.monotonic() < end:
            self.seen = self.files.get_version(DRIVER)
            if self._is_free():
                return
            if self.seen != before:
                raise LockedError(self.files.url)
            time.sleep(min(1.0, HEARTBEAT_S))

    def _write(self, owner: str, settle_s: float = 0.0) -> bool:
        """Replace the file if it is as last seen; return whether it was."""
        content = json.dumps({"owner": owner, "beat": self.beat}).encode()
        if self.conditional:
            written = self.files.put_if_unchanged(content, DRIVER, self.seen)
        else:
            if self.files.get_version(DRIVER) != self.seen:
                return False
            self.files.put_bytes(content, DRIVER)
            time.sleep(settle_s)
            written = self.files.get_version(DRIVER)
        if written is None or written.data != content:
            return False
        self.seen = written
        return True


def _owner(content: bytes) -> str:
    return str(json.loads(content)["owner"])
