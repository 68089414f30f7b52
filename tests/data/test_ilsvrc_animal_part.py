"""The ILSVRC animal part: a small folder by hand, everything that can be wrong with it, and the real foxes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.io
from fakes.matlab import struct_array
from PIL import Image

from ipcnn_ray.data.datasets.ilsvrc_animal_part import IlsvrcAnimalPart
from ipcnn_ray.data.inspection import summary
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError
from ipcnn_ray.utils.paths import Paths

FOX, FISH = "n02118333", "n01443537"
BOX = (11, 21, 60, 60)
S = 32


def bndbox(box, kind=float):
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), map(kind, box), strict=True))


def element(center, box=BOX):
    if center is None:
        return {"obj": np.empty((0, 0)), "pHW_center": np.empty((0, 0))}
    return {"obj": {"filename": "x", "bndbox": bndbox(box, str)}, "pHW_center": np.array(center, float)}


@pytest.fixture
def animals(tmp_path, photo):
    """Six foxes and six goldfish, four negatives; a function that prepares a spec of them."""
    root = tmp_path / "detanimalpart"
    for category, first in ((FOX, 0), (FISH, 50)):
        for i in range(1, 7):
            photo(root / f"{category}_obj/img/img/{i:05}.jpg", first + i)
        scipy.io.savemat(
            root / f"{category}_obj/img/data.mat", {"samples": struct_array([{"obj": {"bndbox": bndbox(BOX)}}] * 6)}
        )
        (root / "landmarks" / category).mkdir(parents=True)
        heads = [[[112.5], [20.0 * i]] for i in range(1, 6)] + [None]
        scipy.io.savemat(
            root / f"landmarks/{category}/truth_part01.mat", {"truth": struct_array([element(c) for c in heads])}
        )
    limbs = [element([[200.0], [10.0]])] * 5 + [element([[100.0, 200.0], [10.0, 20.0]])]
    scipy.io.savemat(root / f"landmarks/{FOX}/truth_part02.mat", {"truth": struct_array(limbs)})
    for i in range(1, 5):
        photo(tmp_path / f"voc/neg/{i:05}.JPEG", 100 + i)
    paths = Paths.from_environment(
        {"IPCNN_HOME": str(tmp_path / "home"), "IPCNN_CACHE": str(tmp_path / "cache"), "IPCNN_DATA": str(tmp_path)}
    )

    def make(**changed):
        given = {"kind": "ilsvrc_animal_part", "category": FOX, "min_side": 20, "train_share": 0.5}
        many = isinstance(changed.get("category"), list)
        spec = IlsvrcAnimalPart.model_validate(given | {"negatives": 0 if many else 4} | changed)
        return prepare(spec, S, dataclasses.replace(paths))

    make.root = root
    return make


def told(animals, **changed):
    with pytest.raises(DataError) as caught:
        animals(**changed)
    return str(caught.value).replace(str(animals.root), "DATA")


def test_one_category(animals):
    store = animals()
    assert store.labels_N.tolist() == [0] * 6 + [-1] * 4
    assert store.categories == (FOX,) and store.names[:2] == (f"{FOX} 1", f"{FOX} 2")
    assert store.tags == {"data.kind": "ilsvrc_animal_part", "data.drawn": "false"}
    # Pixel p of 224, from 1, is (p - 1/2) / 224 of the crop.
    assert store.landmarks_NK2[0, 0] == pytest.approx([112 / 224 * S - 0.5, 19.5 / 224 * S - 0.5], abs=1e-5)
    assert np.isnan(store.landmarks_NK2[5]).all(), "not seen, and seen twice"
    crop = Image.open(animals.root / f"{FOX}_obj/img/img/00001.jpg").crop((10, 20, 60, 60)).resize((S, S), 2)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))


def test_several_categories_one_of_them_without_limbs(animals):
    store = animals(category=[FISH, FOX])
    assert store.labels_N.tolist() == [0] * 6 + [1] * 6
    assert np.isnan(store.landmarks_NK2[:6, 1]).all()
    assert len(store.train_items) + len(store.val_items) == 2 * 1500


def test_a_landmark_file_of_another_object(animals):
    moved = [element([[100.0], [10.0]], (11, 21, 90, 60)), *[element([[100.0], [10.0]], (10, 20, 60, 60))] * 5]
    scipy.io.savemat(animals.root / f"landmarks/{FOX}/truth_part02.mat", {"truth": struct_array(moved)})
    assert told(animals) == (
        f"DATA/{FOX}_obj/img/img object 1 landmark 'limbs'  its file describes another object: "
        "box (11, 21, 90, 60), in data.mat (11, 21, 60, 60)\n"
        "       data.mat and the truth_part*.mat of a category must be of one release: fetch them again."
    )


def test_files_of_different_lengths(animals):
    (animals.root / f"{FOX}_obj/img/img/00006.jpg").unlink()
    assert told(animals) == (
        f"DATA/{FOX}  the files hold different numbers of objects: "
        "photographs 5, data.mat 6, truth_part01.mat 6, truth_part02.mat 6\n"
        "       data.mat and the truth_part*.mat of a category must be of one release: fetch them again."
    )


def test_everything_that_is_missing_is_told_at_once(animals):
    (animals.root / f"{FOX}_obj/img/data.mat").unlink()
    (animals.root / f"landmarks/{FOX}/truth_part02.mat").unlink()
    (animals.root / f"landmarks/{FISH}/truth_part01.mat").write_text("<html>")
    assert told(animals, category=[FOX, FISH]) == (
        f"DATA/{FOX}_obj/img/data.mat  cannot be read: No such file or directory\n       Fetch the file again.\n"
        f"DATA/landmarks/{FOX}/truth_part02.mat  no such file\n"
        "       It holds the landmark 'limbs'; take it out of data.landmarks, or add it.\n"
        f"DATA/landmarks/{FISH}/truth_part01.mat  is not a MATLAB v5 or v7.3 file\n       Fetch the file again."
    )


def test_a_landmark_outside_the_crop(animals):
    scipy.io.savemat(
        animals.root / f"landmarks/{FOX}/truth_part02.mat", {"truth": struct_array([element([[100.0], [300.0]])] * 6)}
    )
    text = told(animals)
    assert f"DATA/{FOX}_obj/img/img object 1 landmark 'limbs'  is at (100, 300), outside the crop" in text
    assert "       pHW_center is (row, col) in pixels of the crop, 1 to 224. Fetch the file again." in text


def test_a_data_mat_without_boxes(animals):
    scipy.io.savemat(animals.root / f"{FOX}_obj/img/data.mat", {"samples": struct_array([{"class": 1.0}] * 6)})
    assert told(animals) == (
        f"DATA/{FOX}_obj/img/data.mat  'samples' is not a struct array with the fields obj\n"
        "       Fetch the file again."
    )


@pytest.mark.real_data
def test_the_foxes_as_released(real_data, tmp_path):
    if not (real_data / f"detanimalpart/{FOX}_obj").is_dir():
        pytest.skip(f"IPCNN_DATA has no detanimalpart/{FOX}_obj")
    paths = dataclasses.replace(Paths.from_environment({"IPCNN_HOME": str(tmp_path)}), data=real_data)
    spec = IlsvrcAnimalPart.model_validate({"kind": "ilsvrc_animal_part", "category": FOX, "negatives": 200})
    store = prepare(spec, S, paths)
    found = summary(store)
    assert (found["objects"], found["negatives"], found["left_out"]) == (286, 200, {})
    assert {name: one["seen"] for name, one in found["landmarks"].items()} == {"head": 211, "limbs": 143}
    assert found["landmarks"]["head"]["mean"][0] < found["landmarks"]["limbs"]["mean"][0], "heads above limbs"
    # The first fox by hand: box columns 35..216, rows 129..271; its head at (52.5, 190) of 224.
    assert store.landmarks_NK2[0, 0] == pytest.approx([52 / 224 * S - 0.5, 189.5 / 224 * S - 0.5], abs=1e-4)
    image = Image.open(real_data / f"detanimalpart/{FOX}_obj/img/img/00001.jpg").convert("RGB")
    crop = image.crop((34, 128, 216, 271)).resize((S, S), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))
