"""Location instability of filters that do not look at the image: by hand and against every possible filter."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ipcnn_ray.core.metrics import instability_baselines
from ipcnn_ray.core.metrics.filter_metric import LayerContext
from ipcnn_ray.core.metrics.instability_baselines import (
    InstabilityBestConstant,
    InstabilityCenter,
    InstabilityRandom,
)
from ipcnn_ray.core.metrics.location_instability import location_instability_of_categories
from ipcnn_ray.core.receptive_field import Field, centers
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.utils.paths import Paths

LAYER = LayerContext(image_size=9, map_side=2, field=Field(4, 5, 2.0))
"""Centre (4, 4); cells at 2 and 6."""
ONE = torch.zeros(3, dtype=torch.int64)


def drawn(images: int, missing: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    landmarks_NK2 = torch.rand(images, 2, 2, generator=generator, dtype=torch.float64) * 9
    landmarks_NK2[torch.rand(images, 2, generator=generator) < missing] = torch.nan
    return landmarks_NK2, torch.randint(0, 2, (images,), generator=generator)


def as_a_filter(place: list[float], landmarks: Tensor, labels: Tensor, layer: LayerContext) -> float:
    """Location instability of a filter that is at this place in all images, and as active in one as in the other."""
    N = len(labels)
    peaks, active = torch.tensor(place).double().expand(N, 1, 2), torch.ones(N, 1)
    found = location_instability_of_categories(peaks, active, landmarks, labels, 9 * math.sqrt(2), top_images=N)
    return float(found.per_filter_C)


def test_the_centre_by_hand():
    # Distances from (4, 4): 5, 0, 10; their deviation is 5. The second landmark is 3 away in both images: deviation 0.
    nan = math.nan
    landmarks = torch.tensor([[[7.0, 8.0], [4.0, 7.0]], [[4.0, 4.0], [nan, nan]], [[10.0, 12.0], [1.0, 4.0]]])
    found = InstabilityCenter(LAYER).compute(landmarks, ONE)
    assert found.tolist() == [pytest.approx((5 + 0) / 2 / (9 * math.sqrt(2)))]


@pytest.mark.parametrize("images", [8, 30])
def test_constants_are_filters_that_never_move(images):
    landmarks, labels = drawn(images)
    for label_N in (torch.zeros_like(labels), labels):
        center = as_a_filter([4.0, 4.0], landmarks, label_N, LAYER)
        assert InstabilityCenter(LAYER).compute(landmarks, label_N).tolist() == [pytest.approx(center, rel=1e-12)]
        cells = [as_a_filter([r, c], landmarks, label_N, LAYER) for r in (2.0, 6.0) for c in (2.0, 6.0)]
        best = InstabilityBestConstant(LAYER).compute(landmarks, label_N)
        assert best.tolist() == [pytest.approx(min(cells), rel=1e-12)] and len(set(cells)) == 4


def test_random_cells_are_the_mean_over_all_choices_of_cells():
    landmarks = drawn(5, missing=0.0)[0]
    center_n = centers(LAYER.field, 2).tolist()
    cells = list(itertools.product(center_n, center_n))
    per_landmark = []
    for k in range(2):
        variances = [
            statistics.variance(math.dist(cell, landmarks[i, k].tolist()) for i, cell in enumerate(chosen))
            for chosen in itertools.product(cells, repeat=5)
        ]
        per_landmark.append(math.sqrt(statistics.fmean(variances)))
    found = InstabilityRandom(LAYER).compute(landmarks, torch.zeros(5, dtype=torch.int64))
    assert found.tolist() == [pytest.approx(statistics.fmean(per_landmark) / (9 * math.sqrt(2)), rel=1e-9)]


@pytest.mark.parametrize("metric", [InstabilityCenter, InstabilityBestConstant, InstabilityRandom])
def test_of_several_categories_the_lowest_or_the_mean(metric):
    landmarks, labels = drawn(30)
    each = [float(metric(LAYER).compute(landmarks[labels == c], labels[labels == c])) for c in (0, 1)]
    layers = {rule: replace(LAYER, instability=rule) for rule in ("paper", "released")}
    together = {rule: float(metric(layer).compute(landmarks, labels)) for rule, layer in layers.items()}
    assert together["paper"] == pytest.approx(min(each)) and each[0] != each[1]
    if metric is InstabilityBestConstant:  # one place for all categories
        assert together["released"] >= statistics.fmean(each) - 1e-12
    else:
        assert together["released"] == pytest.approx(statistics.fmean(each))


@pytest.mark.parametrize("metric", [InstabilityCenter, InstabilityBestConstant, InstabilityRandom])
def test_what_cannot_be_measured(monkeypatch, metric):
    landmarks, _ = drawn(30)
    whole = metric(LAYER).compute(landmarks, torch.zeros(30, dtype=torch.int64))
    monkeypatch.setattr(instability_baselines, "CHUNK", 1)  # one place or image at a time
    torch.testing.assert_close(metric(LAYER).compute(landmarks, torch.zeros(30, dtype=torch.int64)), whole)
    # A category that shows nothing, one with a landmark on one image, and one without the second landmark.
    nothing, single, without = landmarks[:3] * torch.nan, landmarks[3:6].clone(), landmarks[6:].clone()
    single[1:, 0] = torch.nan
    single[0, 0], without[:, 1] = 1.0, torch.nan
    images, labels = torch.cat([nothing, single, without]), torch.tensor([0] * 3 + [1] * 3 + [2] * 24)
    alone = metric(LAYER).compute(without[:, :1], labels[6:])
    for rule in ("paper", "released"):
        layer = replace(LAYER, instability=rule)
        assert torch.equal(metric(layer).compute(images, labels), alone) and bool(alone.isfinite())
        assert metric(layer).compute(images[:6], labels[:6]).isnan().tolist() == [True]


VOC = {"cow": (0.0697, 0.0694, 0.1439), "sheep": (0.0726, 0.0715, 0.1439)}
"""Centre, best constant and random cell of VOC objects, computed by other code from 100 images per landmark."""


@pytest.mark.slow
@pytest.mark.parametrize("animal", list(VOC))
def test_photographs(tmp_path, real_data, animal):
    raw = {"name": "t", "data": {"kind": "voc_part", "category": animal, "negatives": 20, "train_share": 0.8}}
    raw |= {"model": {"network": "vgg16"}, "template": {"shape": "none"}, "train": {"epochs": 1}}
    folders = {"IPCNN_HOME": str(tmp_path), "IPCNN_CACHE": str(tmp_path / "cache"), "IPCNN_DATA": str(real_data)}
    store = prepare(ExperimentSpec.model_validate(raw).data, 224, Paths.from_environment(folders))
    landmarks, labels = torch.from_numpy(store.landmarks_NK2[store.objects]), torch.zeros(len(store.objects)).long()
    layer = LayerContext(image_size=224, map_side=14, field=Field(16, 196, 7.5))
    metrics = (InstabilityCenter, InstabilityBestConstant, InstabilityRandom)
    center, best, random = (float(metric(layer).compute(landmarks, labels)) for metric in metrics)
    assert [center, best, random] == pytest.approx(VOC[animal], abs=0.0015)
    assert max(center, best) < random / 1.9
