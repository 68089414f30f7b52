from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes.drawings import draw
from PIL import Image

from ipcnn_ray.data import crops
from ipcnn_ray.data import prepare as prepare_module
from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.data.datasets.voc_part import VocPart
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError

S = 32


def age(root: Path) -> None:
    """Make every file an hour old, as those of a downloaded dataset are."""
    for path in (root / "voc").rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)


def test_a_voc_folder_becomes_a_store(folder):
    reports: list[tuple[int, int]] = []
    store = prepare(folder.spec(), S, folder.paths, lambda done, total: reports.append((done, total)))
    assert reports == [(i, 14) for i in range(1, 15)]
    assert store.labels_N.tolist() == [0] * 8 + [-1] * 6
    assert (store.names[0], store.names[8]) == ("2008_000000 1", "negative 00001")
    assert store.landmark_names == ("head", "neck", "torso")
    assert store.tags == {"data.kind": "voc_part", "data.drawn": "false"}
    # 3 positives to one negative: 18 of 6, the 16 flips of 8 objects repeated
    assert len(store.train_items) + len(store.val_items) == 18 + 6
    # object 0: box 50 x 40, head at (1/4, 1/8) of it
    assert np.allclose(store.landmarks_NK2[0, 0], [(0.25 * 39 + 0.5) * S / 40 - 0.5, (0.125 * 49 + 0.5) * S / 50 - 0.5])
    assert np.isnan(store.landmarks_NK2[8:]).all()
    for i, (name, (xmin, ymin, xmax, ymax)) in enumerate(folder.boxes):
        image = Image.open(folder.jpegs / name).crop((xmin - 1, ymin - 1, xmax, ymax)).resize((S, S), Image.BILINEAR)
        assert np.array_equal(store.images_N3SS[i], np.asarray(image).transpose(2, 0, 1))
    grey = store.images_N3SS[9]
    assert np.array_equal(grey[0], grey[1])


def test_part_masks_become_a_store(folder):
    for i in range(4):
        boxes = [(11, 21, 60, 60), (71, 31, 130, 90)]
        folder.annotate(
            f"2008_00000{i}", [{"class": "cow", "bbox": b, "parts": {"head": b, "torso": b}} for b in boxes]
        )
    spec = folder.spec(annotation="part_masks", landmarks=("head", "torso"))
    store = prepare(spec, S, folder.paths)
    files = prepare(folder.spec(landmarks=("head", "torso")), S, folder.paths)
    assert np.array_equal(store.images_N3SS, files.images_N3SS)
    assert np.allclose(store.landmarks_NK2[0], [[(S - 1) / 2] * 2] * 2)


@pytest.mark.parametrize(
    ("min_side", "left_out"),
    [(50, {"smaller than 50^2 pixels": 4}), (60, {"smaller than 60^2 pixels": 4})],  # 50 x 40 = 2000, 60 x 60 = 3600
)
def test_small_objects_are_left_out_and_counted(folder, min_side, left_out):
    store = folder.store(min_side=min_side, landmarks=("torso",))
    assert (len(store.objects), store.left_out) == (4, left_out)


def test_the_second_time_nothing_is_made_nor_an_unchanged_folder_read(folder, monkeypatch):
    first = folder.store().digest
    # Just written: the time of change cannot tell whether a file changes once more within the same tick.
    assert not (folder.paths.cache / "crops/index").exists()
    monkeypatch.setattr(crops, "decode", None)
    age(folder.root)
    assert folder.store().digest == first
    monkeypatch.setattr(VocPart, "read", None)
    assert folder.store().digest == first


def repaint(folder):
    path = folder.jpegs / "2008_000001.jpg"
    Image.new("RGB", (140, 100), "red").save(path)
    return path


def resave_same_size(folder):
    path = folder.negatives / "00003.JPEG"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    return path


def move_landmark(folder):
    folder.centers[3][2] = (100.0, 100.0)
    folder.write_truths()
    return folder.part_file(3)


def rename_images(folder):
    for number, (image, box) in enumerate(folder.boxes):
        folder.boxes[number] = (image.replace("2008", "2009"), box)
    for path in folder.jpegs.glob("*.jpg"):
        path.rename(path.with_name(path.name.replace("2008", "2009")))
    folder.write_truths()
    return folder.part_file(1)


@pytest.mark.parametrize("change", [repaint, resave_same_size, move_landmark, rename_images])
def test_a_changed_folder_is_another_store(folder, change):
    age(folder.root)
    first = folder.store().digest
    for path in folder.voc.rglob("*"):
        os.utime(path)
    assert folder.store().digest == first, "only touched"
    change(folder)
    assert folder.store().digest != first


def test_what_makes_the_crops_makes_the_digest(folder):
    made = [
        prepare(folder.spec(**changed), size, folder.paths).digest
        for changed, size in [
            ({}, S),
            ({}, S + 1),
            ({"landmarks": ("torso", "head")}, S),
            ({"negatives": 5}, S),
            ({"train_share": 0.5}, S),
        ]
    ]
    assert len(set(made)) == len(made)


def test_the_digest_is_the_same_wherever_the_folder_lies(folder, tmp_path):
    first = folder.store().digest
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    folder.voc.rename(moved / "voc")
    folder.root = moved
    assert folder.store().digest == first


def test_a_spoilt_index_is_not_believed(folder):
    age(folder.root)
    first = folder.store().digest
    (entry,) = (folder.paths.cache / "crops/index").iterdir()
    entry.write_text('{"digest": "x"')
    assert folder.store().digest == first
    assert prepare_module.recall(folder.paths.cache, entry.stem) == first


def test_two_at_once_make_it_once(folder, monkeypatch):
    made = []
    write = prepare_module.write_store
    started = threading.Barrier(2)

    def counted(*given):
        made.append(1)
        write(*given)

    def one(_: int):
        started.wait()
        return folder.store().digest

    monkeypatch.setattr(prepare_module, "write_store", counted)
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(one, range(2)))) == 1
    assert made == [1]


def test_an_interrupted_preparation_is_made_anew(folder):
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder.spec(), S, folder.paths, stop)
    assert [path.suffix for path in (folder.paths.cache / "crops").iterdir()] == [".lock"]
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]
    assert len(folder.store().labels_N) == 14


def test_a_damaged_store_is_reported_not_replaced(folder):
    store = folder.store()
    images = folder.paths.cache / "crops" / store.digest / "images.npy"
    images.write_bytes(images.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"this cache of crops is damaged: images\.npy has 43129 bytes, expected 43136"):
        folder.store()
    assert images.stat().st_size == 43129


def test_drawn_animals_become_a_store(folder):
    spec = DrawnAnimals(kind="drawn_animals", objects=12, negatives=10)
    told: list[tuple[int, int]] = []
    store = prepare(spec, S, folder.paths, lambda done, total: told.append((done, total)))
    drawn = draw(spec, S)
    assert np.array_equal(store.images_N3SS, drawn.images_N3SS)
    assert np.array_equal(store.labels_N, drawn.labels_N)
    assert np.array_equal(store.landmarks_NK2, drawn.landmarks_NK2, equal_nan=True)
    assert list(store.names) == drawn.names
    assert store.tags == {"data.kind": "drawn_animals", "data.drawn": "true"}
    # every object in both mirror images, negatives once, no repeats
    assert len(store.train_items) + len(store.val_items) == 34
    assert told[-1] == (22, 22)
    again = prepare(spec, S, folder.paths, lambda done, total: pytest.fail("made twice"))
    assert again.digest == store.digest


def test_a_split_without_an_animal_is_refused(folder):
    spec = DrawnAnimals(kind="drawn_animals", objects=10, negatives=10, train_share=0.99)
    with pytest.raises(DataError) as caught:
        prepare(spec, S, folder.paths)
    assert [str(problem) for problem in caught.value.issues] == [
        f"data.train_share  leaves no {kind} in the validation split\n"
        "       Use more images, or another data.train_share."
        for kind in ("object", "negative")
    ]
    assert not folder.paths.cache.exists()
