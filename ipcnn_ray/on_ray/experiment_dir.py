"""The folder of an experiment in the storage: layout, archive, stop requests, and the lock of its driver.

<storage>/<experiment>/<run>/              checkpoints and result of a run
<storage>/<experiment>/search/             state of the search
<storage>/<experiment>/stop                request to stop after the current epochs
<storage>/<experiment>/submissions.json    number of submissions
<storage>/<experiment>/driver.json         S3 only: the driver and its heartbeat
<storage>/.<experiment>.lock               file system only: the driver's lock, with its process id
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import experiment_id
from ipcnn_ray.tracking.storage import join_path, open_storage
from ipcnn_ray.train.run_dir import RESULT_FILE, local_path, open_run_dir, read_file, write_file
from ipcnn_ray.utils.locks import LockedError, pid_lock, pid_lock_holder
from ipcnn_ray.utils.paths import Paths

STOP, SUBMISSIONS, DRIVER = "stop", "submissions.json", "driver.json"
HEARTBEAT_S = 10.0
"""Seconds between two heartbeats of the driver of an experiment in S3."""
LEASE_S = 60.0
"""Seconds without a heartbeat after which a driver counts as dead."""


def experiment_folder(spec: ExperimentSpec, paths: Paths) -> str:
    """Return the path or s3:// URL of an experiment's folder."""
    return join_path(paths.storage, experiment_id(spec))


def ray_storage_dir(folder: str, paths: Paths) -> Path:
    """Return the local folder for Ray's own state of an experiment or a run. It is not needed after the run."""
    return (local_path(folder) or paths.home / "notes" / "-".join(folder.split("/")[-2:])) / "ray"


def finished_runs(root: str) -> set[str]:
    """Return the labels of the runs that have a result."""
    keys = (key.split("/") for key in open_run_dir(root).list())
    return {label for label, *names in keys if names == [RESULT_FILE]}


def archive(root: str) -> None:
    """Rename the experiment's folder, so that the next submission starts from nothing."""
    parent, _, name = root.rpartition("/")
    files = open_run_dir(parent)
    if files.list(name):
        files.move(name, f"{name}.before-{time.strftime('%Y%m%d-%H%M%S')}")


def count_submission(root: str) -> int:
    """Return the number of submissions of the experiment, this one included."""
    previous = read_file(root, SUBMISSIONS)
    count = (int(json.loads(previous)["count"]) if previous else 0) + 1
    write_file(root, SUBMISSIONS, json.dumps({"count": count}).encode())
    return count


def request_stop(root: str) -> None:
    """Make the runs stop after their current epoch. A new submission resumes them."""
    write_file(root, STOP, b"")


def stop_requested(root: str) -> bool:
    return open_run_dir(root).exists(STOP)


def clear_stop_request(root: str) -> None:
    open_run_dir(root).delete(STOP)


@contextmanager
def exclusive(root: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold the experiment for this process. Raises IpcnnError if another process holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(_lease(root, warn) if local_path(root) is None else pid_lock(_lock_path(root)))
        except LockedError as error:
            raise IpcnnError(
                f"{root.rpartition('/')[2]} is being trained by another process on this storage\n"
                "Wait for it or stop it; or submit under another name."
            ) from error
        yield


def lock_holder_pid(root: str) -> int | None:
    """Return the id of the process on this machine that trains an experiment in a file system; None without one."""
    return pid_lock_holder(_lock_path(root))


def is_running(root: str) -> bool:
    """Return whether a process trains the experiment. In S3 also true for a driver that died."""
    return lock_holder_pid(root) is not None if local_path(root) is not None else read_file(root, DRIVER) is not None


def _lock_path(root: str) -> Path:
    folder = Path(root)
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def _lease(root: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold an experiment in S3, which has no locks. Raises LockedError.

    The owner rewrites driver.json every HEARTBEAT_S seconds; if it is unchanged for LEASE_S seconds, the owner is dead.
    No clocks are compared.
    """
    before = read_file(root, DRIVER)
    if before is not None:
        warn(f"{root} has a driver that may still be alive: waiting up to {LEASE_S:.0f} s for its heartbeat")
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end and (now := read_file(root, DRIVER)) is not None:
            if now != before:
                raise LockedError(root)
            time.sleep(min(1.0, HEARTBEAT_S))
    owner, released = secrets.token_hex(8), threading.Event()

    def content(beat: int) -> bytes:
        return json.dumps({"owner": owner, "beat": beat}).encode()

    def heartbeat() -> None:
        files, beat = open_storage(root), 0
        while not released.wait(HEARTBEAT_S):
            with suppress(TrackingError):  # an outage of the storage stops the other processes, too
                if json.loads(files.get(DRIVER))["owner"] != owner:
                    return
                files.put_bytes(content(beat := beat + 1), DRIVER)

    write_file(root, DRIVER, content(0))
    time.sleep(min(1.0, HEARTBEAT_S))  # of two processes that start together, the last writer wins
    if read_file(root, DRIVER) != content(0):
        raise LockedError(root)
    thread = threading.Thread(target=heartbeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join(HEARTBEAT_S)
        current = read_file(root, DRIVER)
        if current is not None and json.loads(current)["owner"] == owner:
            open_run_dir(root).delete(DRIVER)
