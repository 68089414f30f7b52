"""CUB-200-2011: a small folder by hand. What can be wrong with it: test_messages.py."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.datasets import ONE, SIZE, TWO, CubFolder
from PIL import Image


@pytest.fixture
def birds(tmp_path):
    return CubFolder(tmp_path)


def test_all_birds_against_negatives(birds):
    store = birds.store()
    assert store.categories == ("bird",) and store.labels_N.tolist() == [0] * 8 + [-1] * 4
    assert store.landmark_names == ("back", "forehead", "tail")
    assert store.tags == {"data.kind": "cub200", "data.drawn": "false"}
    # The dataset's own split, no mirror images; each negative four times, the first half in training.
    assert store.train_items.tolist() == [[i, 0] for i in (0, 2, 4, 6, *[8] * 4, *[9] * 4)]
    assert store.val_items.tolist() == [[i, 0] for i in (1, 3, 5, 7, *[10] * 4, *[11] * 4)]


def test_a_bird_by_hand(birds):
    store = birds.store()
    # Box columns 11..60 and rows 21..60; the back at column 21 and row 40, pixel centres at whole numbers.
    assert store.landmarks_NK2[0, 0] == pytest.approx([19.5 * SIZE / 40 - 0.5, 10.5 * SIZE / 50 - 0.5], abs=1e-5)
    assert np.isnan(store.landmarks_NK2[0, 2]).all(), "not visible"
    assert np.isnan(store.landmarks_NK2[1, 2]).all(), "outside its box"
    image = Image.open(birds.cub / "images" / birds.images[0])
    crop = image.crop((10, 20, 60, 60)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))


def test_a_box_that_leaves_the_image_is_cut(birds):
    """x 100, y 50, 60 wide and 80 high of a photograph of 140 x 100."""
    store = birds.store()
    image = Image.open(birds.cub / "images" / birds.images[7])
    crop = image.crop((99, 49, 140, 100)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[7], np.asarray(crop).transpose(2, 0, 1))
    assert store.landmarks_NK2[7, 0] == pytest.approx([25.5 * SIZE / 51 - 0.5, 20.5 * SIZE / 41 - 0.5], abs=1e-5)


def test_species_from_each_other(birds):
    store = birds.store(category=[TWO, ONE], landmarks=["left_eye"])
    assert store.categories == (TWO, ONE)
    assert store.labels_N.tolist() == [0] * 4 + [1] * 4
    assert store.names[0] == "bird_4"
