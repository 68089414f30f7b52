"""Archive, stop requests and study of an experiment, and its one driver at a time, in a file system and in S3.

The lease in a bucket by itself: test_bucket_lease.py.
"""

from __future__ import annotations

import os
import threading

import pytest

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray import bucket_lease, experiment_dir
from ipcnn_ray.on_ray.optuna_searcher import StudyStorage
from ipcnn_ray.tracking.storage import open_storage

BUCKET = "s3://bucket/runs/sweep-12345678"
BUSY = "sweep-12345678 is being trained by another process on this storage\nWait"


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(bucket_lease, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(bucket_lease, "LEASE_S", 0.3)
    if request.param == "folder":
        return str(tmp_path / "runs/sweep-12345678")
    request.getfixturevalue("fake_s3")
    return BUCKET


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_archive_and_stop_requests(root):
    files = open_storage(root)
    experiment_dir.archive(root)
    files.put_bytes(b"1", "r1/result.json")
    files.put_bytes(b"1", "r2/checkpoints/epoch-0001/meta.json")
    assert experiment_dir.finished_runs(root) == {"r1"}
    with experiment_dir.exclusive(root, no_warning):
        experiment_dir.archive(root)
        assert experiment_dir.is_running(root), "the lease of the driver is not part of what is archived"
        assert files.list() == ([bucket_lease.DRIVER] if root == BUCKET else [])
    files.delete(bucket_lease.DRIVER)
    assert files.list() == [] and experiment_dir.finished_runs(root) == set()
    kept = {key.partition("/")[0] for key in open_storage(root.rpartition("/")[0]).list()}
    (archived,) = kept - {".sweep-12345678.lock"}
    assert archived.startswith("sweep-12345678.before-2")

    assert not experiment_dir.stop_requested(root)
    experiment_dir.request_stop(root)
    assert experiment_dir.stop_requested(root)
    for _ in range(2):
        experiment_dir.clear_stop_request(root)
    assert not experiment_dir.stop_requested(root)
    assert [experiment_dir.count_submission(root) for _ in range(3)] == [1, 2, 3]


def test_a_study_in_s3_is_resumed_by_the_next_driver(fake_s3):
    study_storage = StudyStorage("s3://bucket/runs/sweep-1/search")
    study = study_storage.study()
    for value in (0.5, 0.25, None):
        trial = study.ask()
        trial.suggest_float("template.beta", 1, 8)
        if value:
            study.tell(trial, value)

    again = StudyStorage("s3://bucket/runs/sweep-1/search")  # another process: nothing is shared but the bucket
    assert again.sampled_settings() == study_storage.sampled_settings() and len(again.sampled_settings()) == 3
    assert again.finished_trials() == 2 and again.study().best_value == 0.25
    again.close_open_trials(lambda settings: (True, [0.125]))
    assert StudyStorage("s3://bucket/runs/sweep-1/search").study().best_value == 0.125
    assert all(key.startswith("runs/sweep-1/search/journal/") for key in fake_s3.objects)


def test_one_process_holds_an_experiment(root):
    caught: list[BaseException] = []

    def second_driver() -> None:
        try:
            with experiment_dir.exclusive(root, lambda text: None):
                pass
        except BaseException as error:
            caught.append(error)

    for _ in range(2):
        assert not experiment_dir.is_running(root)
        with experiment_dir.exclusive(root, no_warning):
            assert experiment_dir.is_running(root)
            assert root == BUCKET or experiment_dir.lock_holder_pid(root) == os.getpid()
            thread = threading.Thread(target=second_driver)
            thread.start()
            thread.join()
            error = caught.pop()
            assert isinstance(error, IpcnnError) and str(error).startswith(BUSY)
    assert not experiment_dir.is_running(root)
