import multiprocessing
import os
import signal
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from fakes.training import InProcess, MemoryTracker, timeless, tiny, train_run

from ipcnn_ray.data.batches import crops_reader
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.train import feature_cache
from ipcnn_ray.train.feature_cache import distinct_items, feature_key, features_reader

ITEMS = np.array([[0, 0], [0, 1], [2, 0], [5, 1]])


def doubled(part):
    """A feature that says which item it is of."""
    return torch.from_numpy(2 * part[:, :1] + part[:, 1:]).float()[:, :, None].expand(-1, 1, 3).contiguous()


def frozen(cached=True, through="conv2", layers=("conv1", "conv2"), **compute):
    return tiny(
        model={"weights": {"file": "w.npz", "layers": list(layers)}},
        train={"freeze_through": through},
        compute={"cache_frozen": cached, **compute},
    )


def test_built_once_then_read(tmp_path):
    built = []

    def compute(part):
        built.extend(part.tolist())
        return doubled(part)

    for _ in range(2):
        read = features_reader(tmp_path, "key", ITEMS, (1, 3), compute)
        asked = ITEMS[[3, 0, 3]]
        assert torch.equal(read(asked), doubled(asked))
    assert built == ITEMS.tolist()


def test_an_interrupted_build_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError, match="division"):
        features_reader(tmp_path, "key", ITEMS, (1, 3), lambda part: 1 / 0)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["key.lock"]
    features_reader(tmp_path, "key", ITEMS, (1, 3), doubled)


MANY = np.stack([np.arange(7 * feature_cache.CHUNK - 5), np.zeros(7 * feature_cache.CHUNK - 5, np.int64)], 1)
"""Items of seven chunks."""


def build_in_process(folder, kill_at=0, fail_at=0):
    """Start a process that builds the cache of MANY, and wait until it computes its first chunk.

    It appends its id and the first item of every chunk to a file, and goes on when `go_on` was called, but for a
    process that is to be killed or to fail in a chunk, which does not wait.
    """
    calls = 0

    def compute(part):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == fail_at:
            raise ValueError("failed")
        with (folder / "computed").open("a") as file:
            file.write(f"{os.getpid()} {part[0, 0]}\n")
        while not (kill_at or fail_at or (folder / "go_on").exists()):
            time.sleep(0.01)
        return doubled(part)

    build = multiprocessing.get_context("fork").Process(
        target=features_reader, args=(folder, "key", MANY, (1, 3), compute)
    )
    build.start()
    while build.is_alive() and build.pid not in [pid for pid, _ in computed(folder)]:
        time.sleep(0.01)
    return build


def exit_code(process):
    process.join(60)
    return process.exitcode


def computed(folder):
    """(process, first item) of every chunk that was begun."""
    file = folder / "computed"
    return [tuple(map(int, line.split())) for line in file.read_text().splitlines()] if file.exists() else []


def file_of(folder):
    return (folder / "features" / "key" / "features.npy").read_bytes()


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The file that one process writes."""
    folder = tmp_path_factory.mktemp("serial")
    features_reader(folder, "key", MANY, (1, 3), doubled)
    return file_of(folder)


def test_processes_compute_a_cache_together(tmp_path, serial):
    processes = [build_in_process(tmp_path) for _ in range(3)]
    (tmp_path / "go_on").touch()
    assert [exit_code(process) for process in processes] == [0, 0, 0]
    assert file_of(tmp_path) == serial
    assert {pid for pid, _ in computed(tmp_path)} == {process.pid for process in processes}
    assert sorted(first for _, first in computed(tmp_path)) == list(range(0, len(MANY), feature_cache.CHUNK))
    assert [path.name for path in (tmp_path / "features" / "key").iterdir()] == ["features.npy"]


@pytest.mark.parametrize(("how", "code"), [("kill_at", -signal.SIGKILL), ("fail_at", 1)])
def test_the_chunk_of_a_process_that_ends_is_taken_over(tmp_path, serial, how, code):
    """And what is on disk is not computed again."""
    stays = build_in_process(tmp_path)
    assert exit_code(build_in_process(tmp_path, **{how: 2})) == code
    (tmp_path / "go_on").touch()
    assert exit_code(stays) == 0
    assert file_of(tmp_path) == serial
    assert len(computed(tmp_path)) == 7


def test_a_later_run_goes_on_where_all_were_killed(tmp_path, serial):
    assert exit_code(build_in_process(tmp_path, kill_at=4)) == -signal.SIGKILL
    assert not (tmp_path / "features" / "key").exists()
    parts = []
    features_reader(tmp_path, "key", MANY, (1, 3), lambda part: (parts.append(part), doubled(part))[1])
    assert file_of(tmp_path) == serial
    assert len(parts) == 4  # three of seven were on disk


def test_a_small_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage(feature_cache.SPARE + 7_000_000))
    with pytest.raises(
        TrainingError,
        match=r"for 4 images need 0.05 GB, and .*features has 0.01 GB to spare: free some space, set IPCNN_CACHE "
        r".*--set compute.cache_frozen=false",
    ):
        features_reader(tmp_path, "key", ITEMS, (1000, 3000), lambda part: 1 / 0)


def test_a_damaged_cache_says_what_to_delete(tmp_path):
    features_reader(tmp_path, "key", ITEMS, (1, 3), doubled)
    file = tmp_path / "features" / "key" / "features.npy"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(TrainingError, match=r"features/key are damaged .*: delete the folder; it is made anew"):
        features_reader(tmp_path, "key", ITEMS, (1, 3), doubled)


def test_the_key_follows_all_that_the_numbers_depend_on(bench):
    net = bench.inputs(tiny()).net
    net.freeze_through("conv2")
    keys = {feature_key("data", net, 1.0, "cpu", ITEMS)}
    keys.add(feature_key("other", net, 1.0, "cpu", ITEMS))
    keys.add(feature_key("data", net, 0.5, "cpu", ITEMS))
    keys.add(feature_key("data", net, 1.0, "cuda", ITEMS))
    keys.add(feature_key("data", net, 1.0, "cpu", ITEMS[:3]))
    with torch.no_grad():
        net.layer("conv4").weight.zero_()  # behind the cut
    assert feature_key("data", net, 1.0, "cpu", ITEMS) in keys
    with torch.no_grad():
        net.layer("conv1").weight[0] += 1
    keys.add(feature_key("data", net, 1.0, "cpu", ITEMS))
    net.freeze_through("conv3")
    keys.add(feature_key("data", net, 1.0, "cpu", ITEMS))
    assert len(keys) == 7


def test_features_are_what_the_layers_put_out(bench):
    bench.pretrained(["conv1", "conv2"])
    spec = frozen()
    inputs, plain = bench.inputs(spec), bench.inputs(spec)
    inputs.net.freeze_through("conv2")
    plain.net.freeze_through("conv2")
    items = distinct_items(inputs.store.train_items, inputs.store.val_items)
    inputs.use_cache(bench.root, items)
    parts = [items[::-3], items[1:2]]  # not in the order and batches of the build
    with inputs.loader(parts) as cached, plain.loader(parts) as computed:
        for one, other in zip(cached, computed, strict=True):
            torch.testing.assert_close(inputs.net_input(one), plain.net_input(other), rtol=1e-6, atol=1e-6)
    assert crops_reader(inputs.store.images_N3SS)(items[:2]).dtype == torch.uint8


def test_training_from_the_cache_gives_the_same_numbers(bench):
    bench.pretrained(["conv1", "conv2"])
    histories = {}
    for cached in (True, False):
        tracker = MemoryTracker()
        train_run(bench.request(frozen(cached), f"cached-{cached}"), InProcess(), tracker)
        histories[cached] = timeless(tracker.record.epochs.values())
        assert tracker.record.said_tags["ipcnn.frozen_cache"] == str(cached).lower()
    assert len(list((bench.cache / "features").glob("*/features.npy"))) == 1
    for one, other in zip(histories[True], histories[False], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_frozen_layers_stay_as_they_were_loaded(bench):
    bench.pretrained(["conv1", "conv2"])
    from safetensors.torch import load

    bench.run(frozen())
    tensors = load(bench.weights())
    with np.load(bench.root / "weights" / "w.npz") as file:
        assert torch.equal(tensors["body.conv2.weight"], torch.from_numpy(file["conv2_w"]))
        assert torch.equal(tensors["body.conv1.weight"], torch.from_numpy(file["conv1_w"]).flip(1))  # BGR to RGB
