"""Checkpoints, results and attempts of a run, in a folder and in a bucket."""

import errno
import hashlib
import io
import json
import math
import random
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from ipcnn_ray.errors import TrackingError, TrainingError
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train.checkpoint import Origin
from ipcnn_ray.train.run_dir import Attempts, RunTakenOver, write_file
from ipcnn_ray.train.runtime import failure_cause

EARLY_STOPPING = "early stopping at epoch 4 of 12"
HERE = Origin("digest01", "data01", "weights01")
BUCKET = "s3://bucket/runs/a"
PARTS = ("meta.json", "model.pt", "training.pt")


@pytest.fixture(params=["folder", "bucket"])
def folder(request, tmp_path):
    if request.param == "bucket":
        request.getfixturevalue("fake_s3")
        return BUCKET
    return tmp_path


def state_of(epoch):
    return {"model": {"w": torch.full((3,), float(epoch))}, "optimizer": {"momentum": torch.full((3,), -float(epoch))}}


AGAIN = {"model": {}, "again": True}


def history(epochs):
    return [{"epoch": float(epoch), "val_error": 1 / epoch} for epoch in range(1, epochs + 1)]


def save(folder, epochs, first=1):
    """Store checkpoints; return where they are on a file system."""
    for epoch in range(first, epochs + 1):
        checkpoint.save(folder, HERE, history(epoch), state_of(epoch))
    return None if folder == BUCKET else folder / "checkpoints"


def test_the_newest_comes_back(folder):
    assert checkpoint.newest(folder, HERE) == checkpoint.Restored(0, {}, [], ())
    save(folder, 4)
    restored = checkpoint.newest(folder, HERE)
    assert (restored.epoch, restored.history, restored.damaged) == (4, history(4), ())
    assert restored.state["model"]["w"].tolist() == [4, 4, 4]
    assert restored.state["optimizer"]["momentum"].tolist() == [-4, -4, -4]


def test_two_are_kept(tmp_path, fake_s3):
    assert sorted(path.name for path in save(tmp_path, 4).iterdir()) == ["epoch-0003", "epoch-0004"]
    save(BUCKET, 4)
    names = sorted(key.removeprefix("runs/a/checkpoints/epoch-")[:9] for key in fake_s3.objects)
    assert names == [f"{epoch}/{file}" for epoch in ("0003", "0004") for file in ("meta", "mode", "trai")]


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("file", "damage", "named"),
    [
        ("model.pt", cut, r"epoch-0003 \(model.pt has \d+ of \d+ bytes\)"),
        ("training.pt", cut, r"epoch-0003 \(training.pt has \d+ of \d+ bytes\)"),
        ("model.pt", flip, r"epoch-0003 \(model.pt has changed since it was written\)"),
        ("training.pt", lambda path: path.unlink(), r"epoch-0003 \(.*No such file"),
        ("meta.json", cut, r"epoch-0003 \(.*"),
        ("meta.json", lambda path: path.write_text("{}"), r"epoch-0003 \('format'\)"),
        ("meta.json", lambda path: path.write_text('{"format": 2}'), r"epoch-0003 \('files'\)"),
        ("meta.json", lambda path: path.write_text('{"format": "2"}'), r"epoch-0003 \('<=' not supported"),
        ("meta.json", lambda path: path.write_text("[2]"), r"epoch-0003 \(list indices"),
        ("meta.json", lambda path: path.write_text("[" * 100_000), r"epoch-0003 \(maximum recursion depth"),
    ],
)
def test_a_torn_one_is_passed_over_and_named(tmp_path, file, damage, named):
    damage(save(tmp_path, 3) / "epoch-0003" / file)
    restored = checkpoint.newest(tmp_path, HERE)
    assert restored.epoch == 2
    assert len(restored.damaged) == 1 and re.match(named, restored.damaged[0]), restored.damaged
    checkpoint.save(tmp_path, HERE, history(3), AGAIN)  # trained again, it takes the torn one's place
    assert checkpoint.newest(tmp_path, HERE).state == AGAIN


def test_a_torn_one_in_a_bucket_is_passed_over_and_made_anew(fake_s3):
    save(BUCKET, 2)
    (torn,) = [key for key in fake_s3.objects if "epoch-0002/training" in key]
    fake_s3.objects[torn] = fake_s3.objects[torn][:-7]
    restored = checkpoint.newest(BUCKET, HERE)
    assert restored.epoch == 1
    assert restored.damaged[0].startswith("epoch-0002 (training.pt has ")
    del fake_s3.objects[torn]
    assert checkpoint.newest(BUCKET, HERE).epoch == 1
    checkpoint.save(BUCKET, HERE, history(2), AGAIN)
    assert checkpoint.newest(BUCKET, HERE).state == AGAIN
    assert len(fake_s3.objects) == 6


@pytest.mark.parametrize(
    "during", [f"PUT runs/a/checkpoints/epoch-0002/{file}" for file in ("model", "training", "meta")]
)
def test_a_reader_of_a_bucket_never_sees_half_a_checkpoint(fake_s3, monkeypatch, during):
    monkeypatch.setattr("ipcnn_ray.train.run_dir.STORAGE_TIMEOUT_S", 0)
    save(BUCKET, 1)
    fake_s3.gone = lambda request: request.startswith(during)
    with pytest.raises(TrackingError, match=r"epoch-0002/.* was not stored"):
        save(BUCKET, 2, first=2)
    fake_s3.gone = None
    restored = checkpoint.newest(BUCKET, HERE)
    assert (restored.epoch, restored.damaged) == (1, ())
    save(BUCKET, 3, first=2)
    assert checkpoint.newest(BUCKET, HERE).epoch == 3
    assert len(fake_s3.objects) == 6
    # A bucket that does not answer is no torn checkpoint.
    fake_s3.gone = lambda request: "epoch-0003/training" in request
    with pytest.raises(TrackingError, match=r"epoch-0003/training-.* cannot be copied"):
        checkpoint.newest(BUCKET, HERE)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    checkpoints = save(tmp_path, 1)
    (checkpoints / ".epoch-0002").mkdir()
    (checkpoints / ".epoch-0002" / "model.pt").write_bytes(b"half")
    assert checkpoint.newest(tmp_path, HERE).epoch == 1
    checkpoint.save(tmp_path, HERE, history(2), AGAIN)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["epoch-0001", "epoch-0002"]


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        (Origin("other", "data01", "weights01"), "made with other experiment: digest digest01, now other. Bring"),
        (Origin("digest01", "new", "weights01"), "/checkpoints/epoch-0001 was made with other data: data data01, now"),
        (Origin("digest01", "data01", ""), "made with other pretrained weights: weights weights01, now none"),
    ],
)
def test_a_stranger_is_refused(folder, origin, text):
    save(folder, 1)
    with pytest.raises(TrainingError, match=text) as caught:
        checkpoint.newest(folder, origin)
    assert str(caught.value).startswith(f"{folder}/checkpoints/epoch-0001 ")


def test_another_layout_is_refused(tmp_path):
    meta = save(tmp_path, 1) / "epoch-0001" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    with pytest.raises(TrainingError, match="has checkpoint format 99 and this version of ipcnn reads 1 to 2: go"):
        checkpoint.newest(tmp_path, HERE)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    forge(save(tmp_path, 2) / "epoch-0002", {"model": Trap()})
    restored = checkpoint.newest(tmp_path, HERE)
    assert (restored.epoch, restored.damaged) == (1, ("epoch-0002 (Weights only load failed)",))
    assert not (tmp_path / "sprung").exists()


def forge(folder, state):
    """Replace the network of a checkpoint by what has the right hash."""
    torch.save(state, folder / "model.pt")
    data, meta = (folder / "model.pt").read_bytes(), json.loads((folder / "meta.json").read_text())
    meta["files"]["model.pt"] = [len(data), hashlib.sha256(data).hexdigest()]
    (folder / "meta.json").write_text(json.dumps(meta))


def test_no_file_is_read_or_written_but_those_of_the_checkpoint(tmp_path, fake_s3):
    """Whatever names a meta.json gives: a path would leave the folder that a checkpoint is copied into."""
    outside = tmp_path / "outside.pt"
    save(BUCKET, 1)
    (key,) = [key for key in fake_s3.objects if key.endswith("meta.json")]
    meta = json.loads(fake_s3.objects[key])
    meta["files"][str(outside)] = meta["files"]["model.pt"]
    fake_s3.objects[key] = json.dumps(meta).encode()
    stored = f"runs/a/checkpoints/epoch-0001/{outside}"
    fake_s3.objects[f"{stored.removesuffix('.pt')}-{meta['files']['model.pt'][1][:16]}.pt"] = b"x"
    assert checkpoint.newest(BUCKET, HERE).epoch == 1
    assert not outside.exists()


def test_a_full_disk_says_so_and_leaves_the_last_one(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(state, stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"no space left in .*checkpoints for the checkpoint of epoch 2: free some"):
        checkpoint.save(tmp_path, HERE, history(2), AGAIN)
    assert checkpoint.newest(tmp_path, HERE).epoch == 1


def test_all_random_generators_come_back(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), [random.random() for _ in range(3)]

    np.random.normal()  # leaves a cached second number behind
    checkpoint.save(tmp_path, HERE, history(1), {"model": {}, "generators": checkpoint.generator_states()})
    first = draw()
    checkpoint.restore_generators(checkpoint.newest(tmp_path, HERE).state["generators"])
    assert draw() == first


def earlier_checkpoint(folder, epoch):
    """As versions before 0.2 wrote it."""
    file = io.BytesIO()
    torch.save(state_of(epoch), file)
    data, files = file.getvalue(), open_storage(str(folder))
    meta = {"format": 1, **asdict(HERE), "epoch": epoch, "bytes": len(data), "history": history(epoch)}
    meta["sha256"] = hashlib.sha256(data).hexdigest()
    name = f"state-{meta['sha256'][:16]}.pt" if folder == BUCKET else "state.pt"
    files.put_bytes(data, f"checkpoints/epoch-{epoch:04}/{name}")
    files.put_bytes(json.dumps(meta).encode(), f"checkpoints/epoch-{epoch:04}/meta.json")


def test_a_checkpoint_of_an_earlier_version_is_resumed(folder):
    earlier_checkpoint(folder, 2)
    restored = checkpoint.newest(folder, HERE)
    assert (restored.epoch, restored.history, restored.damaged) == (2, history(2), ())
    assert restored.state["model"]["w"].tolist() == [2, 2, 2]
    assert restored.state["optimizer"]["momentum"].tolist() == [-2, -2, -2]
    save(folder, 3, first=3)
    assert checkpoint.newest(folder, HERE).epoch == 3


def names(folder):
    """Names of the files of the checkpoints, without hashes."""
    return [re.sub(r"^.*epoch-00|-\w{16}(?=\.pt)", "", key) for key in open_storage(str(folder)).list("checkpoints")]


def test_a_run_that_has_ended_keeps_no_state_of_training(folder):
    checkpoint.drop_training_state(folder)  # no checkpoint at all
    save(folder, 3)
    assert names(folder) == [f"{epoch}/{file}" for epoch in ("02", "03") for file in PARTS]
    checkpoint.drop_training_state(folder)  # pruned: the network is nowhere else
    assert names(folder) == ["03/meta.json", "03/model.pt"]
    write_file(folder, "weights.safetensors", b"weights")
    for _ in range(2):
        checkpoint.drop_training_state(folder)
        assert names(folder) == ["03/meta.json"]
    if folder != BUCKET:
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch-0003"]


def test_a_run_of_an_earlier_version_that_has_ended(folder):
    """Its network is in one file with the state of the optimizer: it is deleted only where there are final weights."""
    for epoch in (2, 3):
        earlier_checkpoint(folder, epoch)
    checkpoint.drop_training_state(folder)
    assert names(folder) == ["03/meta.json", "03/state.pt"] and checkpoint.newest(folder, HERE).epoch == 3
    write_file(folder, "weights.safetensors", b"weights")
    checkpoint.drop_training_state(folder)
    assert names(folder) == ["03/meta.json"]


def test_a_result_comes_back_as_it_was(folder):
    run = RunSummary("a-1-l1", "l1", origin="sampled", seed=3)
    assert checkpoint.read_result(folder, run) is None
    metrics = {"epoch": 3.0, "instability": math.nan}
    checkpoint.write_result(folder, replace(run, state="pruned", cause=EARLY_STOPPING, metrics=metrics))
    again = checkpoint.read_result(folder, run)
    assert again.metrics["epoch"] == 3 and math.isnan(again.metrics["instability"])
    assert replace(again, metrics={}) == replace(run, state="pruned", cause=EARLY_STOPPING)
    if folder != BUCKET:
        assert [path.name for path in folder.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("state", "why", "now"),
    [
        ("succeeded", "", "succeeded"),
        ("stopped", EARLY_STOPPING, "pruned"),
        ("stopped", "interrupted; submitted again, it goes on", "stopped"),
    ],
)
def test_a_result_of_an_earlier_version(tmp_path, state, why, now):
    earlier = {"run_id": "a-1-l1", "state": state, "why": why, "epochs": 4, "metrics": {"epoch": 4.0}}
    (tmp_path / "result.json").write_text(json.dumps(earlier))
    run = RunSummary("a-1-l1", "l1")
    assert checkpoint.read_result(tmp_path, run) == replace(run, state=now, cause=why, metrics={"epoch": 4.0})


@pytest.mark.parametrize(
    ("content", "why"),
    [(b'{"state": "succ', "Unterminated string"), (b"[]", "it has no state, why, metrics"), (b"\xff", "'utf-8' codec")],
)
def test_a_damaged_result(folder, content, why):
    write_file(folder, "result.json", content)
    with pytest.raises(TrainingError, match=rf"/result.json is damaged: {why}.*\nDelete it, and submit again") as told:
        checkpoint.read_result(folder, RunSummary("a-1-l1", "l1"))
    assert str(told.value).startswith(str(folder))


def test_an_unknown_kind_of_folder():
    with pytest.raises(TrackingError, match="'gs://bucket/a' is of no known kind"):
        checkpoint.read_result("gs://bucket/a", RunSummary("a-1", "run"))


def test_attempts_are_counted_by_cause(folder):
    assert Attempts.read(folder) == Attempts()
    first = Attempts.begin(folder)  # vanishes
    first.check_owner(folder)
    Attempts.begin(folder).finish(folder, "error", "KeyError: 'x'")
    assert Attempts.read(folder) == Attempts(lost=1, error=1, reason="KeyError: 'x'")
    with pytest.raises(RunTakenOver, match=f"{folder} has been taken over by another process"):
        first.check_owner(folder)
    with pytest.raises(RunTakenOver):
        first.finish(folder, "error", "its storage did not answer")
    Attempts.begin(folder).finish(folder, "memory", "out of memory")
    Attempts.begin(folder).finish(folder)
    assert Attempts.read(folder) == Attempts(lost=1, memory=1, error=1)


def test_attempts_of_an_earlier_version(tmp_path):
    earlier = {"lost": 1, "memory": 0, "error": 2, "open": True, "why": "KeyError: 'x'", "token": "ab"}
    (tmp_path / "attempts.json").write_text(json.dumps(earlier))
    attempts = Attempts.read(tmp_path)
    assert attempts == Attempts(lost=1, error=2, open=True, reason="KeyError: 'x'") and attempts.token == "ab"
    attempts.finish(tmp_path)
    assert json.loads((tmp_path / "attempts.json").read_text()) == earlier | {"open": False, "why": ""}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("[gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:3: Connection reset."), "lost"),
        (torch.distributed.DistBackendError("NCCL"), "lost"),
        (torch.OutOfMemoryError("CUDA"), "memory"),
        (MemoryError(), "memory"),
        (KeyError(), "error"),
    ],
)
def test_causes_of_failures(error, cause):
    assert failure_cause(error) == cause
