"""Locks between processes."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from ipcnn_ray.utils import locks
from ipcnn_ray.utils.locks import LockedError, file_lock, is_held, pid_lock, pid_lock_holder, remove_lock


def by_flock(path):
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file.close


def by_filelock(path):
    lock = FileLock(path)
    lock.acquire()
    return lock.release


@pytest.mark.parametrize("hold", [by_flock, by_filelock])
@pytest.mark.parametrize("lock", [lambda path: file_lock(path, timeout=0), pid_lock])
def test_locks_exclude_those_of_earlier_versions(tmp_path, hold, lock):
    """Earlier versions call flock themselves, or use filelock."""
    release = hold(tmp_path / "lock")
    with pytest.raises(LockedError, match="lock"), lock(tmp_path / "lock"):
        pass
    release()
    with lock(tmp_path / "lock"), pytest.raises(BlockingIOError), (tmp_path / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_folder_is_created_and_the_lock_file_stays(tmp_path):
    for _ in range(2):
        with file_lock(tmp_path / "new" / "lock"):
            assert (tmp_path / "new" / "lock").is_file()
    assert (tmp_path / "new" / "lock").is_file()


def test_a_lock_is_free_after_an_exception(tmp_path):
    for lock in (file_lock(tmp_path / "a", timeout=0), pid_lock(tmp_path / "b")):
        with pytest.raises(KeyError), lock:
            raise KeyError
    with file_lock(tmp_path / "a", timeout=0), pid_lock(tmp_path / "b"):
        pass


def test_a_long_wait_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "NOTICE_S", 0.1)
    release = by_flock(tmp_path / "lock")
    threading.Timer(0.5, release).start()
    with caplog.at_level(logging.WARNING), file_lock(tmp_path / "lock"):
        assert caplog.messages == [f"waiting for another process that holds {tmp_path / 'lock'}"]


def test_the_holder_of_a_pid_lock_is_known(tmp_path):
    path = tmp_path / "lock"
    assert pid_lock_holder(path) is None
    script = (
        "import sys; from pathlib import Path; from ipcnn_ray.utils.locks import pid_lock\n"
        "with pid_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    assert [pid_lock_holder(path) for _ in range(2)] == [child.pid] * 2, "asking does not erase it"
    child.kill()
    child.wait()
    assert pid_lock_holder(path) is None
    with pid_lock(path):
        assert path.read_text() == str(os.getpid())


@pytest.mark.parametrize("lock", [file_lock, pid_lock])
def test_a_lock_that_is_held_is_not_removed(tmp_path, lock):
    path = tmp_path / "a.lock"
    assert not is_held(path)
    remove_lock(path)
    with lock(path):
        assert is_held(path)
        remove_lock(path)
        assert path.exists()
    assert not is_held(path)
    remove_lock(path)
    assert not path.exists()
