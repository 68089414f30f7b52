"""The ILSVRC animal part: a small folder by hand, and the real foxes. What can be wrong with it: test_messages.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes.datasets import FISH, FOX, SIZE, IlsvrcFolder
from PIL import Image

from ipcnn_ray.data.datasets.ilsvrc_animal_part import IlsvrcAnimalPart
from ipcnn_ray.data.inspection import summary
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.utils.paths import Paths


@pytest.fixture
def animals(tmp_path):
    return IlsvrcFolder(tmp_path)


def test_one_category(animals):
    store = animals.store()
    assert store.labels_N.tolist() == [0] * 6 + [-1] * 4
    assert store.categories == (FOX,) and store.names[:2] == (f"{FOX} 1", f"{FOX} 2")
    assert store.tags == {"data.kind": "ilsvrc_animal_part", "data.drawn": "false"}
    # Pixel p of 224, from 1, is (p - 1/2) / 224 of the crop.
    assert store.landmarks_NK2[0, 0] == pytest.approx([112 / 224 * SIZE - 0.5, 19.5 / 224 * SIZE - 0.5], abs=1e-5)
    assert np.isnan(store.landmarks_NK2[5]).all(), "not seen, and seen twice"
    crop = Image.open(animals.root / f"{FOX}_obj/img/img/00001.jpg").crop((10, 20, 60, 60)).resize((SIZE, SIZE), 2)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))


def test_several_categories_one_of_them_without_limbs(animals):
    store = animals.store(category=[FISH, FOX])
    assert store.labels_N.tolist() == [0] * 6 + [1] * 6
    assert np.isnan(store.landmarks_NK2[:6, 1]).all()
    assert len(store.train_items) + len(store.val_items) == 2 * 1500


@pytest.mark.slow
@pytest.mark.real_data
def test_the_foxes_as_released(real_data, tmp_path):
    if not (real_data / f"detanimalpart/{FOX}_obj").is_dir():
        pytest.skip(f"IPCNN_DATA has no detanimalpart/{FOX}_obj")
    paths = dataclasses.replace(Paths.from_environment({"IPCNN_HOME": str(tmp_path)}), data=real_data)
    spec = IlsvrcAnimalPart.model_validate({"kind": "ilsvrc_animal_part", "category": FOX, "negatives": 200})
    store = prepare(spec, SIZE, paths)
    found = summary(store)
    assert (found["objects"], found["negatives"], found["left_out"]) == (286, 200, {})
    assert {name: one["seen"] for name, one in found["landmarks"].items()} == {"head": 211, "limbs": 143}
    assert found["landmarks"]["head"]["mean"][0] < found["landmarks"]["limbs"]["mean"][0], "heads above limbs"
    # The first fox by hand: box columns 35..216, rows 129..271; its head at (52.5, 190) of 224.
    assert store.landmarks_NK2[0, 0] == pytest.approx([52 / 224 * SIZE - 0.5, 189.5 / 224 * SIZE - 0.5], abs=1e-4)
    image = Image.open(real_data / f"detanimalpart/{FOX}_obj/img/img/00001.jpg").convert("RGB")
    crop = image.crop((34, 128, 216, 271)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))
