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

from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train.folder import PATIENCE_S

AT_ONCE = 16
"""Files that are copied at the same time."""


def staged(places: Places) -> Places:
    """The places with a folder for each URL, which `bring` fills on every machine. Raises DataError for a URL without
    files, TrackingError for a bucket that cannot be read."""
    data = _folder(places, "IPCNN_DATA", places.data_url) if places.data_url else places.data
    weights = _folder(places, "IPCNN_WEIGHTS", places.weights_url) if places.weights_url else places.weights
    return replace(places, data=data, weights=weights)


def brought(places: Places) -> Places:
    """The places with all that lies in a bucket brought to this machine."""
    places = staged(places)
    bring(places)
    return places


def _folder(places: Places, name: str, url: str) -> Path:
    digest = _digest(open_storage(url).sums())
    if not digest:
        raise DataError([Problem(name, f"{url} holds no files", "Check the bucket and the prefix.")])
    return places.cache / "staged" / digest


def _digest(sums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16] if sums else ""


def bring(places: Places) -> None:
    """Copy to this machine what it does not have; one process does it, the others wait.

    Raises DataError where the bucket has changed since `staged`.
    """
    for url, folder in ((places.data_url, places.data), (places.weights_url, places.weights)):
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
        raise DataError([Problem(url, "has changed since the experiment was submitted", "Submit it again.")])
    making.replace(folder)
