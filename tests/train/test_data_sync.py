"""Data in a bucket: copied once, whole, and by its digest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ipcnn_ray.errors import DataError
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train import data_sync
from ipcnn_ray.train.data_sync import fetch_to_node, local_paths, resolve_bucket_paths
from ipcnn_ray.utils.paths import Paths

URL = "s3://bucket/datasets"


@pytest.fixture
def paths(fake_s3, tmp_path) -> Paths:
    for key in ("voc/JPEGImages/1.jpg", "voc/JPEGImages/2.jpg", "voc/list.txt"):
        open_storage(URL).put_bytes(key.encode(), key)
    open_storage("s3://bucket/weights").put_bytes(b"w", "alexnet.npz")
    env = {"IPCNN_HOME": str(tmp_path), "IPCNN_DATA": URL, "IPCNN_WEIGHTS": "s3://bucket/weights"}
    return Paths.from_environment(env)


def test_a_folder_of_this_machine_stands_for_the_bucket(paths):
    assert paths.data is None and paths.weights is None
    local = resolve_bucket_paths(paths)
    assert local.data.parent == paths.cache / "staged" and not local.data.exists()
    assert local_paths(paths) == local
    assert (local.data / "voc/JPEGImages/2.jpg").read_text() == "voc/JPEGImages/2.jpg"
    assert [path.name for path in local.weights.iterdir()] == ["alexnet.npz"]
    assert resolve_bucket_paths(paths) == local


def test_many_processes_copy_once(paths, fake_s3):
    local = resolve_bucket_paths(paths)
    fake_s3.requests.clear()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: fetch_to_node(local), range(8)))
    assert sum(request.startswith("GET") and request.endswith("list.txt") for request in fake_s3.requests) == 1


def test_a_bucket_that_changes_meanwhile(paths):
    local = resolve_bucket_paths(paths)
    open_storage(URL).put_bytes(b"another", "voc/list.txt")
    assert resolve_bucket_paths(paths).data != local.data
    with pytest.raises(DataError, match="s3://bucket/datasets  has changed since the experiment was submitted"):
        fetch_to_node(local)
    assert not local.data.exists()


def test_a_copy_that_is_torn_leaves_nothing(paths, fake_s3, monkeypatch):
    monkeypatch.setattr(data_sync, "STORAGE_TIMEOUT_S", 0)
    local = resolve_bucket_paths(paths)
    fake_s3.gone = lambda request: request.endswith("2.jpg")
    with pytest.raises(Exception, match=r"2\.jpg cannot be copied"):
        fetch_to_node(local)
    assert not local.data.exists()
    fake_s3.gone = None
    fetch_to_node(local)
    assert (local.data / "voc/list.txt").is_file()


def test_a_url_without_files(paths):
    empty = Paths.from_environment({"IPCNN_HOME": str(paths.home), "IPCNN_DATA": "s3://bucket/nothing"})
    with pytest.raises(DataError, match="IPCNN_DATA  s3://bucket/nothing holds no files"):
        resolve_bucket_paths(empty)


def test_folders_are_left_alone(tmp_path):
    paths = Paths.from_environment({"IPCNN_HOME": str(tmp_path), "IPCNN_DATA": str(tmp_path / "data")})
    assert resolve_bucket_paths(paths) == paths
    fetch_to_node(paths)
