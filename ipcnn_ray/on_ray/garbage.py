"""What may be deleted: an experiment or a run that a user names, and what no recorded experiment needs.

The first is found by `find_target`, the second by `find_garbage`. Nothing of an experiment that is in progress is
either.
Files are deleted before the record, so that a deletion that was interrupted can be repeated.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from urllib.parse import unquote, urlsplit

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray import experiment_dir
from ipcnn_ray.on_ray.bucket_lease import DRIVER
from ipcnn_ray.report.experiment_record import find_runs
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.storage import is_url, join_path, open_storage
from ipcnn_ray.tracking.tracker import RecordedRun, Tracker
from ipcnn_ray.tracking.tracking_uri import is_server, without_password
from ipcnn_ray.train.run_dir import ATTEMPTS_FILE, RESULT_FILE, WEIGHTS_FILE, read_file
from ipcnn_ray.utils.files import PARTIAL, last_change, size_of
from ipcnn_ray.utils.locks import is_held, remove_lock
from ipcnn_ray.utils.paths import Paths

USED_S = 3600.0
"""Seconds since its last use for which a cache is left alone: a submission may be about to record that it uses it."""
UNFINISHED_S = 86400.0
"""Seconds since its last change after which a temporary file or a lock counts as left behind."""
EXPERIMENT = re.compile(r"([^/]+-[0-9a-f]{8})(?:\.before-\d{8}-\d{6})?")
"""Name of an experiment's folder, or of one that `submit --fresh` set aside; its group is the experiment's id."""
NO_RUNS = {"search", "spool", "ray"}
"""Folders of an experiment that are no runs."""


@dataclass(frozen=True)
class Target:
    """An experiment, or one of its runs, that is to be deleted."""

    name: str
    """Id of the experiment or of the run."""
    root: str
    """Folder of the experiment."""
    folders: tuple[str, ...]
    """Folders in the storage that hold its files."""
    sizes: tuple[int, ...]
    """Bytes of its files."""
    records: tuple[RecordedRun, ...]
    """Its runs in the record: of an experiment its own run first, then its trials."""
    others: tuple[Path, ...] = ()
    """Its files outside the storage: log, and Ray's state of a run whose storage is a bucket."""


@dataclass(frozen=True)
class Garbage:
    """Something that no recorded experiment needs."""

    kind: str
    place: str
    """Path or URL."""
    size: int
    """Bytes."""
    reason: str
    delete: Callable[[], object]


def find_target(tracker: Tracker, paths: Paths, name: str) -> Target:
    """Return what is deleted with an experiment (by name or id) or a run (by id).

    Raises IpcnnError if there is none, or if the name is that of several experiments.
    """
    experiment = "-".join(name.split("-")[:2])
    try:
        found = find_runs(tracker, name)
    except IpcnnError:
        root = join_path(paths.storage, experiment)
        if name != experiment or not EXPERIMENT.fullmatch(name) or set(open_storage(root).list()) <= {DRIVER}:
            raise
        return _experiment_target(paths, experiment, ())  # its record was deleted before its files
    if len(found) > 1:
        names = ", ".join(parent.run_id for parent, _ in found)
        raise IpcnnError(f"{len(found)} experiments are recorded as {name!r}\nGive the id of one: {names}.")
    ((parent, runs),) = found
    if runs[0].run_id == name and runs[0].handle != parent.handle:
        folder = join_path(paths.storage, parent.run_id, runs[0].label)
        sizes = open_storage(folder).sizes()
        root, others = join_path(paths.storage, parent.run_id), _ray_state(paths, folder)
        return Target(name, root, (folder,), (*sizes.values(),), (runs[0],), others)
    return _experiment_target(paths, parent.run_id, (parent, *(run for run in runs if run.handle != parent.handle)))


def _experiment_target(paths: Paths, experiment: str, records: tuple[RecordedRun, ...]) -> Target:
    """The files of an experiment, with those that `submit --fresh` set aside."""
    names, sizes = {experiment}, []
    for key, size in open_storage(paths.storage).sizes().items():
        match = EXPERIMENT.fullmatch(key.partition("/")[0])
        if match and match[1] == experiment:
            names.add(match[0])
            sizes.append(size)
    folders = tuple(join_path(paths.storage, folder) for folder in sorted(names))
    others = (paths.home / "logs" / f"{experiment}.log", *_ray_state(paths, folders[0], f"{experiment}-*"))
    return Target(experiment, folders[0], folders, tuple(sizes), records, tuple(filter(Path.exists, others)))


def _ray_state(paths: Paths, folder: str, runs: str = "") -> tuple[Path, ...]:
    """Ray's state on this machine of an experiment or a run in a bucket. runs: pattern of those of an experiment."""
    if not is_url(folder):
        return ()
    own = experiment_dir.ray_storage_dir(folder, paths).parent
    return (own, *(own.parent.glob(runs) if runs else ()))


def delete_target(target: Target, tracker: Tracker, warn: Callable[[str], None] = lambda text: None) -> None:
    """Delete an experiment or a run: its files for good, then its record, which MLflow marks as deleted.

    warn: Called where it takes a while to see that the driver of an experiment in S3 is dead.
    Raises IpcnnError if the experiment is in progress.
    """
    with experiment_dir.exclusive(target.root, warn):
        for folder in target.folders:
            experiment_dir.delete_files(folder)
        for path in target.others:
            _delete_path(path)
        for record in target.records[:1]:
            tracker.delete(record.handle)


def _delete_path(path: Path) -> None:
    if path.is_dir():
        rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def find_garbage(tracker: MlflowTracker, paths: Paths) -> list[Garbage]:
    """Return what no experiment in the record needs, of the storage, the caches and temporary files of this machine.

    An empty record explains no storage: its experiments are then left out, as are those of another record.
    """
    recorded = [run for name in tracker.experiments() for run in tracker.find(name)]
    found = [*_storage(tracker, paths, recorded), *_caches(tracker, paths, recorded), *_temporary(paths)]
    return [*found, *_deleted_records(tracker)]


def _storage(tracker: MlflowTracker, paths: Paths, recorded: Sequence[RecordedRun]) -> Iterator[Garbage]:
    parents = {run.run_id: run.handle for run in recorded if not run.parent}
    experiments: dict[str, dict[str, int]] = {}
    for key, size in open_storage(paths.storage).sizes().items():
        folder, _, rest = key.partition("/")
        if rest and EXPERIMENT.fullmatch(folder):
            experiments.setdefault(folder, {})[rest] = size
    uri = without_password(tracker.uri)
    for folder, sizes in experiments.items():
        match = EXPERIMENT.fullmatch(folder)
        assert match is not None
        experiment, root = match[1], join_path(paths.storage, folder)
        names = {key.rpartition("/")[2] for key in sizes}
        ours = names & {experiment_dir.SUBMISSIONS, ATTEMPTS_FILE, RESULT_FILE}
        if not ours or experiment_dir.is_running(join_path(paths.storage, experiment)):
            continue
        if any(key.startswith("spool/") for key in sizes):
            continue  # its records were not sent yet
        if experiment in parents:
            if folder == experiment:
                labels = {run.label for run in recorded if run.parent == parents[experiment]}
                yield from _of_recorded(root, sizes, labels)
        elif recorded and _record_of(root) in ("", uri):
            reason = f"not recorded at {uri}"
            delete = partial(_delete_unrecorded, tracker, paths, experiment, root)
            yield Garbage("experiment", root, sum(sizes.values()), reason, delete)

    for lock in [] if is_url(paths.storage) else sorted(Path(paths.storage).glob(".*.lock")):
        folder = lock.name[1:].removesuffix(".lock")
        if EXPERIMENT.fullmatch(folder) and folder not in experiments and _old(lock, UNFINISHED_S):
            yield _lock(lock)


def _record_of(root: str) -> str:
    """Return the record that an experiment was submitted with last; empty if an earlier version submitted it."""
    content = read_file(root, experiment_dir.SUBMISSIONS)
    return str(json.loads(content).get("record", "")) if content else ""


def _delete_unrecorded(tracker: MlflowTracker, paths: Paths, experiment: str, root: str) -> None:
    with experiment_dir.exclusive(join_path(paths.storage, experiment), lambda text: None):
        if tracker.find(experiment.partition("-")[0], experiment):
            return  # submitted since it was found
        experiment_dir.delete_files(root)
        for path in (paths.home / "logs" / f"{experiment}.log", *_ray_state(paths, root, f"{experiment}-*")):
            _delete_path(path)


def _of_recorded(root: str, sizes: Mapping[str, int], labels: set[str]) -> Iterator[Garbage]:
    """Of a recorded experiment that is not in progress: runs without a record, and what ended runs need no more."""
    runs: dict[str, dict[str, int]] = {}
    for key, size in sizes.items():
        label, _, name = key.partition("/")
        if name and label not in NO_RUNS:
            runs.setdefault(label, {})[name] = size
    for label, files in runs.items():
        folder = join_path(root, label)
        delete = partial(_delete_exclusively, root, partial(experiment_dir.delete_files, folder))
        if labels and label not in labels and {RESULT_FILE, ATTEMPTS_FILE} & set(files):
            yield Garbage("run", folder, sum(files.values()), "its record was deleted", delete)
        elif RESULT_FILE in files:
            kinds = ("training", "state", "model") if WEIGHTS_FILE in files else ("training",)
            unneeded = {
                name: size
                for name, size in files.items()
                if name.startswith("checkpoints/") and name.rpartition("/")[2].startswith(kinds)
            }
            delete = partial(_delete_exclusively, root, partial(_delete_keys, folder, [*unneeded]))
            if unneeded:
                place = join_path(folder, "checkpoints")
                yield Garbage("checkpoints", place, sum(unneeded.values()), "the run has ended", delete)


def _delete_exclusively(root: str, delete: Callable[[], None]) -> None:
    with experiment_dir.exclusive(root, lambda text: None):
        delete()


def _delete_keys(folder: str, keys: Sequence[str]) -> None:
    files = open_storage(folder)
    for key in keys:
        files.delete(key)


def _caches(tracker: MlflowTracker, paths: Paths, recorded: Sequence[RecordedRun]) -> Iterator[Garbage]:
    """Crops and features that no recorded run was trained on; copies of buckets while nothing is in progress."""
    used = {run.tags.get(tag) for run in recorded for tag in ("data.digest", "ipcnn.frozen_features")}
    reason = f"used by no run that is recorded at {without_password(tracker.uri)}"
    index = {path: _digest_of(path) for path in (paths.cache / "crops" / "index").glob("*.json")}
    for kind in ("crops", "features"):
        for folder in _folders(paths.cache / kind):
            if folder.name not in used and folder.name != "index":
                entries = [path for path, digest in index.items() if digest == folder.name]
                yield _cached(kind, folder, reason, entries)
    if all(run.state not in ("running", "queued") for run in recorded):
        for folder in _folders(paths.cache / "staged"):
            yield _cached("copy", folder, "copy of a bucket; it is made again when it is needed")
    for lock in sorted(paths.cache.glob("*/*.lock")):
        if not lock.with_suffix("").is_dir() and _old(lock, UNFINISHED_S) and not is_held(lock):
            yield _lock(lock)
    for folder in sorted(paths.cache.glob("*/.[!.]*")):
        lock = folder.with_name(f"{folder.name[1:]}.lock")
        if folder.is_dir() and _old(folder, UNFINISHED_S) and not is_held(lock):
            yield _unfinished(folder)


def _cached(kind: str, folder: Path, reason: str, others: Sequence[Path] = ()) -> Garbage:
    def delete() -> None:
        if _old(folder, USED_S):  # not used since it was found
            for path in (*others, folder):
                _delete_path(path)

    return Garbage(kind, str(folder), size_of(folder), reason, delete)


def _folders(parent: Path) -> list[Path]:
    """Return the complete folders of a cache that nothing uses at present, as far as their times and locks tell."""
    folders = (path for path in sorted(parent.glob("*")) if path.is_dir() and not path.name.startswith("."))
    return [path for path in folders if _old(path, USED_S) and not is_held(path.with_name(f"{path.name}.lock"))]


def _digest_of(index: Path) -> str:
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads(index.read_text())["digest"])
    return ""


def _temporary(paths: Paths) -> Iterator[Garbage]:
    """What killed processes left: files that were being written, and temporary folders."""
    places = [paths.cache, paths.home, *([] if is_url(paths.storage) else [Path(paths.storage)])]
    written = {path for place in places for path in place.rglob(f"{PARTIAL}*")}
    own = {path for path in Path(tempfile.gettempdir()).glob("ipcnn-*") if _is_own(path)}
    for path in sorted(written | own):
        if _old(path, UNFINISHED_S):
            yield _unfinished(path)


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _unfinished(path: Path) -> Garbage:
    reason = "left by a process that was ended"
    return Garbage("temporary", str(path), size_of(path), reason, partial(_delete_path, path))


def _lock(path: Path) -> Garbage:
    return Garbage("lock", str(path), size_of(path), "of something that does not exist", partial(remove_lock, path))


def _old(path: Path, seconds: float) -> bool:
    return last_change(path) < time.time() - seconds


def _deleted_records(tracker: MlflowTracker) -> Iterator[Garbage]:
    """The runs that are marked as deleted in a database of this machine, with their artifacts."""
    deleted = {} if is_server(tracker.uri) else tracker.deleted()
    if deleted:
        folders = [Path(unquote(urlsplit(uri).path)) for uri in deleted.values() if uri.startswith(("file:", "/"))]
        size, count = sum(map(size_of, folders)), len(deleted)
        what = f"{count} {'run' if count == 1 else 'runs'} marked as deleted"
        yield Garbage("record", without_password(tracker.uri), size, what, tracker.purge)
