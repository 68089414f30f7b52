"""Training on augmented images."""

import pytest
import torch
from fakes.training import MemoryRecord, OnReport, Runtime, as_threads, copy_of, tiny
from safetensors.torch import load

from ipcnn_ray.data.augmentation import draws
from ipcnn_ray.data.batches import epoch_order
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.train_epoch import train_epoch

AUGMENT = {"crop": [0.4, 1.0], "mirror": True, "color": 0.3}
FROZEN = {"weights": {"file": "w.npz", "layers": ["conv1", "conv2"]}}


class Crash(RuntimeError):
    pass


def crash_after(epoch):
    def on_report(now):
        if now == epoch:
            raise Crash("pulled the plug")

    return OnReport(on_report)


class Watched(InputPipeline):
    """Keeps the input of every training step."""

    def augmented_input(self, *args):
        self.steps = getattr(self, "steps", [])
        self.steps.append(super().augmented_input(*args).clone())
        return self.steps[-1]


def watched_epoch(inputs, spec, runtime, epoch=2):
    inputs = copy_of(inputs)
    inputs = Watched(inputs.store, inputs.net, inputs.scale, inputs.device)
    optimizer = torch.optim.SGD(inputs.net.parameter_groups(5e-4), lr=1.0, momentum=0.9)
    train_epoch(inputs.net, inputs, optimizer, {}, runtime, spec, epoch)
    return inputs.steps


def test_training_sees_augmented_images_and_measurements_do_not(bench):
    bench.run(tiny(train={"epochs": 0}), "plain")
    plain = bench.record
    bench.run(tiny(data={"augment": AUGMENT}, train={"epochs": 0}), "augmented")
    assert bench.record.history == plain.history
    assert bench.record.tags["data.digest"] == plain.tags["data.digest"]
    assert bench.record.params["data.augment.crop"] == "0.4, 1.0"


def test_an_augmentation_that_changes_nothing_trains_the_same_bits(bench, whole):
    bench.run(tiny(data={"augment": {"crop": [1.0, 1.0]}}))
    assert (bench.weights(), bench.record.history) == whole


@pytest.mark.parametrize("changed", ["crop", "mirror", "color"])
def test_each_part_changes_what_is_trained(bench, whole, changed):
    bench.run(tiny(data={"augment": {changed: AUGMENT[changed]}}))
    assert bench.weights() != whole[0]


def test_a_mirrored_item_is_the_flipped_image_of_its_draw(bench):
    spec = tiny(data={"augment": {"mirror": True}})
    inputs = bench.inputs(spec)
    items, store = inputs.store.train_items, inputs.store
    steps = watched_epoch(inputs, spec, Runtime(), epoch=3)
    order, drawn = epoch_order(len(items), spec.seed, 3), draws(len(items), spec.seed, 3)
    assert len(steps) == 3
    flips = set()
    for seen, item in zip(torch.cat(steps), order, strict=False):
        index, mirrored = items[item]
        flip = bool(mirrored) != bool(drawn[item, 0] < 0.5)
        flips.add((bool(mirrored), flip))
        image = torch.from_numpy(store.images_N3SS[index].astype("float32"))
        expected = (image.flip(2) if flip else image) - inputs.mean_3SS
        torch.testing.assert_close(seen, expected * inputs.scale)
    assert len(flips) == 4


def test_two_workers_see_together_what_one_sees(bench):
    spec = tiny(data={"augment": AUGMENT})
    inputs = bench.inputs(spec)
    alone = watched_epoch(inputs, spec, Runtime())
    first, second = as_threads(2, lambda runtime: watched_epoch(inputs, spec, runtime))
    assert len(alone) == len(first) == len(second) == 3
    for step, both in zip(alone, zip(first, second, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(both), step, rtol=0, atol=1e-5)
    assert not torch.allclose(alone[0], watched_epoch(inputs, spec, Runtime(), epoch=1)[0])


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(bench):
    spec, record = tiny(data={"augment": AUGMENT}), MemoryRecord()
    bench.run(spec, "whole")
    history = bench.record.history
    with pytest.raises(Crash, match="plug"):
        bench.run(spec, "cut", crash_after(1), record)
    bench.run(spec, "cut", record=record)
    assert (bench.weights("cut"), record.history) == (bench.weights("whole"), history)


def test_behind_frozen_layers_only_the_evaluation_reads_the_cache(bench):
    bench.pretrained(["conv1", "conv2"])
    runs = {}
    for name, augment, on in (("cached", AUGMENT, True), ("computed", AUGMENT, False), ("plain", None, True)):
        train = {"freeze_through": "conv2", "epochs": 2}
        bench.run(tiny(data={"augment": augment}, model=FROZEN, train=train, compute={"cache_frozen": on}), name)
        runs[name] = bench.record.tags["ipcnn.frozen_cache"], bench.record.history
    assert [tag for tag, _ in runs.values()] == ["evaluation", "false", "true"]
    assert runs["cached"][1] == runs["computed"][1] != runs["plain"][1]
    assert bench.weights("cached") == bench.weights("computed")
    weights = [load(bench.weights(name))["body.conv3.weight"] for name in ("cached", "plain")]
    assert not torch.equal(*weights)


def test_the_stored_crops_do_not_depend_on_the_augmentation(bench):
    stores = [prepare(tiny(data={"augment": augment}).data, 64, bench.paths) for augment in (None, AUGMENT)]
    assert stores[0].digest == stores[1].digest
