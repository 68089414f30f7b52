"""Archive, stop requests and study of an experiment, in a file system and in S3."""

from __future__ import annotations

import pytest

from ipcnn_ray.on_ray import experiment_dir
from ipcnn_ray.on_ray.search_space import StudyStorage
from ipcnn_ray.tracking.storage import open_storage


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path) -> str:
    if request.param == "folder":
        return str(tmp_path / "runs/sweep-12345678")
    request.getfixturevalue("fake_s3")
    return "s3://bucket/runs/sweep-12345678"


def test_archive(root):
    files = open_storage(root)
    experiment_dir.archive(root)
    files.put_bytes(b"1", "r1/result.json")
    files.put_bytes(b"1", "r2/checkpoints/epoch-0001/meta.json")
    assert experiment_dir.finished_runs(root) == {"r1"}
    experiment_dir.archive(root)
    assert files.list() == [] and experiment_dir.finished_runs(root) == set()
    parent = open_storage(root.rpartition("/")[0])
    archived = {key.partition("/")[0] for key in parent.list()}
    assert len(archived) == 1 and archived.pop().startswith("sweep-12345678.before-2")


def test_a_stop_request_is_set_and_cleared(root):
    assert not experiment_dir.stop_requested(root)
    experiment_dir.request_stop(root)
    assert experiment_dir.stop_requested(root)
    experiment_dir.clear_stop_request(root)
    experiment_dir.clear_stop_request(root)
    assert not experiment_dir.stop_requested(root)


def test_submissions_are_counted(root):
    assert [experiment_dir.count_submission(root) for _ in range(3)] == [1, 2, 3]


def test_a_study_in_s3_is_resumed_by_the_next_driver(fake_s3):
    study_storage = StudyStorage("s3://bucket/runs/sweep-1/search")
    study = study_storage.study()
    for value in (0.5, 0.25):
        trial = study.ask()
        trial.suggest_float("template.beta", 1, 8)
        study.tell(trial, value)
    left = study.ask()
    left.suggest_float("template.beta", 1, 8)

    again = StudyStorage("s3://bucket/runs/sweep-1/search")  # another process: nothing is shared but the bucket
    assert again.sampled_settings() == study_storage.sampled_settings() and len(again.sampled_settings()) == 3
    assert again.finished_trials() == 2 and again.study().best_value == 0.25
    again.close_open_trials(lambda settings: (True, [0.125]))
    assert StudyStorage("s3://bucket/runs/sweep-1/search").study().best_value == 0.125
    assert all(key.startswith("runs/sweep-1/search/journal/") for key in fake_s3.objects)
