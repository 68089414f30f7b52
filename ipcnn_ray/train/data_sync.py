"""Datasets and weight files that lie in a bucket, copied to each machine once.

    <cache>/staged/<digest>/...     the files below IPCNN_DATA or IPCNN_WEIGHTS, where that is an s3:// URL

The digest is of the names of the files and of what the bucket says of their contents, so that a changed bucket is
another folder, and a folder is never changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train.run_dir import PATIENCE_S
from ipcnn_ray.utils.paths import Paths

AT_ONCE = 16
"""Files that are copied at the same time."""


def staged(paths: Paths) -> Paths:
    """The places with a folder for each URL, which `bring` fills on every machine. Raises DataError for a URL without
    files, TrackingError for a bucket that cannot be read."""
    data = _folder(paths, "IPCNN_DATA", paths.data_url) if paths.data_url else paths.data
    weights = _folder(paths, "IPCNN_WEIGHTS", paths.weights_url) if paths.weights_url else paths.weights
    return replace(paths, data=data, weights=weights)


def paths_on_node(paths: Paths) -> Paths:
    """The places with all that lies in a bucket brought to this machine."""
    paths = staged(paths)
    bring(paths)
    return paths


def _folder(paths: Paths, name: str, url: str) -> Path:
    digest = _digest(open_storage(url).sums())
    if not digest:
        raise DataError([Issue(name, f"{url} holds no files", "Check the bucket and the prefix.")])
    return paths.cache / "staged" / digest


def _digest(sums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16] if sums else ""


def bring(paths: Paths) -> None:
    """Copy to this machine what it does not have; one process does it, the others wait.

    Raises DataError where the bucket has changed since `staged`.
    """
    for url, folder in ((paths.data_url, paths.data), (paths.weights_url, paths.weights)):
        if url and folder is not None and not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    _copy(url, folder)


def _copy(url: str, folder: Path) -> None:
    files, making = open_storage(url, PATIENCE_S), folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)  # of a process that was killed while it copied
    making.mkdir()
    keys = files.list()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for done in [threads.submit(files.get_file, key, making / key) for key in keys]:
            done.result()
    if _digest(files.sums()) != folder.name:
        shutil.rmtree(making)
        raise DataError([Issue(url, "has changed since the experiment was submitted", "Submit it again.")])
    making.replace(folder)
