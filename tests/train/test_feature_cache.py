import math
import multiprocessing
import os
import signal
import threading
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from fakes.training import tiny
from safetensors.torch import load

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.train import feature_cache, trainer
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items, feature_key, features_reader
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import Trainer

ITEMS = np.array([[0, 0], [0, 1], [2, 0], [5, 1]])
MANY = np.stack([np.arange(7 * feature_cache.CHUNK - 5), np.zeros(7 * feature_cache.CHUNK - 5, np.int64)], 1)
"""Items of seven chunks."""
WEIGHTS = {"weights": {"file": "w.npz", "layers": ["conv1", "conv2"]}}
WITHOUT_PARTS = tuple(name for name in METRICS.built_in if name not in (*EVERY_RUN, "part_interpretability"))


def doubled(part):
    """A feature that says which item it is of."""
    return torch.from_numpy(2 * part[:, :1] + part[:, 1:]).float()[:, :, None].expand(-1, 1, 3).contiguous()


def test_built_once_then_read(tmp_path):
    built, progress = [], []

    def compute(part):
        built.extend(part.tolist())
        return doubled(part)

    for _ in range(2):
        read = features_reader(tmp_path, "key", MANY, (1, 3), compute, lambda *counts: progress.append(counts))
        asked = MANY[[100, 0, 100]]
        assert torch.equal(read(asked), doubled(asked))
    assert built == MANY.tolist()
    assert progress == [(min(32 * chunk, 219), 219) for chunk in range(8)]


def test_an_interrupted_build_leaves_nothing_and_a_damaged_cache_says_what_to_delete(tmp_path):
    with pytest.raises(ZeroDivisionError, match="division"):
        features_reader(tmp_path, "key", ITEMS, (1, 3), lambda part: 1 / 0)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["key.lock"]
    file = tmp_path / "features" / "key" / "features.npy"
    read = features_reader(tmp_path, "key", ITEMS, (1, 3), doubled)
    assert torch.equal(read(ITEMS[[3, 0, 3]]), doubled(ITEMS[[3, 0, 3]]))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(TrainingError, match=r"features/key are damaged .*: delete the folder; it is made anew"):
        features_reader(tmp_path, "key", ITEMS, (1, 3), doubled)


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


def test_threads_of_a_process_compute_a_cache_together(tmp_path, serial):
    both, begun = threading.Barrier(2, timeout=60), []

    def compute(part):
        begun.append((threading.get_ident(), part[0, 0]))
        if len(begun) <= 2:
            both.wait()  # two chunks at a time
        return doubled(part)

    features_reader(tmp_path, "key", MANY, (1, 3), compute, threads=2)
    assert file_of(tmp_path) == serial
    assert len({thread for thread, _ in begun}) == 2
    assert sorted(first for _, first in begun) == list(range(0, len(MANY), feature_cache.CHUNK))


@pytest.mark.parametrize("in_main", [True, False])
def test_an_error_in_one_thread_ends_all(tmp_path, in_main):
    both = threading.Barrier(2, timeout=60)

    def compute(part):
        if part[0, 0] < 2 * feature_cache.CHUNK:
            both.wait()
        if (threading.current_thread() is threading.main_thread()) is in_main:
            raise ValueError("failed")
        return doubled(part)

    with pytest.raises(ValueError, match="failed"):
        features_reader(tmp_path, "key", MANY, (1, 3), compute, threads=2)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["key.lock"]


@pytest.mark.parametrize(("spare", "available", "threads"), [(0, 9, 1), (1, 9, 2), (3, 9, 4), (3, 2, 3), (3, 0, 1)])
def test_spare_cores_help_as_far_as_there_is_memory(bench, monkeypatch, spare, available, threads):
    bench.pretrained(["conv1", "conv2"])
    inputs = bench.inputs(tiny(model=WEIGHTS))
    inputs.net.freeze_through("conv2")
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    memory = namedtuple("memory", "available")(available * feature_cache.CHUNK_BYTES)
    monkeypatch.setattr(feature_cache.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(feature_cache, "features_reader", lambda *arguments: asked.append(arguments[-1]))
    inputs.use_cache(bench.root, ITEMS, spare_cores=spare)
    assert asked == [threads]


def test_a_cache_of_several_threads_has_the_bytes_of_one(bench):
    bench.pretrained(["conv1", "conv2"])
    inputs, files = bench.inputs(tiny(model=WEIGHTS, data={"objects": 40, "negatives": 40})), []
    inputs.net.freeze_through("conv2")
    items = distinct_items(inputs.store.train_items, inputs.store.val_items)
    assert len(items) > 3 * feature_cache.CHUNK
    for spare in (0, 2):
        inputs.use_cache(bench.root / str(spare), items, spare_cores=spare)
        files.append(next((bench.root / str(spare)).rglob("features.npy")).read_bytes())
    assert files[0] == files[1]


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


def test_the_key_follows_all_that_the_numbers_depend_on(bench):
    net = bench.inputs(tiny()).net

    def key(data="data", scale=1.0, device="cpu", items=ITEMS):
        return feature_key(data, net, scale, device, items)

    net.freeze_through("conv2")
    keys = {key(), key(data="other"), key(scale=0.5), key(device="cuda"), key(items=ITEMS[:3])}
    with torch.no_grad():
        net.layer("conv4").weight.zero_()  # behind the cut
    assert key() in keys
    with torch.no_grad():
        net.layer("conv1").weight[0] += 1
    keys.add(key())
    net.freeze_through("conv3")
    keys.add(key())
    assert len(keys) == 7


def test_features_are_what_the_layers_put_out(bench):
    bench.pretrained(["conv1", "conv2"])
    cached, plain = (bench.inputs(tiny(model=WEIGHTS)) for _ in range(2))
    for inputs in (cached, plain):
        inputs.net.freeze_through("conv2")
    items = distinct_items(cached.store.train_items, cached.store.val_items)
    cached.use_cache(bench.root, items)
    parts = [items[::-3], items[1:2]]  # not in the order and batches of the build
    with cached.loader(parts) as features, plain.loader(parts) as crops:
        for one, other in zip(features, crops, strict=True):
            torch.testing.assert_close(cached.net_input(one), plain.net_input(other), rtol=1e-6, atol=1e-6)
            assert other.rows.dtype == torch.uint8


def test_crops_and_features_stay_on_the_device_as_far_as_they_fit(bench):
    bench.pretrained(["conv1", "conv2"])
    spec = tiny(model=WEIGHTS)
    store = prepare(spec.data, spec.model.table.image_size, bench.paths)
    items = distinct_items(store.train_items, store.val_items)
    features, crops = len(items) * 32 * 16 * 16 * 4, store.images_N3SS.nbytes

    def batches_with(room):
        net = bench.inputs(spec).net
        net.freeze_through("conv2")
        assert math.prod(net.feature_shape()) * len(items) * 4 == features
        inputs = InputPipeline(store, net, 1.0, torch.device("cpu"), room=room)
        inputs.use_cache(bench.root, items)
        found = []
        for kwargs in ({}, {"crops": True}, {}):
            with inputs.loader([items[::-3], items[1:2]], **kwargs) as loader:
                found += [tensor for batch in loader for tensor in vars(batch).values()]
        return found, (inputs._features.kept, inputs._crops.kept)

    from_disk, kept = batches_with(None)
    assert kept == (False, False)
    for room, expected in (
        (features + crops, (True, True)),
        (features + crops - 1, (True, False)),
        (min(features, crops) - 1, (False, False)),
    ):
        found, kept = batches_with(room)
        assert kept == expected
        assert all(map(torch.equal, found, from_disk)) and len(found) == len(from_disk) == 18


@pytest.mark.parametrize("augment", [None, {"mirror": True, "color": 0.2}])
def test_a_run_on_data_that_stay_on_the_device_is_the_same(bench, monkeypatch, augment):
    bench.pretrained(["conv1", "conv2"])
    sections = {"model": WEIGHTS, "train": {"freeze_through": "conv2"}, "eval": {"measures": ["stability"]}}
    spec = tiny(**sections, data={"augment": augment})
    bench.run(spec, "disk")
    history, made = bench.record.history, []

    def resident(*args, **kwargs):
        made.append(InputPipeline(*args, **kwargs, room=1 << 30))
        return made[-1]

    monkeypatch.setattr(trainer, "InputPipeline", resident)
    bench.run(spec, "device")
    assert bench.record.history == history and bench.weights("device") == bench.weights("disk")
    assert made[0]._features.kept and made[0]._crops.kept


@pytest.mark.parametrize(("gpus", "share"), [(1.0, 1), (0.25, 0.25), (2.0, 1)])
def test_runs_that_share_a_gpu_share_its_memory(bench, gpus, share):
    runtime = Runtime()
    runtime.gpus = gpus
    assert Trainer(bench.request(tiny()), runtime).inputs.gpu_share == share


def test_runs_with_and_without_the_cache(bench):
    """They have the same metrics, of training and of interpretability, and frozen layers stay as they were loaded."""
    bench.pretrained(["conv1", "conv2"])
    histories = []
    before = set((bench.cache / "features").glob("*/features.npy"))
    for cached in (True, False):
        spec = tiny(
            data={"drawing_seed": 7},  # images whose features no other test has cached
            model=WEIGHTS,
            train={"freeze_through": "conv2"},
            compute={"cache_frozen": cached},
            eval={"measures": list(WITHOUT_PARTS)},
        )
        bench.run(spec, f"cached-{cached}")
        histories.append(bench.record.history)
        assert bench.record.tags["ipcnn.frozen_cache"] == str(cached).lower()
        assert len(set((bench.cache / "features").glob("*/features.npy")) - before) == 1
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for name in WITHOUT_PARTS:
        assert histories[0][0][name] == histories[1][0][name], name
    tensors = load(bench.weights("cached-True"))
    with np.load(bench.root / "weights" / "w.npz") as file:
        assert torch.equal(tensors["body.conv2.weight"], torch.from_numpy(file["conv2_w"]))
        assert torch.equal(tensors["body.conv1.weight"], torch.from_numpy(file["conv1_w"]).flip(1))  # BGR to RGB
