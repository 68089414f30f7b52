"""The folder of an experiment in the storage: layout, archive, stop requests, and the lock of its driver.

<storage>/<experiment>/<run>/              checkpoints and result of a run
<storage>/<experiment>/search/             state of the search
<storage>/<experiment>/stop                request to stop after the current epochs
<storage>/<experiment>/submissions.json    number of submissions, and the record of the last one
<storage>/<experiment>/driver.json         S3 only: the driver and its heartbeat (bucket_lease.py)
<storage>/.<experiment>.lock               file system only: the driver's lock, with its process id
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray.bucket_lease import DRIVER, bucket_lease, is_leased
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import experiment_id
from ipcnn_ray.tracking.storage import join_path
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.train.run_dir import RESULT_FILE, local_path, open_run_dir, read_json, write_file
from ipcnn_ray.utils.locks import LockedError, pid_lock, pid_lock_holder
from ipcnn_ray.utils.paths import Paths

STOP, SUBMISSIONS = "stop", "submissions.json"


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
    """Rename the experiment's folder, so that the next submission starts from nothing. The lease in it stays."""
    parent, _, name = root.rpartition("/")
    files, lease = open_run_dir(parent), f"{name}/{DRIVER}"
    if set(files.list(name)) - {lease}:
        files.move(name, f"{name}.before-{time.strftime('%Y%m%d-%H%M%S')}", leave=lease)


def count_submission(root: str, record: str = "") -> int:
    """Return the number of submissions of the experiment, this one included. record: URI of its tracker."""
    previous = read_json(root, SUBMISSIONS, "count")
    count = (int(previous["count"]) if previous else 0) + 1
    write_file(root, SUBMISSIONS, json.dumps({"count": count, "record": without_password(record)}).encode())
    return count


def delete_files(folder: str) -> None:
    """Delete all files of an experiment or of a run, but the heartbeat of a driver. Repeated, it deletes the rest."""
    files = open_run_dir(folder)
    for key in files.list():
        if key != DRIVER:
            files.delete(key)
    if (local := local_path(folder)) is not None:
        shutil.rmtree(local, ignore_errors=True)


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
            stack.enter_context(bucket_lease(root, warn) if local_path(root) is None else pid_lock(_lock_path(root)))
        except LockedError as error:
            raise IpcnnError(
                f"{(name := root.rpartition('/')[2])} is being trained by another process on this storage\n"
                f"Wait for it or stop it (ipcnn stop {name}); or submit under another name."
            ) from error
        yield


def lock_holder_pid(root: str) -> int | None:
    """Return the id of the process on this machine that trains an experiment in a file system; None without one."""
    return pid_lock_holder(_lock_path(root))


def is_running(root: str) -> bool:
    """Return whether a process trains the experiment. In S3 also true for a driver that died."""
    return lock_holder_pid(root) is not None if local_path(root) is not None else is_leased(root)


def _lock_path(root: str) -> Path:
    folder = Path(root)
    return folder.with_name(f".{folder.name}.lock")
