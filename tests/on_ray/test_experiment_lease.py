"""One driver at a time trains an experiment, in a file system and in S3."""

from __future__ import annotations

import json
import os
import threading

import pytest

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray import experiment_lease
from ipcnn_ray.tracking.storage import open_storage


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(experiment_lease, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(experiment_lease, "LEASE_S", 0.3)
    if request.param == "folder":
        return str(tmp_path / "runs/sweep-12345678")
    request.getfixturevalue("fake_s3")
    return "s3://bucket/runs/sweep-12345678"


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_one_process_holds_an_experiment(root):
    assert not experiment_lease.is_running(root)
    with experiment_lease.exclusive(root, no_warning):
        assert experiment_lease.is_running(root)
        caught: list[BaseException] = []

        def second_driver() -> None:
            try:
                with experiment_lease.exclusive(root, lambda text: None):
                    pass
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=second_driver)
        thread.start()
        thread.join()
        assert isinstance(caught[0], IpcnnError)
        assert str(caught[0]).startswith("sweep-12345678 is being trained by another process on this storage\nWait")
    assert not experiment_lease.is_running(root)
    with experiment_lease.exclusive(root, no_warning):
        pass


def test_the_lock_has_the_id_of_its_process(tmp_path):
    root = str(tmp_path / "sweep-1")
    assert experiment_lease.lock_holder_pid(root) is None
    with experiment_lease.exclusive(root, no_warning):
        assert experiment_lease.lock_holder_pid(root) == os.getpid()
    assert experiment_lease.lock_holder_pid(root) is None


def test_a_lease_without_heartbeat_is_taken_over(fake_s3, monkeypatch):
    monkeypatch.setattr(experiment_lease, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(experiment_lease, "LEASE_S", 0.1)
    root, warnings = "s3://bucket/runs/sweep-1", []
    open_storage(root).put_bytes(json.dumps({"owner": "lost", "beat": 7}).encode(), experiment_lease.DRIVER)
    with experiment_lease.exclusive(root, warnings.append):
        assert json.loads(open_storage(root).get(experiment_lease.DRIVER))["owner"] != "lost"
    assert warnings == [f"{root} has a driver that may still be alive: waiting up to 0 s for its heartbeat"]
    assert open_storage(root).list() == []


def test_of_two_simultaneous_drivers_one_gets_the_lease(fake_s3, monkeypatch):
    monkeypatch.setattr(experiment_lease, "HEARTBEAT_S", 0.05)
    root = "s3://bucket/runs/sweep-1"
    real = experiment_lease.write_file

    def write_and_lose(place, name, data):
        real(place, name, data)
        real(place, name, json.dumps({"owner": "other", "beat": 0}).encode())

    monkeypatch.setattr(experiment_lease, "write_file", write_and_lose)
    with (
        pytest.raises(IpcnnError, match="is being trained by another process"),
        experiment_lease.exclusive(root, no_warning),
    ):
        raise AssertionError("two drivers hold the lease")
    assert json.loads(open_storage(root).get(experiment_lease.DRIVER))["owner"] == "other"
