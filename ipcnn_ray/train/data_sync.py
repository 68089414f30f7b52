"""Copies of datasets and weight files that are in a bucket, one per machine.

    <cache>/staged/<digest>/...     the files below IPCNN_DATA or IPCNN_WEIGHTS, where that is an s3:// URL

The digest covers the names of the files and the checksums that the bucket reports. A bucket that changes gets a new
folder; an existing folder never changes.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train.run_dir import STORAGE_TIMEOUT_S
from ipcnn_ray.utils.files import atomic_folder
from ipcnn_ray.utils.locks import file_lock
from ipcnn_ray.utils.paths import Paths

PARALLEL_DOWNLOADS = 16


def resolve_bucket_paths(paths: Paths) -> Paths:
    """Return the paths with a local folder for each URL. `fetch_to_node` fills these folders on each machine. Raises
    DataError if there are no files at a URL, TrackingError if a bucket cannot be read."""
    data = _local_folder(paths, "IPCNN_DATA", paths.data_url) if paths.data_url else paths.data
    weights = _local_folder(paths, "IPCNN_WEIGHTS", paths.weights_url) if paths.weights_url else paths.weights
    return replace(paths, data=data, weights=weights)


def _local_folder(paths: Paths, name: str, url: str) -> Path:
    digest = _digest(open_storage(url).checksums())
    if not digest:
        raise DataError([Issue(name, f"{url} holds no files", "Check the bucket and the prefix.")])
    return paths.cache / "staged" / digest


def _digest(sums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16] if sums else ""


def fetch_to_node(paths: Paths) -> None:
    """Download what this machine does not have. One process downloads while the others wait. Raises DataError if the
    bucket has changed since `resolve_bucket_paths`."""
    for url, folder in ((paths.data_url, paths.data), (paths.weights_url, paths.weights)):
        if url and folder is not None and not folder.is_dir():
            with file_lock(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    _download(url, folder)


def local_paths(paths: Paths) -> Paths:
    """Return the paths with a local folder for each URL, with all files downloaded."""
    paths = resolve_bucket_paths(paths)
    fetch_to_node(paths)
    return paths


def _download(url: str, folder: Path) -> None:
    files = open_storage(url, STORAGE_TIMEOUT_S)
    with atomic_folder(folder) as partial, ThreadPoolExecutor(PARALLEL_DOWNLOADS) as threads:
        for download in [threads.submit(files.get_file, key, partial / key) for key in files.list()]:
            download.result()
        if _digest(files.checksums()) != folder.name:
            raise DataError([Issue(url, "has changed since the experiment was submitted", "Submit it again.")])
