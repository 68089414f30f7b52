from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from ipcnn_ray.data.crop_store import FORMAT, Contents, folder_of, open_store, rows_reader, write_store
from ipcnn_ray.errors import DataError

N, S = 12, 40
DIGEST = "0123456789abcdef"
PIXELS = np.random.default_rng(1).integers(0, 256, (N, 3, S, S), np.uint8)


def contents() -> Contents:
    landmarks = np.full((N, 2, 2), np.nan, np.float32)
    landmarks[:4, 0] = [[1, 2], [3, 4], [5, 6], [7, 8]]
    landmarks[3, 1] = [9, 10]
    return Contents(
        labels_N=np.where(np.arange(N) < 4, 0, -1),
        categories=("cow",),
        landmarks_NK2=landmarks,
        train_items=np.array([[0, 0], [0, 1], [0, 1], [5, 0]]),
        val_items=np.array([[1, 0], [6, 0]]),
        names=tuple(f"n{i}" for i in range(N)),
        landmark_names=("head", "neck"),
        tags={"data.drawn": "true"},
        left_out={"too small": 3},
    )


def fill(images):
    images[:] = PIXELS


@pytest.fixture
def cache(tmp_path) -> Path:
    write_store(tmp_path, DIGEST, S, contents(), fill)
    return tmp_path


def test_what_was_written_is_read(cache):
    store = open_store(cache, DIGEST)
    assert store is not None
    given = contents()
    for one in ("labels_N", "train_items", "val_items"):
        assert np.array_equal(getattr(store, one), getattr(given, one)), one
    for one in ("categories", "names", "landmark_names", "tags", "left_out"):
        assert getattr(store, one) == getattr(given, one), one
    assert np.array_equal(store.images_N3SS, PIXELS)
    assert store.size == S
    assert store.objects.tolist() == [0, 1, 2, 3]
    assert store.landmarks_NK2[3].tolist() == [[7, 8], [9, 10]]
    assert isinstance(store.images_N3SS, np.memmap)
    assert not store.images_N3SS.flags.writeable
    first, other = PIXELS[0].astype(float), PIXELS[5].astype(float)
    mean = (first + 2 * first[:, :, ::-1] + other) / 4  # repeats and mirror images count
    assert np.allclose(store.mean_3SS, mean, rtol=1e-6)
    moved = store.landmarks_of(np.array([[1, 0], [1, 1], [6, 1]]))
    assert moved[:2, 0].tolist() == [[3, 4], [3, S - 1 - 4]] and np.isnan(moved[2]).all()
    assert store.landmarks_NK2[1, 0].tolist() == [3, 4], "the store keeps its own"


def flip_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "images.npy").unlink(), "images.npy is missing"),
        (lambda f: (f / "meta.json").unlink(), "meta.json is missing"),
        (lambda f: (f / "arrays.npz").unlink(), "arrays.npz is missing"),
        (lambda f: (f / "images.npy").write_bytes(b"12345"), "images.npy has 5 bytes, expected 57728"),
        (lambda f: flip_byte(f / "images.npy", -1), "images.npy has changed since it was written"),
        (lambda f: flip_byte(f / "images.npy", 1000), "images.npy has changed since it was written"),
        (lambda f: flip_byte(f / "arrays.npz", 500), "arrays.npz has changed since it was written"),
        (lambda f: (f / "meta.json").write_text("{}"), "'format' is missing"),
        (lambda f: (f / "meta.json").write_text("{"), "Expecting property name enclosed in double quotes: line 1"),
        (
            lambda f: (f / "meta.json").write_text(
                (f / "meta.json").read_text().replace(f'"format": {FORMAT}', '"format": 1')
            ),
            f"it says format 1, digest {DIGEST}; expected {FORMAT}, {DIGEST}",
        ),
    ],
)
def test_a_damaged_store_says_what_to_do(cache, damage, says):
    folder = folder_of(cache, DIGEST)
    damage(folder)
    with pytest.raises(DataError) as caught:
        open_store(cache, DIGEST)
    (problem,) = caught.value.issues
    assert problem.where == str(folder)
    assert problem.what.startswith(f"this cache of crops is damaged: {says}")
    assert problem.advice == "Delete the folder; it will be written again."


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, error):
    def interrupted(images):
        images[:2] = 1
        raise error

    with pytest.raises(error):
        write_store(tmp_path, DIGEST, S, contents(), interrupted)
    assert list((tmp_path / "crops").iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path):
    stale = tmp_path / "crops" / f".{DIGEST}"
    other = tmp_path / "crops" / ".fedcba9876543210"
    for folder in (stale, other):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_text("half")
    assert open_store(tmp_path, DIGEST) is None, "neither there nor taken for a store"
    write_store(tmp_path, DIGEST, S, contents(), fill)
    assert not stale.exists()
    assert other.exists()  # perhaps at work on another dataset


def test_too_small_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(DataError, match=re.escape("has 0.0 GB free and the crops need 0.0 GB")):
        write_store(tmp_path, DIGEST, S, contents(), fill)
    assert list((tmp_path / "crops").iterdir()) == []


def test_rows_are_the_same_read_or_mapped(cache):
    images = open_store(cache, DIGEST).images_N3SS
    rows = np.array([7, 0, 7, 11])
    for source in (images, np.asarray(images), images[2:], PIXELS):
        chosen = rows % len(source)
        assert np.array_equal(rows_reader(source)(chosen), np.asarray(source)[chosen])
    assert rows_reader(images)(rows[:0]).shape == (0, 3, S, S)


def test_a_file_that_ends_early_is_no_image(cache):
    images = open_store(cache, DIGEST).images_N3SS
    read = rows_reader(images)
    path = folder_of(cache, DIGEST) / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="ends before its row 11"):
        read(np.array([11]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see resident memory")
def test_reading_a_store_keeps_none_of_it_in_memory(tmp_path):
    def resident() -> int:
        kinds = ("RssAnon:", "RssFile:")
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) // 1024

    big = dataclasses.replace(
        contents(), labels_N=np.zeros(8000, np.int64), landmarks_NK2=np.zeros((8000, 1, 2), np.float32)
    )
    write_store(tmp_path, DIGEST, S, big, lambda images: None)
    images = open_store(tmp_path, DIGEST).images_N3SS
    assert images.nbytes > 36 * 2**20
    read = rows_reader(images)
    before = resident()
    for start in range(0, 8000, 50):
        read(np.arange(start, start + 50))
    assert resident() - before < 8
