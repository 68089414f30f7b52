"""Copies of datasets and weight files that are in a bucket, one per machine, and downloads of published weights.

    <cache>/staged/<digest>/...     the files below IPCNN_DATA or IPCNN_WEIGHTS, where that is an s3:// URL

    <storage>/weights/<file>        published weights, for the other machines of a cluster

The digest covers the names of the files and the checksums that the bucket reports. A bucket that changes gets a new
folder; an existing folder never changes. Published weights are downloaded by the process that submits, never by a
worker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ipcnn_ray.data.datasets.dataset import Archive
from ipcnn_ray.data.fetch import Progress, fetch_file
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.models.named_weights import named_weights
from ipcnn_ray.spec.model import Model
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train.run_dir import STORAGE_TIMEOUT_S
from ipcnn_ray.utils.files import atomic_folder
from ipcnn_ray.utils.locks import file_lock
from ipcnn_ray.utils.paths import Paths

PARALLEL_DOWNLOADS = 16
SHARED_WEIGHTS = "weights"
"""Folder of the storage that holds published weights."""


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


def fetch_weights(models: Sequence[Model], paths: Paths, shared: bool, progress: Progress | None = None) -> None:
    """Download the published weights that models name, if they are not on this machine.

    paths: With local folders, as of `local_paths`. shared: Also put them into the storage, for the other machines of
    a cluster. Raises DataError if an address cannot be read or a file is not the published one, TrackingError if the
    storage cannot be written.
    """
    for named in dict.fromkeys(named for model in models if (named := named_weights(model))):
        path = named.path(paths)
        fetch_file(Archive(named.url, (), sha256=named.sha256), path, progress)
        storage, key = open_storage(paths.storage), f"{SHARED_WEIGHTS}/{path.name}"
        if shared and not storage.exists(key):
            storage.put_file(path, key)


def weights_to_node(model: Model, paths: Paths) -> None:
    """Copy the published weights that a model names from the storage, if they are not on this machine."""
    named = named_weights(model)
    if named is None or named.path(paths).is_file():
        return
    folder = paths.home / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    storage, key = open_storage(paths.storage, STORAGE_TIMEOUT_S), f"{SHARED_WEIGHTS}/{named.file}"
    with file_lock(folder / f".{named.file}.lock"):
        if not named.path(paths).is_file() and storage.exists(key):
            storage.get_file(key, folder / named.file)


def _download(url: str, folder: Path) -> None:
    files = open_storage(url, STORAGE_TIMEOUT_S)
    with atomic_folder(folder) as partial, ThreadPoolExecutor(PARALLEL_DOWNLOADS) as threads:
        for download in [threads.submit(files.get_file, key, partial / key) for key in files.list()]:
            download.result()
        if _digest(files.checksums()) != folder.name:
            raise DataError([Issue(url, "has changed since the experiment was submitted", "Submit it again.")])
