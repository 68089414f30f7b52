"""The real photographs of VOC cow, as far as a minute allows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipcnn_ray.data.datasets.voc_part import VocPart
from ipcnn_ray.data.inspection import summary
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.utils.paths import Paths

SIZE = 64


@pytest.fixture(scope="module")
def paths(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    if not (real_data / "voc/landmarks/cow").is_dir():
        pytest.skip("IPCNN_DATA has no voc/landmarks/cow")
    home = tmp_path_factory.mktemp("home")
    return dataclasses.replace(Paths.from_environment({"IPCNN_HOME": str(home)}), data=real_data)


@pytest.fixture(scope="module")
def spec() -> VocPart:
    return VocPart.model_validate(
        {"kind": "voc_part", "category": "cow", "landmarks": ["head", "neck", "torso", "nose"]}
    )


@pytest.mark.real_data
def test_cow_as_released(paths, spec):
    found = summary(prepare(spec, SIZE, paths))
    assert (found["objects"], found["negatives"], found["left_out"]) == (194, 1000, {})
    assert {name: one["seen"] for name, one in found["landmarks"].items()} == {
        "head": 182,
        "neck": 90,
        "torso": 193,
        "nose": 161,
    }
    splits = found["splits"]
    assert splits["training"]["items"] + splits["validation"]["items"] == 4000
    assert splits["training"]["negative_items"] == 900
    assert splits["training"]["objects"] == 175


@pytest.mark.real_data
def test_the_first_cow_by_hand(paths, spec, real_data):
    """Its box is columns 219..292 and rows 162..220, its head rows 195..214 and columns 219..236, its neck rows
    186..202 and columns 225..237 of the photograph, 1-based."""
    store = prepare(spec, SIZE, paths)
    assert store.names[0] == "2008_000009 1"
    image = Image.open(real_data / "voc/VOCdevkit/VOC2010/JPEGImages/2008_000009.jpg")
    crop = image.crop((218, 161, 292, 220)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))
    for k, (top, bottom, left, right) in enumerate([(195, 214, 219, 236), (186, 202, 225, 237)]):
        row, col = (top + bottom) / 2 - 162, (left + right) / 2 - 219
        assert store.landmarks_NK2[0, k] == pytest.approx(
            [(row + 0.5) * SIZE / 59 - 0.5, (col + 0.5) * SIZE / 74 - 0.5], abs=1e-4
        )


@pytest.mark.real_data
def test_landmarks_lie_in_their_crops_and_heads_beside_torsos(paths, spec):
    store = prepare(spec, SIZE, paths)
    landmarks = store.landmarks_NK2[store.objects]
    seen = landmarks[~np.isnan(landmarks)]
    assert seen.min() > -0.5
    assert seen.max() < SIZE - 0.5
    apart = landmarks[:, 0] - landmarks[:, 2]
    apart = apart[~np.isnan(apart).any(1)]
    assert (np.linalg.norm(apart, axis=1) > SIZE / 10).mean() > 0.9
