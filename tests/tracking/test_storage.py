"""The two stores hold the same promises; what a store that loses data leads to."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
from pathlib import Path

import pytest

from ipcnn_ray.errors import TrackingError, UnreachableError
from ipcnn_ray.tracking.storage import PARTIAL, PREFLIGHT_BYTES, LocalStorage, Storage, open_storage, preflight


@pytest.fixture(params=["local", "s3", "s3 without a prefix"])
def storage(request, tmp_path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "store"))
    request.getfixturevalue("fake_s3")
    return open_storage("s3://bucket/some/prefix/" if request.param == "s3" else "s3://bucket")


def test_what_is_put_is_there(storage, tmp_path):
    local = tmp_path / "weights"
    local.write_bytes(b"new weights")
    storage.put_bytes(b"old", "run/epoch-1/weights")
    storage.put_file(local, "run/epoch-1/weights")
    storage.put_bytes(b"", "run/empty")
    assert storage.get("run/epoch-1/weights") == b"new weights"
    assert storage.get("run/empty") == b""
    storage.get_file("run/epoch-1/weights", tmp_path / "deep/copy")
    assert (tmp_path / "deep/copy").read_bytes() == b"new weights"
    assert storage.exists("run/empty")
    assert not storage.exists("run")


def test_a_folder_is_listed_by_whole_names(storage):
    for key in ("run-1/b", "run-1/a/x", "run-10/c", "top"):
        storage.put_bytes(b"1", key)
    assert storage.list() == ["run-1/a/x", "run-1/b", "run-10/c", "top"]
    assert storage.list("run-1") == ["run-1/a/x", "run-1/b"]
    assert storage.list("run-2") == []


def test_delete_may_be_repeated(storage):
    storage.put_bytes(b"1", "a")
    storage.delete("a")
    storage.delete("a")
    assert storage.list() == []


def test_a_folder_is_moved(storage):
    for key in ("run/a", "run/deep/b", "run-1/a"):
        storage.put_bytes(key.encode(), key)
    storage.move("run", "aside/run.before")
    assert storage.list() == ["aside/run.before/a", "aside/run.before/deep/b", "run-1/a"]
    assert storage.get("aside/run.before/deep/b") == b"run/deep/b"


def test_a_file_that_is_not_there(storage):
    with pytest.raises(TrackingError, match=r"nothing/here cannot be read"):
        storage.get("nothing/here")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../out", "a//b", "a/./b"])
def test_a_key_stays_in_its_store(storage, key):
    with pytest.raises(ValueError, match="must be a relative path"):
        storage.put_bytes(b"1", key)


def test_it_pickles(storage):
    storage.put_bytes(b"1", "a")
    assert pickle.loads(pickle.dumps(storage)).get("a") == b"1"


def test_preflight_leaves_nothing(storage):
    assert preflight(storage.url).list() == []


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
    assert storage.list() == ["a"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(PARTIAL)]


def test_files_in_the_making_are_not_listed(tmp_path):
    (tmp_path / f"{PARTIAL}1234").write_bytes(b"half")
    assert LocalStorage(tmp_path).list() == []


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


@pytest.mark.parametrize(("status", "advice"), [(403, "Check the credentials"), (503, "Try again")])
def test_a_part_that_fails_is_an_error(fake_s3, large, status, advice):
    fake_s3.refuse_parts = status
    with pytest.raises(TrackingError, match=rf"large was not stored: (.|\n)*{advice}"):
        open_storage("s3://bucket/p").put_file(large, "large")
    assert fake_s3.objects == {}


def test_a_busy_server_is_asked_again(fake_s3):
    fake_s3.busy = 1
    open_storage("s3://bucket/p").put_bytes(b"1", "a")
    assert fake_s3.objects == {"p/a": b"1"}


def test_a_server_that_is_away_is_waited_for(fake_s3, monkeypatch):
    monkeypatch.setattr("ipcnn_ray.tracking.s3_storage.PAUSE_S", 0.01)
    left = [True] * 5
    fake_s3.gone = lambda request: bool(left) and left.pop()
    open_storage("s3://bucket/p", timeout=60).put_bytes(b"1", "a")
    assert fake_s3.objects == {"p/a": b"1"} and not left
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
    for ask in (lambda: away.get("a"), lambda: away.exists("a"), away.list, lambda: away.put_bytes(b"1", "a")):
        with pytest.raises(UnreachableError, match="Check that the server is up"):
            ask()
    pauses = []

    def comes_back(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            monkeypatch.setenv("AWS_ENDPOINT_URL", there)

    monkeypatch.setattr("ipcnn_ray.tracking.s3_storage.time.sleep", comes_back)
    open_storage("s3://bucket/p", timeout=60).put_bytes(b"1", "a")
    assert fake_s3.objects == {"p/a": b"1"} and len(pauses) >= 3


def test_nobody_waits_for_credentials_to_become_right(fake_s3, large):
    fake_s3.refuse_parts = 403
    with pytest.raises(TrackingError, match="large was not stored") as caught:
        open_storage("s3://bucket/p", timeout=60).put_file(large, "large")
    assert not isinstance(caught.value, UnreachableError)


def test_an_upload_that_loses_bytes_is_an_error_and_leaves_nothing(fake_s3):
    fake_s3.keep = 3
    with pytest.raises(TrackingError, match=r"a was stored with 3 of its 5 bytes\nThe server loses data"):
        open_storage("s3://bucket/p").put_bytes(b"12345", "a")
    assert fake_s3.objects == {}


def test_preflight_compares_the_content(fake_s3):
    fake_s3.garble = True
    with pytest.raises(TrackingError, match=rf"{PREFLIGHT_BYTES} bytes were written and {PREFLIGHT_BYTES} other"):
        preflight("s3://bucket/p")
    assert fake_s3.objects == {}


def test_preflight_of_a_bucket_that_is_not_there(fake_s3):
    with pytest.raises(TrackingError, match=r"NoSuchBucket(.|\n)*Create the bucket, or name another one"):
        preflight("s3://other/p")


def test_preflight_without_credentials(fake_s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(TrackingError, match=r"Unable to locate credentials\nSet AWS_ACCESS_KEY_ID"):
        preflight("s3://bucket/p")


def test_preflight_without_a_server(fake_s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"Check that the server is up and AWS_ENDPOINT_URL is right"):
        preflight("s3://bucket/p")
