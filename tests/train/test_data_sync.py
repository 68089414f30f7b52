"""Data in a bucket: copied once, whole, and by its digest."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from torchvision.models import ResNet18_Weights

from ipcnn_ray.errors import DataError
from ipcnn_ray.models.named_weights import named_weights
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train import data_sync
from ipcnn_ray.train.data_sync import fetch_to_node, fetch_weights, local_paths, resolve_bucket_paths, weights_to_node
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


NAMED = Model(network="resnet18", cut="layer1.1", weights=Weights(torchvision="DEFAULT"))


@pytest.fixture
def published(tmp_path, monkeypatch) -> str:
    """A file at the address of torchvision's ResNet-18."""
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    (tmp_path / "publisher").mkdir()
    (tmp_path / "publisher" / f"resnet18-{digits}.pth").write_bytes(b"weights")
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", f"file://{tmp_path}/publisher/resnet18-{digits}.pth")
    return f"resnet18-{digits}.pth"


def test_published_weights_reach_the_machines_of_a_cluster_through_the_storage(tmp_path, published, monkeypatch):
    storage = tmp_path / "storage"
    submits, node = (
        Paths.from_environment({"IPCNN_HOME": str(tmp_path / name), "IPCNN_STORAGE": str(storage)})
        for name in ("submits", "node")
    )
    models = [NAMED, NAMED.model_copy(update={"cut": "layer1.0"}), Model(network="compact")]
    fetch_weights(models, submits, shared=False)
    assert (submits.home / "weights" / published).read_bytes() == b"weights" and not storage.exists()
    fetch_weights(models, submits, shared=True)
    assert [path.name for path in (storage / "weights").iterdir()] == [published]
    (tmp_path / "publisher" / published).unlink()  # a worker downloads nothing
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: weights_to_node(NAMED, node), range(4)))
    assert named_weights(NAMED).path(node).read_bytes() == b"weights"
    fetch_weights(models, submits, shared=True)


def test_a_worker_without_the_weights_leaves_the_message_to_the_loader(tmp_path, published):
    paths = Paths.from_environment({"IPCNN_HOME": str(tmp_path / "node")})
    weights_to_node(NAMED, paths)
    weights_to_node(Model(network="compact"), paths)
    assert not named_weights(NAMED).path(paths).exists()


def test_weights_in_a_bucket_need_no_download(paths, published, tmp_path):
    open_storage("s3://bucket/weights").put_bytes(b"weights", published)
    (tmp_path / "publisher" / published).unlink()
    local = local_paths(paths)
    fetch_weights([NAMED], local, shared=False)
    assert named_weights(NAMED).path(local) == local.weights / published
    with pytest.raises(DataError, match=r"put it here as .*/weights/resnet18-"):
        fetch_weights([NAMED], replace(local, weights=tmp_path / "nowhere"), shared=False)
