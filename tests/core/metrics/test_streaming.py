"""Metrics fed batch by batch, against the evaluation of a submitted run on the same maps."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes.training import Bench, Runtime, measure, tiny
from torch import Tensor

from ipcnn_ray.core.classification import classification_loss
from ipcnn_ray.core.metrics import streaming
from ipcnn_ray.core.metrics.filter_metric import FilterMetric
from ipcnn_ray.core.metrics.stability import pixel_noise
from ipcnn_ray.core.metrics.streaming import FilterMetrics, LandmarkTracking, LocationInstability, StreamingMetric
from ipcnn_ray.core.receptive_field import Field
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.train.distributed_inference import EvaluationPlan
from ipcnn_ray.train.evaluate import masked_maps

CLASSES: dict[str, type[StreamingMetric]] = {
    value.measured.name: value
    for value in vars(streaming).values()
    if isinstance(value, type) and issubclass(value, StreamingMetric) and hasattr(value, "measured")
}
ALL = tuple(name for name in METRICS.built_in if name not in EVERY_RUN)
LAYER, SETTINGS = "conv5", {"top_images": 4, "few_images": 3}


def test_every_metric_of_a_run_is_there():
    assert list(CLASSES) == list(METRICS.built_in)
    assert all(CLASSES[name].measured is METRICS.load(name) for name in CLASSES)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """By number of categories: inputs with part sizes, the items of objects and of validation, and an evaluation."""
    found = {}
    for categories in (["cow"], ["cow", "dog"]):
        bench = Bench(tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("cache"))
        data = {"category": categories if len(categories) > 1 else "cow"}
        spec = tiny(model={"dropout": 0.0}, data=data)
        inputs = bench.inputs(spec)
        sizes = np.where(np.isnan(inputs.store.landmarks_NK2), np.nan, np.float32([18 / 64, 22 / 64]))
        inputs.store = replace(inputs.store, part_sizes_NK2=sizes.astype(np.float32))
        evaluation = measure(inputs, spec, Runtime(), *ALL, few_images=SETTINGS["few_images"])
        plan = EvaluationPlan.of(inputs.store, "all")
        positions = {"objects": plan.object_positions, "validation": plan.validation_positions}
        items = {name: plan.items[which.numpy()] for name, which in positions.items()}
        found[len(categories)] = inputs, spec, items, evaluation
    return found


@torch.no_grad()
def batches(inputs, items, size: int = 3) -> Iterator[dict[str, Any]]:
    """Everything that `update` takes, of a network in evaluation mode, batch by batch."""
    net, store = inputs.net.eval(), inputs.store
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    with inputs.loader(parts, crops=True) as loader:
        for part, batch in zip(parts, loader, strict=True):
            output = inputs.output(batch)
            noise = torch.stack([pixel_noise(5, int(index), store.size) for index in part[:, 0]])
            intact_N = classification_loss(output.logits_NL.double(), batch.labels, "logistic")
            changes = []
            for c in range(output.passed[LAYER].shape[1]):
                without = output.passed[LAYER].clone()
                without[:, c] = 0
                logits_NL = net(without, above=LAYER, full=True).logits_NL
                changes.append(classification_loss(logits_NL.double(), batch.labels, "logistic") - intact_N)
            yield {
                "maps_NCHW": output.scores[LAYER],
                "landmarks_NK2": torch.from_numpy(store.landmarks_of(part)),
                "labels": batch.labels,
                "in_training": torch.from_numpy(np.isin(part[:, 0], store.train_items[:, 0])),
                "masked_maps_NCHW": masked_maps(output, LAYER),
                "noisy_maps_NCHW": inputs.output(batch, noise).scores[LAYER],
                "part_sizes_NK2": torch.from_numpy(store.part_sizes_NK2[part[:, 0]] * store.size),
                "loss_change_NC": torch.stack(changes, 1),
            }


@pytest.fixture(scope="module")
def fed(scenes) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """(categories, images) -> all batches."""
    return {
        (categories, images): list(batches(inputs, items))
        for categories, (inputs, _, by_images, _) in scenes.items()
        for images, items in by_images.items()
    }


def options(scenes, categories: int) -> dict[str, Any]:
    inputs, spec, _, _ = scenes[categories]
    return {"image_size": inputs.store.size, "field": layer_receptive_field(spec.model, LAYER), **SETTINGS}


def equal(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.nan_to_num(-7), expected.nan_to_num(-7))


@pytest.mark.parametrize(
    ("name", "categories"),
    # The category of a filter is the one on the images given, of a run the one on all objects.
    [(name, number) for name in CLASSES for number in (1, 2) if number == 1 or not CLASSES[name].measured.ablates()],
)
def test_a_metric_is_that_of_a_submitted_run(scenes, fed, name, categories):
    measured, metric = CLASSES[name].measured, CLASSES[name](**options(scenes, categories))
    images = "validation" if measured.images == "validation" else "objects"
    for batch in fed[categories, images]:
        metric.update(**batch)
    expected = scenes[categories][3].metrics[name][LAYER]
    result = metric.compute()
    assert expected.per_filter_C.isfinite().any()
    if measured.ablates() or name == "activation_entropy":  # sums of other batches
        torch.testing.assert_close(result.per_filter_C, expected.per_filter_C, rtol=1e-5, atol=1e-7)
    else:
        assert equal(result.per_filter_C, expected.per_filter_C)
    metric.reset()
    with pytest.raises(ValueError, match="no images: expected a call of update before compute"):
        metric.compute()


def test_several_at_once_from_peaks_in_any_order(scenes, fed):
    """Peaks in place of maps; batches in another order, with repeats, put right by the index of each image."""
    chosen = [CLASSES[name] for name in (*EVERY_RUN, "purity", "consistency")]
    together = FilterMetrics(chosen, map_side=16, **options(scenes, 2))
    source = FilterMetrics(chosen, **options(scenes, 2))
    for batch in fed[2, "objects"]:
        source.update(**batch)
    (rows,) = [{key: torch.cat([batch[key] for batch in source._batches]) for key in source._batches[0]}]
    N = len(rows["labels"])
    for part in (torch.arange(N - 1, 4, -1), torch.arange(N // 2)):
        given = {key: value[part] for key, value in rows.items() if key != "labels"}
        together.update(labels=rows["labels"][part], index=part, **given)
    found = together.compute()
    expected = scenes[2][3]
    assert list(found) == [metric.measured.name for metric in chosen]
    for name, result in found.items():
        assert equal(result.per_filter_C, expected.metrics[name][LAYER].per_filter_C), name
    names = (*scenes[2][0].store.landmark_names, None)
    tracking = LandmarkTracking(**options(scenes, 2))
    for batch in fed[2, "objects"]:
        tracking.update(**batch)
    summaries = expected.filters[LAYER]
    assert [names[k] for k in tracking.followed_landmarks().tolist()] == [row.landmark for row in summaries]
    best = tracking.by_landmark().nan_to_num(-9).amax(1).tolist()
    assert best == [-9 if math.isnan(row.tracking) else row.tracking for row in summaries]


def test_a_filter_that_follows_a_landmark_by_hand():
    """Maps of 4 x 4 cells of 8 pixels; filter 0 fires at the landmark, filter 1 always in the first cell."""
    cells = [(0, 1), (2, 2), (3, 0), (1, 3)]
    maps_NCHW, landmarks_NK2 = torch.zeros(4, 2, 4, 4), torch.zeros(4, 1, 2)
    for i, (row, col) in enumerate(cells):
        maps_NCHW[i, 0, row, col] = 1
        landmarks_NK2[i, 0] = torch.tensor([8 * row + 3.5, 8 * col + 3.5])
    instability, tracking = LocationInstability(32, top_images=4), LandmarkTracking(32, top_images=4)
    center = streaming.InstabilityCenter(32, map_side=4)
    for start in (0, 2):
        for metric in (instability, tracking, center):
            metric.update(maps_NCHW[start : start + 2], landmarks_NK2[start : start + 2])
    distances = [8 * math.hypot(row, col) for row, col in cells]
    deviation = float(np.std(distances, ddof=1)) / (32 * math.sqrt(2))
    assert instability.compute().per_filter_C.tolist() == pytest.approx([0, deviation])
    assert instability.compute().mean == pytest.approx(deviation / 2)
    assert tracking.compute().per_filter_C.tolist() == pytest.approx([1, 0])
    assert tracking.followed_landmarks().tolist() == [0, -1]
    from_middle = [8 * math.hypot(row - 1.5, col - 1.5) for row, col in cells]
    assert center.compute().mean == pytest.approx(float(np.std(from_middle, ddof=1)) / (32 * math.sqrt(2)))
    for other in (copy.deepcopy(tracking), pickle.loads(pickle.dumps(tracking))):
        assert torch.equal(other.compute().per_filter_C, tracking.compute().per_filter_C)


class SumOfMasked(FilterMetric):
    """A metric of another package, with an update of its own."""

    name, unit, better, images = "sum_of_masked", "1", "higher", "objects"
    description = "maps plus masked maps"

    def update(self, maps_NCHW: Tensor, masked_maps_NCHW: Tensor) -> Tensor:
        return (maps_NCHW + masked_maps_NCHW).sum((2, 3)).double()

    def compute(self, state: Tensor) -> Tensor:
        return state.sum(0)


def test_a_metric_of_ones_own():
    metrics = FilterMetrics([SumOfMasked], 32)
    maps_NCHW = torch.randn(3, 2, 4, 4)
    metrics.update(maps_NCHW[:2], masked_maps_NCHW=torch.ones(2, 2, 4, 4), labels=torch.tensor([0, -1]))
    metrics.update(maps_NCHW[2:], masked_maps_NCHW=torch.ones(1, 2, 4, 4))
    expected = maps_NCHW[[0, 2]].relu().sum((0, 2, 3)) + 32
    torch.testing.assert_close(metrics.compute()["sum_of_masked"].per_filter_C, expected.double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size = 0: expected a whole number of at least 1"),
        ({"image_size": 32.0}, "image_size = 32.0: expected a whole number of at least 1"),
        ({"top_images": 1}, "top_images = 1: expected a whole number of at least 2"),
        ({"few_images": 1}, "few_images = 1: expected a whole number of at least 2"),
        ({"map_side": 0}, "map_side = 0: expected a whole number of at least 1"),
        ({"instability": "mean"}, "instability = 'mean': expected 'paper' or 'released'"),
        ({"metrics": []}, "metrics is empty: expected at least one class"),
        (
            {"metrics": [LandmarkTracking, LandmarkTracking.measured]},
            "metrics has landmark_tracking twice: expected each once",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        FilterMetrics(**{"metrics": [LocationInstability], "image_size": 32, **arguments})
    assert str(error.value) == message


MAPS, LANDMARKS = torch.rand(2, 3, 4, 4), torch.zeros(2, 1, 2)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("instability", {}, "update has no input: expected maps_NCHW, landmarks_NK2"),
        ("instability", {"maps_NCHW": MAPS}, "landmarks_NK2 = None: expected it for instability"),
        (
            "instability",
            {"landmarks_NK2": LANDMARKS},
            "maps_NCHW = None: expected it for instability (or peaks_NC2 and activation_NC)",
        ),
        (
            "keypoint_error",
            {"maps_NCHW": MAPS, "landmarks_NK2": LANDMARKS},
            "in_training = None: expected it for keypoint_error",
        ),
        (
            "keypoint_error",
            {"maps_NCHW": MAPS, "landmarks_NK2": LANDMARKS, "in_training": torch.ones(2)},
            "in_training is torch.float32: expected bool",
        ),
        (
            "stability",
            {"maps_NCHW": MAPS, "landmarks_NK2": LANDMARKS},
            "noisy_maps_NCHW = None: expected it for stability",
        ),
        ("ablation_own", {"maps_NCHW": MAPS}, "loss_change_NC = None: expected it for ablation_own"),
        (
            "activation_entropy",
            {"peaks_NC2": torch.zeros(2, 3, 2), "activation_NC": torch.zeros(2, 3)},
            "maps_NCHW = None: expected it for activation_entropy",
        ),
        (
            "instability",
            {"maps_NCHW": MAPS, "landmarks_NK2": LANDMARKS[:1]},
            "numbers of rows are landmarks_NK2 1, maps_NCHW 2: expected one row for each image in all",
        ),
        (
            "peak_spread",
            {"peaks_NC2": torch.zeros(2, 3, 2), "activation_NC": torch.zeros(1, 3)},
            "numbers of rows are peaks_NC2 2, activation_NC 1: expected one row for each image in all",
        ),
        ("peak_distance", {"maps_NCHW": MAPS[:, :, 0]}, "maps have shape (2, 3, 4): expected [N, C, n, n]"),
        ("peak_distance", {"maps_NCHW": MAPS[:, :, :3]}, "maps have shape (2, 3, 3, 4): expected [N, C, n, n]"),
        (
            "peak_distance",
            {"maps_NCHW": MAPS, "labels": torch.zeros(2)},
            "labels is torch.float32 (2,): expected whole numbers [N]",
        ),
        (
            "peak_distance",
            {"maps_NCHW": torch.zeros(2, 3, 5, 5)},
            "field = None: images of 32 pixels do not divide into 5 cells; expected the receptive fields of the layer, "
            "as ipcnn_ray.receptive_field(module)",
        ),
    ],
)
def test_wrong_inputs(name, given, message):
    with pytest.raises(ValueError) as error:
        CLASSES[name](32).update(**given)
    assert str(error.value) == message


def test_a_flag_says_whether_an_image_shows_the_object():
    by_flag, by_category = CLASSES["peak_distance"](32), CLASSES["peak_distance"](32)
    by_flag.update(MAPS, labels=torch.tensor([True, False]))
    by_category.update(MAPS, labels=torch.tensor([0, -1], dtype=torch.int32))
    one = CLASSES["peak_distance"](32)
    one.update(MAPS[:1])
    assert equal(by_flag.compute().per_filter_C, one.compute().per_filter_C)
    assert equal(by_category.compute().per_filter_C, one.compute().per_filter_C)


def test_inputs_that_do_not_go_together():
    metric = CLASSES["peak_distance"](32)
    metric.update(MAPS)
    with pytest.raises(ValueError, match=r"maps have shape \(2, 3, 8, 8\): expected \[N, C, 4, 4\]"):
        metric.update(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"peaks_NC2 has rows of shape \(5, 2\): expected \(3, 2\), as in the first"):
        metric.update(torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="index: expected it in every batch, or in none"):
        metric.update(MAPS, index=torch.arange(2))
    with pytest.raises(ValueError, match="map_side = None: expected the side of a map in cells, where no maps"):
        center = CLASSES["instability_center"](32)
        center.update(landmarks_NK2=LANDMARKS)
        center.compute()
    with pytest.raises(ValueError, match="no image shows an object: expected labels of at least 0 for some"):
        metric.reset()
        metric.update(MAPS, labels=torch.tensor([-1, -1]))
        metric.compute()
    spread = CLASSES["peak_spread"](32, field=Field(8, 8, 3.5))
    peaks = {"peaks_NC2": torch.zeros(2, 3, 2), "activation_NC": torch.zeros(2, 3)}
    spread.update(**peaks, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="map_side = None"):
        spread.compute()
    spread = CLASSES["peak_spread"](32, map_side=4)
    spread.update(**peaks, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="pooled_NC = None: expected it, or maps_NCHW, where images are of several"):
        spread.compute()
