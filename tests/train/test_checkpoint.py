import errno
import hashlib
import json
import math
import pickle
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train import checkpoint
from ipcnn_ray.train.checkpoint import Origin
from ipcnn_ray.train.run_dir import Attempts
from ipcnn_ray.train.runtime import failure_cause

EARLY_STOPPING = "early stopping at epoch 4 of 12"
HERE = Origin("digest01", "data01", "weights01")


def history(epochs):
    return [{"epoch": float(epoch), "val_error": 1 / epoch} for epoch in range(1, epochs + 1)]


def saved(folder, epochs):
    for epoch in range(1, epochs + 1):
        checkpoint.save(folder, HERE, history(epoch), {"model": {"w": torch.full((3,), float(epoch))}})
    return folder / "checkpoints"


def test_the_newest_comes_back_and_two_are_kept(tmp_path):
    home = saved(tmp_path, 4)
    assert sorted(path.name for path in home.iterdir()) == ["epoch-0003", "epoch-0004"]
    found = checkpoint.newest(tmp_path, HERE)
    assert (found.epoch, found.damaged) == (4, ())
    assert found.state["model"]["w"].tolist() == [4, 4, 4]
    assert found.history == history(4)


def test_nothing_there_is_epoch_zero(tmp_path):
    assert checkpoint.newest(tmp_path, HERE) == checkpoint.Restored(0, {}, [], ())


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
        ("state.pt", cut, r"epoch-0003 \(state.pt has \d+ of \d+ bytes\)"),
        ("state.pt", flip, r"epoch-0003 \(state.pt has changed since it was written\)"),
        ("state.pt", lambda path: path.unlink(), r"epoch-0003 \(.*No such file"),
        ("meta.json", cut, r"epoch-0003 \(.*"),
        ("meta.json", lambda path: path.write_text("{}"), r"epoch-0003 \(.*bytes"),
    ],
)
def test_a_torn_one_is_passed_over_and_named(tmp_path, file, damage, named):
    home = saved(tmp_path, 3)
    damage(home / "epoch-0003" / file)
    found = checkpoint.newest(tmp_path, HERE)
    assert found.epoch == 2
    assert len(found.damaged) == 1

    assert re.match(named, found.damaged[0]), found.damaged
    checkpoint.save(tmp_path, HERE, history(3), {"again": True})  # trained again, it takes the torn one's place
    assert checkpoint.newest(tmp_path, HERE).state == {"again": True}


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    home = saved(tmp_path, 1)
    (home / ".epoch-0002").mkdir()
    (home / ".epoch-0002" / "state.pt").write_bytes(b"half")
    assert checkpoint.newest(tmp_path, HERE).epoch == 1
    checkpoint.save(tmp_path, HERE, history(2), {})
    assert sorted(path.name for path in home.iterdir()) == ["epoch-0001", "epoch-0002"]


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        (Origin("other", "data01", "weights01"), "made with other experiment: digest digest01, now other. Bring"),
        (Origin("digest01", "new", "weights01"), "made with other data: data data01, now new"),
        (Origin("digest01", "data01", ""), "made with other pretrained weights: weights weights01, now none"),
    ],
)
def test_a_stranger_is_refused(tmp_path, origin, text):
    saved(tmp_path, 1)
    with pytest.raises(TrainingError, match=text):
        checkpoint.newest(tmp_path, origin)


def test_another_layout_is_refused(tmp_path):
    meta = saved(tmp_path, 1) / "epoch-0001" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    with pytest.raises(TrainingError, match="has checkpoint format 99 and this version of ipcnn reads 1: go on with"):
        checkpoint.newest(tmp_path, HERE)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = saved(tmp_path, 1) / "epoch-0001"
    torch.save({"model": Trap()}, path / "state.pt")
    data = (path / "state.pt").read_bytes()
    meta = json.loads((path / "meta.json").read_text())
    meta |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoint.newest(tmp_path, HERE)
    assert not (tmp_path / "sprung").exists()


def test_a_full_disk_says_so_and_leaves_the_last_one(tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def full(state, stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"no space left in .*checkpoints for the checkpoint of epoch 2: free some"):
        checkpoint.save(tmp_path, HERE, history(2), {})
    assert checkpoint.newest(tmp_path, HERE).epoch == 1


def test_all_random_generators_come_back(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), [random.random() for _ in range(3)]

    np.random.normal()  # leaves a cached second number behind
    checkpoint.save(tmp_path, HERE, history(1), {"generators": checkpoint.generator_states()})
    first = draw()
    checkpoint.restore_generators(checkpoint.newest(tmp_path, HERE).state["generators"])
    assert draw() == first


def test_a_result_comes_back_as_it_was(tmp_path):
    run = RunSummary("a-1-l1", "l1", origin="sampled", seed=3)
    assert checkpoint.read_result(tmp_path, run) is None
    metrics = {"epoch": 3.0, "instability": math.nan}
    checkpoint.write_result(tmp_path, replace(run, state="stopped", cause=EARLY_STOPPING, metrics=metrics))
    again = checkpoint.read_result(tmp_path, run)
    assert again.metrics["epoch"] == 3 and math.isnan(again.metrics["instability"])
    assert replace(again, metrics={}) == replace(run, state="stopped", cause=EARLY_STOPPING)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


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


def test_attempts_are_counted_by_cause(tmp_path):
    Attempts.begin(tmp_path)  # vanishes
    Attempts.begin(tmp_path).finish(tmp_path, "error", "KeyError: 'x'")
    assert Attempts.read(tmp_path) == Attempts(lost=1, error=1, reason="KeyError: 'x'")
    Attempts.begin(tmp_path).finish(tmp_path, "memory", "out of memory")
    Attempts.begin(tmp_path).finish(tmp_path)
    assert Attempts.read(tmp_path) == Attempts(lost=1, memory=1, error=1)
    assert Attempts.read(tmp_path / "elsewhere") == Attempts()


def test_a_vanished_peer_is_a_lost_worker():
    gloo = RuntimeError("[gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:3: Connection reset by peer.")
    assert failure_cause(gloo) == failure_cause(torch.distributed.DistBackendError("NCCL")) == "lost"


def test_out_of_memory_is_a_cause_of_its_own():
    assert failure_cause(torch.OutOfMemoryError("CUDA")) == failure_cause(MemoryError()) == "memory"
    assert failure_cause(KeyError()) == "error"
