"""Measures in an evaluation: against one image at a time, over workers, through a run's record."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from fakes.training import InProcess, MemoryTracker, as_threads, copy_of, tiny

from ipcnn_ray.core.mask import mask_maps
from ipcnn_ray.core.metrics import part_interpretability as parts
from ipcnn_ray.core.metrics.stability import pixel_noise
from ipcnn_ray.data.batches import to_input
from ipcnn_ray.errors import DataError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.spec.metric_info import MeasureName
from ipcnn_ray.train.evaluate import EvaluationPlan, evaluate
from ipcnn_ray.train.metric_inputs import MetricsConfig
from ipcnn_ray.train.trainer import train_run

ALL: tuple[MeasureName, ...] = get_args(MeasureName)
WITHOUT_PARTS = tuple(name for name in ALL if name != "part_interpretability")


def with_part_sizes(inputs):
    """The same inputs; every part is a box of 18 x 22 of the 64 pixels."""
    store = inputs.store
    sizes = np.where(np.isnan(store.landmarks_NK2), np.nan, np.float32([18 / 64, 22 / 64])).astype(np.float32)
    inputs.store = replace(store, part_sizes_NK2=sizes)
    return inputs


def measure(inputs, spec, runtime, wanted, batch_size=5):
    fields = {layer: layer_receptive_field(spec.model, layer) for layer in inputs.net.interpretable}
    return evaluate(
        inputs,
        EvaluationPlan.of(inputs.store, "all"),
        fields,
        runtime,
        epoch=1,
        batch_size=batch_size,
        top_images=4,
        wanted=wanted,
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory, crops):
    """Inputs with part sizes, their spec, and all measures of one worker."""
    from fakes.training import Bench

    bench, spec = Bench(tmp_path_factory.mktemp("measures"), crops), tiny(model={"dropout": 0.0})
    inputs = with_part_sizes(bench.inputs(spec))
    return inputs, spec, measure(inputs, spec, InProcess(), MetricsConfig(ALL, seed=5)).measures


class Slowly:
    """One image at a time."""

    def __init__(self, inputs, spec, layer):
        self.inputs, self.store, self.layer, self.rf = (
            inputs,
            inputs.store,
            layer,
            layer_receptive_field(spec.model, layer),
        )
        inputs.net.eval()

    @torch.no_grad()
    def output(self, index, mirrored=0, noise=None):
        image = torch.from_numpy(self.store.images_N3SS[index : index + 1].copy())
        x = to_input(
            image, torch.tensor([bool(mirrored)]), self.inputs.mean_3SS, self.inputs.scale, torch.device("cpu")
        )
        return self.inputs.net(x if noise is None else x + noise * self.inputs.scale, full=True)

    def peaks(self, output):
        """(row, col) of each filter's peak, in pixels."""
        score_CHW = output.scores[self.layer][0]
        cells = [divmod(int(one.argmax()), one.shape[1]) for one in score_CHW]
        return [
            (self.rf.first_center + self.rf.stride * r, self.rf.first_center + self.rf.stride * c) for r, c in cells
        ]

    def parts_at(self, peak, index, half):
        """Numbers of the landmarks in the square around a peak."""
        return {
            k
            for k, (row, col) in enumerate(self.store.landmarks_NK2[index].tolist())
            if abs(row - peak[0]) <= half and abs(col - peak[1]) <= half
        }

    def shown(self, index):
        return {k for k, place in enumerate(self.store.landmarks_NK2[index]) if not np.isnan(place).any()}

    def consistency(self):
        outputs = {i: self.peaks(self.output(i)) for i in self.store.objects}
        consistent = []
        for c in range(len(outputs[0])):
            rates = []
            for k in range(self.store.landmarks_NK2.shape[1]):
                images = [i for i in outputs if k in self.shown(i)]
                rates.append(np.mean([k in self.parts_at(outputs[i][c], i, 64 * 36 / 224) for i in images]))
            consistent.append(max(rates) >= 0.8)
        return np.mean(consistent)

    def stability(self, seed):
        same = []
        for i in (i for i in self.store.objects if self.shown(i)):
            plain, noisy = self.peaks(self.output(i)), self.peaks(self.output(i, noise=pixel_noise(seed, i, 64)))
            half = 64 * 36 / 224
            same += [self.parts_at(p, i, half) == self.parts_at(q, i, half) for p, q in zip(plain, noisy, strict=True)]
        return np.mean(same)

    def entropy(self):
        found = []
        for c in range(32):
            entropies = []
            for i in self.store.objects:
                x = self.output(i).maps[self.layer][0, c].double().flatten()
                if x.sum() > 0:
                    p = (x / x.sum())[x > 0]
                    entropies.append(float(-(p * p.log()).sum()) / math.log(len(x)))
            if entropies:
                found.append(np.mean(entropies))
        return np.mean(found)

    @torch.no_grad()
    def ablation(self):
        """(own, others) by a hook on the convolution: -inf in a channel is 0 after ReLU and mask."""
        own, others, net = [], [], self.inputs.net
        for index, mirrored in np.unique(self.store.val_items, axis=0).tolist():
            sign = 1 if self.store.labels_N[index] >= 0 else -1
            intact = float(self.output(index, mirrored).logits_NL)
            changes = []
            for c in range(32):

                def erase(module, args, result, c=c):
                    result[:, c] = -1.0
                    return result

                hook = net.conv(self.layer).register_forward_hook(erase)
                without = float(self.output(index, mirrored).logits_NL)
                hook.remove()
                changes.append(math.log1p(math.exp(-sign * without)) - math.log1p(math.exp(-sign * intact)))
            if sign > 0:
                own.append(np.mean(changes))
            else:
                others.append(np.mean(np.abs(changes)))
        return np.mean(own), np.mean(others)


@pytest.mark.parametrize("layer", ["conv4", "conv5"])
def test_agree_with_one_image_at_a_time(scene, layer):
    inputs, spec, found = scene
    slowly = Slowly(inputs, spec, layer)
    assert found["consistency"][layer].mean == pytest.approx(slowly.consistency())
    assert found["stability"][layer].mean == pytest.approx(slowly.stability(5))
    assert found["activation_entropy"][layer].mean == pytest.approx(slowly.entropy(), rel=1e-5)
    own, others = slowly.ablation()
    assert abs(own) > 1e-7 and others > 1e-7
    assert found["ablation_own"][layer].mean == pytest.approx(own, rel=1e-3, abs=1e-7)
    assert found["ablation_others"][layer].mean == pytest.approx(others, rel=1e-3, abs=1e-7)


def test_part_interpretability_of_all_images_at_once(scene):
    inputs, spec, found = scene
    slowly, store = Slowly(inputs, spec, "conv5"), inputs.store
    passed = []
    for index in store.objects:
        maps = slowly.output(index).maps["conv5"]
        passed.append(mask_maps(maps, inputs.net.mask("conv5").unit_Pnn)[0])
    x_NCHW = torch.stack(passed)
    count = parts.values_above(*x_NCHW.shape[::2])
    threshold_C = x_NCHW.transpose(0, 1).flatten(1).sort(1, descending=True).values[:, count]
    fields_PSS = parts.round_fields(slowly.rf, 16, 64, parts.DIAMETER * 64)
    paths, sizes = torch.from_numpy(store.landmarks_NK2), torch.from_numpy(store.part_sizes_NK2 * 64)
    hits = [
        parts.part_hits(x, threshold_C, fields_PSS, parts.part_boxes(paths[i], sizes[i], 64))
        for i, x in zip(store.objects, x_NCHW, strict=True)
    ]
    shown_NK = ~paths[store.objects].isnan().any(2)
    expected = parts.part_interpretability(torch.stack(hits), shown_NK)
    assert 0 < expected.mean < 1
    assert found["part_interpretability"]["conv5"].mean == pytest.approx(expected.mean)


@pytest.mark.parametrize(("world", "batch_size"), [(2, 3), (5, 2)])
def test_workers_find_what_one_finds(scene, world, batch_size):
    inputs, spec, alone = scene

    def work(runtime):
        return measure(copy_of(inputs), spec, runtime, MetricsConfig(ALL, seed=5), batch_size).measures

    for found in as_threads(world, work):
        assert set(found) == set(ALL)
        for name, by_layer in alone.items():
            for layer, one in by_layer.items():
                torch.testing.assert_close(
                    found[name][layer].per_filter_C,
                    one.per_filter_C,
                    equal_nan=True,
                    rtol=1e-4,
                    atol=1e-6,
                    msg=lambda text, name=name, layer=layer: f"{name} {layer}: {text}",
                )


def test_only_some_filters_are_ablated(scene):
    inputs, spec, alone = scene
    some = measure(inputs, spec, InProcess(), MetricsConfig(("ablation_own",), ablation_filters=4)).measures
    assert set(some) == {"ablation_own"}
    for layer, found in some["ablation_own"].items():
        torch.testing.assert_close(found.per_filter_C, alone["ablation_own"][layer].per_filter_C[[0, 8, 16, 24]])


def test_the_cache_of_frozen_layers_changes_nothing(bench):
    bench.pretrained(("conv1", "conv2", "conv3"))
    weights = {"file": "w.npz", "layers": ["conv1", "conv2", "conv3"]}
    spec = tiny(
        model={"weights": weights},
        train={"freeze_through": "conv2", "epochs": 1},
        eval={"measures": list(WITHOUT_PARTS)},
    )
    computed = bench.run(spec.model_copy(update={"compute": spec.compute.model_copy(update={"cache_frozen": False})}))
    cached = bench.run(spec, "cached")
    for name in WITHOUT_PARTS:
        assert cached.metrics[name] == computed.metrics[name], name


def test_a_run_records_them_by_name_and_layer(bench):
    spec = tiny(train={"epochs": 2}, eval={"measures": ["purity", "activation_entropy"], "layer": "conv4"})
    tracker = MemoryTracker()
    train_run(bench.request(spec), InProcess(), tracker)
    for metrics in tracker.record.epochs.values():
        for name in ("purity", "activation_entropy"):
            assert 0 <= metrics[name] <= 1
            assert metrics[name] == metrics[f"{name}_conv4"]
            assert f"{name}_conv5" in metrics and f"{name}_dropped" in metrics
        assert not set(metrics) & set(ALL) - {"purity", "activation_entropy"}


def test_measures_do_not_change_the_training(bench):
    bench.run(tiny(train={"epochs": 2}), "plain")
    bench.run(tiny(train={"epochs": 2}, eval={"measures": list(WITHOUT_PARTS)}), "measured")
    assert bench.weights("plain") == bench.weights("measured")


def test_data_without_part_sizes_are_refused(bench):
    store = bench.inputs(tiny()).store
    MetricsConfig(("part_interpretability",)).check(store)
    without = replace(store, part_sizes_NK2=np.full_like(store.part_sizes_NK2, np.nan))
    with pytest.raises(DataError, match="part_interpretability needs the size of every part, and these data tell only"):
        MetricsConfig(("part_interpretability",)).check(without)
