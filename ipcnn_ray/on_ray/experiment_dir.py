"""An experiment's place in the storage: who works on it, what was put aside, and whether somebody wants it to stop.

<storage>/<experiment>/                    everything of the experiment; `folder` of a run is a folder in it
<storage>/<experiment>/stop                somebody asked the runs to end after their epoch
<storage>/<experiment>/submissions.json    how often it was submitted
<storage>/<experiment>/driver.json         in a bucket: the process that works on it, with its pulse
<storage>/.<experiment>.lock               in a file system: the lock of that process, with its id
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
from ipcnn_ray.tracking.storage import below, open_storage
from ipcnn_ray.train.run_dir import local_path, open_run_dir, read_file, write_file
from ipcnn_ray.utils.locks import LockedError, pid_lock, pid_lock_holder
from ipcnn_ray.utils.paths import Paths

STOP, SUBMISSIONS, DRIVER = "stop", "submissions.json", "driver.json"
PULSE_S = 10.0
"""A process that works on an experiment in a bucket says so that often."""
LEASE_S = 60.0
"""Without a pulse for so long it is taken for lost."""


def experiment_folder(spec: ExperimentSpec, paths: Paths) -> str:
    """Where an experiment keeps its runs and the state of its search: a path or an s3:// URL."""
    return below(paths.storage, experiment_id(spec))


def notes(root: str, paths: Paths) -> Path:
    """Ray's own notes of an experiment or a run, which nobody needs again: on this machine's disk."""
    return (local_path(root) or paths.home / "notes" / "-".join(root.split("/")[-2:])) / "ray"


def ended_before(root: str) -> set[str]:
    """Labels of the runs that have a result."""
    if (here := local_path(root)) is not None:
        return {file.parent.name for file in here.glob("*/result.json")}
    keys = [key.split("/") for key in open_run_dir(root).list()]
    return {key[0] for key in keys if len(key) == 2 and key[1] == "result.json"}


def archive(root: str) -> None:
    """Give what is there another name, so that everything begins anew."""
    above, _, name = root.rpartition("/")
    files = open_run_dir(above)
    if files.list(name):
        files.move(name, f"{name}.before-{time.strftime('%Y%m%d-%H%M%S')}")


def count_submission(root: str) -> int:
    """How often the experiment has been submitted, this time included."""
    found = read_file(root, SUBMISSIONS)
    count = (int(json.loads(found)["count"]) if found else 0) + 1
    write_file(root, SUBMISSIONS, json.dumps({"count": count}).encode())
    return count


def request_stop(root: str) -> None:
    """The runs end after the epoch that they are in; submitted again, the experiment goes on from there."""
    write_file(root, STOP, b"")


def stop_requested(root: str) -> bool:
    return open_run_dir(root).exists(STOP)


def clear_stop_request(root: str) -> None:
    open_run_dir(root).delete(STOP)


@contextmanager
def alone(root: str, tell: Callable[[str], None]) -> Iterator[None]:
    """One process at a time works on an experiment. Raises IpcnnError when another one does."""
    if local_path(root) is None:
        with _leased(root, tell):
            yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(pid_lock(_lock(root)))
        except LockedError as error:
            raise _busy(root) from error
        yield


def lock_holder_pid(root: str) -> int | None:
    """Id of this machine's process that works on an experiment in a file system; None where there is none."""
    return pid_lock_holder(_lock(root))


def at_work(root: str) -> bool:
    """Whether some process works on the experiment, or did until a moment ago."""
    return lock_holder_pid(root) is not None if local_path(root) is not None else read_file(root, DRIVER) is not None


def _lock(root: str) -> Path:
    folder = Path(root)
    return folder.with_name(f".{folder.name}.lock")


def _busy(root: str) -> IpcnnError:
    return IpcnnError(
        f"{root.rpartition('/')[2]} is being trained by another process on this storage\n"
        "Wait for it or stop it; or submit under another name."
    )


@contextmanager
def _leased(root: str, tell: Callable[[str], None]) -> Iterator[None]:
    """A bucket has no locks: whoever works on an experiment changes a file in it again and again. Where that file
    stays as it is, its owner is lost; no clock is compared with another."""
    before = read_file(root, DRIVER)
    if before is not None:
        tell(f"{root} was left by a process that may still live: waiting up to {LEASE_S:.0f} s for its pulse")
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end and (now := read_file(root, DRIVER)) is not None:
            if now != before:
                raise _busy(root)
            time.sleep(min(1.0, PULSE_S))
    me, done = secrets.token_hex(8), threading.Event()

    def pulse(beat: int) -> bytes:
        return json.dumps({"owner": me, "beat": beat}).encode()

    def beats() -> None:
        files, beat = open_storage(root), 0
        while not done.wait(PULSE_S):
            with suppress(TrackingError):  # a storage that is away is away for the others, too
                if json.loads(files.get(DRIVER))["owner"] != me:
                    return
                files.put_bytes(pulse(beat := beat + 1), DRIVER)

    write_file(root, DRIVER, pulse(0))
    time.sleep(min(1.0, PULSE_S))  # of two that came at the same time one has written last
    if read_file(root, DRIVER) != pulse(0):
        raise _busy(root)
    heart = threading.Thread(target=beats, daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join(PULSE_S)
        found = read_file(root, DRIVER)
        if found is not None and json.loads(found)["owner"] == me:
            open_run_dir(root).delete(DRIVER)
