"""Files and folders that appear whole."""

from __future__ import annotations

import hashlib
import io
import os
import time

import pytest

from ipcnn_ray.utils.files import atomic_folder, checked_key, last_change, mark_used, sha256_of, size_of, write_atomic


@pytest.mark.parametrize("content", [b"new", io.BytesIO(b"new")])
def test_a_file_is_replaced_whole(tmp_path, content):
    write_atomic(tmp_path / "deep" / "file", b"old content")
    write_atomic(tmp_path / "deep" / "file", content)
    assert (tmp_path / "deep" / "file").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_whole_keeps_its_content(tmp_path):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError("no space left")

    write_atomic(tmp_path / "file", b"old")
    with pytest.raises(OSError, match="no space left"):
        write_atomic(tmp_path / "file", Broken())
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "cache" / "key"
    for content in ("first", "second"):
        (tmp_path / "cache" / ".key" / "left").mkdir(parents=True, exist_ok=True)  # of a killed process
        with atomic_folder(target) as partial:
            (partial / "file").write_text(content)
            assert partial == tmp_path / "cache" / ".key"
            assert not target.exists() or (target / "file").read_text() == "first"
        assert [(path.name, path.read_text()) for path in target.iterdir()] == [("file", content)]
        assert not partial.exists()


def test_a_folder_that_was_not_finished_leaves_nothing(tmp_path):
    with atomic_folder(tmp_path / "key") as partial:
        (partial / "file").write_text("old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "key") as partial:
        (partial / "file").write_text("new")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key" / "file").read_text() == "old"


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"\x00" * (1 << 20))
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"\x00" * (1 << 20)).hexdigest()


def test_size_and_last_change_are_those_of_all_files(tmp_path):
    assert size_of(tmp_path / "gone") == 0 and last_change(tmp_path / "gone") == 0
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "one").write_bytes(b"123")
    (folder / "inner" / "two").write_bytes(b"12345")
    assert (size_of(folder), size_of(folder / "one")) == (8, 3)
    for path in (folder / "one", folder / "inner" / "two", folder / "inner", folder):
        os.utime(path, (0, 1000))
    os.utime(folder / "inner" / "two", (0, 2000))
    assert (last_change(folder), last_change(folder / "one")) == (2000, 1000)
    mark_used(folder)
    assert abs(last_change(folder) - time.time()) < 60
    mark_used(tmp_path / "gone")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b"])
def test_keys_stay_in_their_store(key):
    with pytest.raises(ValueError, match=r"key = .* must be a relative path"):
        checked_key(key)
    assert checked_key("a/b.json") == "a/b.json"
