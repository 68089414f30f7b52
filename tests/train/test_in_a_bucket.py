"""A run whose files are in a bucket: what a reader sees while they are stored, and that it is the run of a folder."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fakes.training import InProcess, MemoryTracker, Saying, timeless, tiny, train_run

from ipcnn_ray.errors import TrackingError, TrainingError
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train.checkpoint import Origin
from ipcnn_ray.train.final_model import final_model
from ipcnn_ray.train.run_dir import Attempts, RunTakenOver

HERE = Origin("digest01", "data01", "weights01")
FOLDER = "s3://bucket/runs/a"


def history(epochs):
    return [{"epoch": float(epoch), "val_error": 1 / epoch} for epoch in range(1, epochs + 1)]


def saved(epochs, first=1):
    for epoch in range(first, epochs + 1):
        checkpoint.save(FOLDER, HERE, history(epoch), {"model": {"w": torch.full((3,), float(epoch))}})


def keys(fake_s3):
    return sorted(key.removeprefix("runs/a/checkpoints/") for key in fake_s3.objects)


def test_the_newest_comes_back_and_two_are_kept(fake_s3):
    assert checkpoint.newest(FOLDER, HERE) == checkpoint.Restored(0, {}, [], ())
    saved(4)
    assert [key.partition("-")[2][:9] for key in keys(fake_s3)] == ["0003/meta", "0003/stat", "0004/meta", "0004/stat"]
    found = checkpoint.newest(FOLDER, HERE)
    assert (found.epoch, found.history, found.damaged) == (4, history(4), ())
    assert found.state["model"]["w"].tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    "during", ["PUT runs/a/checkpoints/epoch-0002/state", "PUT runs/a/checkpoints/epoch-0002/meta"]
)
def test_a_reader_never_sees_half_a_checkpoint(fake_s3, monkeypatch, during):
    monkeypatch.setattr("ipcnn_ray.train.run_dir.STORAGE_TIMEOUT_S", 0)
    saved(1)
    fake_s3.gone = lambda request: request.startswith(during)
    with pytest.raises(TrackingError, match=r"epoch-0002/.* was not stored"):
        saved(2, first=2)
    fake_s3.gone = None
    found = checkpoint.newest(FOLDER, HERE)
    assert (found.epoch, found.damaged) == (1, ())
    saved(3, first=2)
    assert checkpoint.newest(FOLDER, HERE).epoch == 3
    assert len(fake_s3.objects) == 4


def test_a_torn_one_is_passed_over_and_made_anew(fake_s3):
    saved(2)
    (torn,) = [key for key in fake_s3.objects if "epoch-0002/state" in key]
    fake_s3.objects[torn] = fake_s3.objects[torn][:-7]
    found = checkpoint.newest(FOLDER, HERE)
    assert found.epoch == 1
    assert found.damaged[0].startswith("epoch-0002 (state.pt has ")
    del fake_s3.objects[torn]
    assert checkpoint.newest(FOLDER, HERE).epoch == 1
    checkpoint.save(FOLDER, HERE, history(2), {"again": True})
    assert checkpoint.newest(FOLDER, HERE).state == {"again": True}
    assert len(fake_s3.objects) == 4


def test_a_store_that_does_not_answer_is_no_torn_checkpoint(fake_s3, monkeypatch):
    monkeypatch.setattr("ipcnn_ray.train.run_dir.STORAGE_TIMEOUT_S", 0)
    saved(2)
    fake_s3.gone = lambda request: "epoch-0002/state" in request
    with pytest.raises(TrackingError, match=r"epoch-0002/state-.* cannot be copied"):
        checkpoint.newest(FOLDER, HERE)


def test_a_stranger_is_refused(fake_s3):
    saved(1)
    with pytest.raises(TrainingError, match="s3://bucket/runs/a/checkpoints/epoch-0001 was made with other data"):
        checkpoint.newest(FOLDER, Origin("digest01", "new", "weights01"))


def test_result_and_attempts(fake_s3):
    run = RunSummary("a-1", "run")
    assert checkpoint.read_result(FOLDER, run) is None
    result = replace(run, state="pruned", cause="early stopping", metrics={"epoch": 3.0})
    checkpoint.write_result(FOLDER, result)
    assert checkpoint.read_result(FOLDER, run) == result
    first = Attempts.begin(FOLDER)
    first.check_owner(FOLDER)
    Attempts.begin(FOLDER).finish(FOLDER, "error", "KeyError: 'x'")
    assert Attempts.read(FOLDER) == Attempts(lost=1, error=1, reason="KeyError: 'x'")
    with pytest.raises(RunTakenOver, match="s3://bucket/runs/a has been taken over by another process"):
        first.check_owner(FOLDER)


def test_an_unknown_kind_of_folder():
    with pytest.raises(TrackingError, match="'gs://bucket/a' is of no known kind"):
        checkpoint.read_result("gs://bucket/a", RunSummary("a-1", "run"))


def test_a_run_in_a_bucket_is_bit_for_bit_that_of_a_folder(bench, fake_s3):
    local, remote = MemoryTracker(), MemoryTracker()
    whole = train_run(bench.request(tiny(), "whole"), InProcess(), local)
    request = bench.request(tiny(), "run")
    object.__setattr__(request, "folder", FOLDER)

    def lost(epoch):
        if epoch == 2:
            raise KeyboardInterrupt  # nothing is written any more, as when a process is killed

    with pytest.raises(KeyboardInterrupt):
        train_run(request, Saying(lost), remote)
    assert json.loads(open_storage(FOLDER).get("attempts.json"))["open"]
    assert train_run(request, InProcess(), remote).metrics.keys() == whole.metrics.keys()
    assert timeless(remote.record.epochs.values()) == timeless(local.record.epochs.values())
    weights = open_storage(FOLDER).get("weights.safetensors")
    assert weights == bench.weights("whole") == remote.record.files["weights/weights.safetensors"]
    assert remote.record.said_tags["ipcnn.attempts_lost"] == "1"
    assert final_model(request)[1].shape == (2, 3, 64, 64)


def test_a_process_that_was_taken_for_lost_writes_no_more(bench, fake_s3):
    request = bench.request(tiny(), "run")
    object.__setattr__(request, "folder", FOLDER)
    tracker = MemoryTracker()

    def elsewhere(epoch):
        if epoch == 1:
            Attempts.begin(FOLDER)

    with pytest.raises(RunTakenOver, match="taken over"):
        train_run(request, Saying(elsewhere), tracker)
    assert sorted(tracker.record.epochs) == [1]
    assert tracker.record.states == [("running", "")]
    assert Attempts.read(FOLDER).open
