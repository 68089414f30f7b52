"""Storages: the same contract for a folder and a bucket, retries, and errors of stores that lose data."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
from pathlib import Path

import pytest

from ipcnn_ray.errors import TrackingError, UnreachableError
from ipcnn_ray.tracking import s3_storage
from ipcnn_ray.tracking.storage import PARTIAL, PREFLIGHT_BYTES, LocalStorage, Storage, open_storage, preflight


@pytest.fixture(params=["local", "s3", "s3 without a prefix"])
def storage(request, tmp_path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "store"))
    request.getfixturevalue("fake_s3")
    return open_storage("s3://bucket/some/prefix/" if request.param == "s3" else "s3://bucket")


def test_the_contract_of_a_storage(storage, tmp_path):
    local = tmp_path / "weights"
    local.write_bytes(b"new weights")
    storage.put_bytes(b"old", "run/deep/weights")
    storage.put_file(local, "run/deep/weights")
    storage.put_bytes(b"", "run/empty")
    assert storage.get("run/deep/weights") == b"new weights"
    assert storage.get("run/empty") == b""
    assert [storage.find(key) for key in ("run/deep/weights", "run/empty", "run", "none", "run/empty/none")] == [
        b"new weights",
        b"",
        None,
        None,
        None,
    ]
    storage.get_file("run/deep/weights", tmp_path / "deep/copy")
    assert (tmp_path / "deep/copy").read_bytes() == b"new weights"
    assert storage.exists("run/empty")
    assert not storage.exists("run")
    with pytest.raises(TrackingError, match=r"nothing/here cannot be read"):
        storage.get("nothing/here")
    assert pickle.loads(pickle.dumps(storage)).get("run/deep/weights") == b"new weights"

    for key in ("run-1/a", "top"):
        storage.put_bytes(b"1", key)
    assert storage.list() == ["run-1/a", "run/deep/weights", "run/empty", "top"]
    assert storage.sizes() == {"run-1/a": 1, "run/deep/weights": 11, "run/empty": 0, "top": 1}
    assert storage.list("run") == ["run/deep/weights", "run/empty"]
    assert storage.list("run-2") == []
    for _ in range(2):  # a missing file is not an error
        storage.delete("top")
    storage.move("run", "aside/run.before")
    assert storage.list() == ["aside/run.before/deep/weights", "aside/run.before/empty", "run-1/a"]
    assert storage.get("aside/run.before/deep/weights") == b"new weights"
    storage.move("aside", "again", leave="aside/run.before/empty")
    assert storage.list() == ["again/run.before/deep/weights", "aside/run.before/empty", "run-1/a"]
    assert preflight(storage.url).list() == storage.list()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../out", "a//b", "a/./b"])
def test_a_key_stays_in_its_store(storage, key):
    with pytest.raises(ValueError, match="must be a relative path"):
        storage.put_bytes(b"1", key)


def test_unknown_kinds_of_storage():
    with pytest.raises(TrackingError, match=r"'gs://b/x' is of no known kind\nGive a path, or s3://"):
        open_storage("gs://b/x")
    with pytest.raises(TrackingError, match=r"names no bucket"):
        open_storage("s3:///x")


def test_a_local_file_is_whole_or_absent(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    storage.put_bytes(b"old", "a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrackingError, match=r"a was not stored: No space left on device\nCheck that the folder"):
        storage.put_bytes(b"new", "a")
    assert storage.get("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / f"{PARTIAL}1234").write_bytes(b"half")
    assert storage.list() == ["a"]


def test_local_folder_that_is_a_file(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(TrackingError, match=r"store: preflight-\w+ was not stored: .*\nCheck that the folder"):
        preflight(str(tmp_path / "store"))


@pytest.fixture
def large(tmp_path) -> Path:
    """9 MiB: boto3 sends it in two parts."""
    path = tmp_path / "large"
    path.write_bytes(secrets.token_bytes(9 << 20))
    return path


def test_large_files_go_in_parts(fake_s3, large, tmp_path):
    storage = open_storage("s3://bucket/p")
    storage.put_file(large, "large")
    assert sum("partNumber" in request for request in fake_s3.requests) == 2
    storage.get_file("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


@pytest.mark.parametrize(
    ("status", "timeout", "advice"),
    [(403, 0.0, "Check the credentials"), (503, 0.0, "Try again"), (403, 60.0, "Check the credentials")],
)
def test_a_part_that_fails_is_an_error(fake_s3, large, status, timeout, advice):
    """Wrong credentials are not waited for."""
    fake_s3.refuse_parts = status
    with pytest.raises(TrackingError, match=rf"large was not stored: (.|\n)*{advice}") as caught:
        open_storage("s3://bucket/p", timeout).put_file(large, "large")
    assert isinstance(caught.value, UnreachableError) == (status == 503)
    assert fake_s3.objects == {}


def test_a_server_that_is_busy_or_away_is_asked_again(fake_s3, monkeypatch):
    monkeypatch.setattr(s3_storage, "PAUSE_S", 0.01)
    fake_s3.busy = 1
    open_storage("s3://bucket/p").put_bytes(b"1", "a")
    assert fake_s3.objects == {"p/a": b"1"}
    left = [True] * 5
    fake_s3.gone = lambda request: bool(left) and left.pop()
    open_storage("s3://bucket/p", timeout=60).put_bytes(b"2", "a")
    assert fake_s3.objects == {"p/a": b"2"} and not left
    fake_s3.gone = lambda request: True
    with pytest.raises(UnreachableError, match="a cannot be read"):
        open_storage("s3://bucket/p", timeout=0.05).get("a")


def test_a_server_that_is_not_there_is_waited_for(fake_s3, monkeypatch):
    """Nobody listens at its port: another error than no answer."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    there = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    away = open_storage("s3://bucket/p", timeout=0.05)
    for request in (lambda: away.get("a"), lambda: away.exists("a"), away.list, lambda: away.put_bytes(b"1", "a")):
        with pytest.raises(UnreachableError, match="Check that the server is up and AWS_ENDPOINT_URL is right"):
            request()
    pauses = []

    def comes_back(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            monkeypatch.setenv("AWS_ENDPOINT_URL", there)

    monkeypatch.setattr("ipcnn_ray.tracking.s3_storage.time.sleep", comes_back)
    open_storage("s3://bucket/p", timeout=60).put_bytes(b"1", "a")
    assert fake_s3.objects == {"p/a": b"1"} and len(pauses) >= 3


def test_an_upload_that_loses_bytes_is_an_error_and_leaves_nothing(fake_s3):
    fake_s3.keep = 3
    with pytest.raises(TrackingError, match=r"a was stored with 3 of its 5 bytes\nThe server loses data"):
        open_storage("s3://bucket/p").put_bytes(b"12345", "a")
    assert fake_s3.objects == {}


def test_preflight_of_a_bucket(fake_s3, monkeypatch):
    fake_s3.garble = True
    with pytest.raises(TrackingError, match=rf"{PREFLIGHT_BYTES} bytes were written and {PREFLIGHT_BYTES} other"):
        preflight("s3://bucket/p")
    assert fake_s3.objects == {}
    with pytest.raises(TrackingError, match=r"NoSuchBucket(.|\n)*Create the bucket, or name another one"):
        preflight("s3://other/p")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(TrackingError, match=r"Unable to locate credentials\nSet AWS_ACCESS_KEY_ID"):
        preflight("s3://bucket/p")
