"""CUB-200-2011: a small folder by hand, and everything that can be wrong with it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ipcnn_ray.data.datasets.cub200 import Cub200
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError
from ipcnn_ray.utils.paths import Paths

S = 32
NAMES = ("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape",
         "right eye", "right leg", "right wing", "tail", "throat")  # fmt: skip
ONE, TWO = "001.Black_footed_Albatross", "002.Laysan_Albatross"


class Birds:
    """Eight birds of two species, four negatives."""

    def __init__(self, root, photo):
        self.root, self.cub = root, root / "CUB_200_2011"
        self.images = [f"{(ONE, TWO)[i // 4]}/bird_{i}.jpg" for i in range(8)]
        for i, name in enumerate(self.images):
            photo(self.cub / "images" / name, i)
        for i in range(1, 5):
            photo(root / f"voc/neg/{i:05}.JPEG", 100 + i)
        self.write("images.txt", self.images)
        self.write("classes.txt", [ONE, TWO])
        self.write("image_class_labels.txt", [1 + i // 4 for i in range(8)])
        self.write("train_test_split.txt", [1, 0, 1, 0, 1, 0, 1, 0])
        self.write("bounding_boxes.txt", ["11.0 21.0 49.0 39.0"] * 7 + ["100.0 50.0 60.0 80.0"])
        (self.cub / "parts").mkdir()
        self.write("parts/parts.txt", NAMES)
        self.locations = {(i, part): f"{20 + part}.0 40.0 1" for i in range(1, 9) for part in range(1, 16)}
        self.locations |= {(8, part): "120.0 75.0 1" for part in range(1, 16)}
        self.locations[1, 14], self.locations[2, 14] = "0.0 0.0 0", "100.0 40.0 1"
        self.write_locations()

    def write(self, name, rows):
        (self.cub / name).write_text("".join(f"{i} {row}\n" for i, row in enumerate(rows, start=1)))

    def write_locations(self):
        lines = [f"{image} {part} {where}\n" for (image, part), where in self.locations.items()]
        (self.cub / "parts/part_locs.txt").write_text("".join(lines))

    def store(self, **changed):
        paths = Paths.from_environment({"IPCNN_HOME": str(self.root / "home"), "IPCNN_DATA": str(self.root)})
        given = {"kind": "cub200", "min_side": 20, "negatives": 0 if isinstance(changed.get("category"), list) else 4}
        return prepare(Cub200.model_validate(given | changed), S, paths)

    def told(self, **changed):
        with pytest.raises(DataError) as caught:
            self.store(**changed)
        return str(caught.value).replace(str(self.cub), "CUB")


@pytest.fixture
def birds(tmp_path, photo):
    return Birds(tmp_path, photo)


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
    assert store.landmarks_NK2[0, 0] == pytest.approx([19.5 * S / 40 - 0.5, 10.5 * S / 50 - 0.5], abs=1e-5)
    assert np.isnan(store.landmarks_NK2[0, 2]).all(), "not visible"
    assert np.isnan(store.landmarks_NK2[1, 2]).all(), "outside its box"
    image = Image.open(birds.cub / "images" / birds.images[0])
    crop = image.crop((10, 20, 60, 60)).resize((S, S), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))


def test_a_box_that_leaves_the_image_is_cut(birds):
    """x 100, y 50, 60 wide and 80 high of a photograph of 140 x 100."""
    store = birds.store()
    image = Image.open(birds.cub / "images" / birds.images[7])
    crop = image.crop((99, 49, 140, 100)).resize((S, S), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[7], np.asarray(crop).transpose(2, 0, 1))
    assert store.landmarks_NK2[7, 0] == pytest.approx([25.5 * S / 51 - 0.5, 20.5 * S / 41 - 0.5], abs=1e-5)


def test_species_from_each_other(birds):
    store = birds.store(category=[TWO, ONE], landmarks=["left_eye"])
    assert store.categories == (TWO, ONE)
    assert store.labels_N.tolist() == [0] * 4 + [1] * 4
    assert store.names[0] == "bird_4"


def test_an_unknown_species(birds):
    assert birds.told(category="001.Black_foted_Albatross") == (
        "CUB/classes.txt  has no species '001.Black_foted_Albatross'\n"
        f"       data.category is bird or a name of classes.txt. Did you mean '{ONE}'?"
    )


def test_all_broken_tables_are_told_at_once(birds):
    (birds.cub / "classes.txt").unlink()
    birds.write("bounding_boxes.txt", ["1 2 3 4", "1 2 three 4"])
    birds.write("image_class_labels.txt", ["1 2 3"])
    assert birds.told() == (
        "CUB/classes.txt  cannot be read: No such file or directory\n       Unpack CUB_200_2011.tgz there again.\n"
        "CUB/image_class_labels.txt:1  '1 1 2 3' is not a number and 1 numbers more\n       Fetch the file again.\n"
        "CUB/bounding_boxes.txt:2  '2 1 2 three 4' is not a number and 4 numbers more\n       Fetch the file again."
    )


def test_a_table_that_ends_early(birds):
    birds.write("bounding_boxes.txt", ["11 21 49 39"] * 6)
    assert birds.told() == (
        "CUB/bounding_boxes.txt  says nothing of 2 of the 8 images, first 7\n       Fetch the file again."
    )


def test_images_that_are_missing_or_broken(birds):
    (birds.cub / "images" / birds.images[1]).unlink()
    (birds.cub / "images" / birds.images[2]).write_text("no image")
    text = birds.told()
    assert f"CUB/images/{birds.images[1]}  no such image\n       images.txt names it as number 2. Fetch" in text
    assert f"CUB/images/{birds.images[2]}  is not an image\n       images.txt names it as number 3. Fetch" in text


def test_a_box_beside_the_image(birds):
    birds.write("bounding_boxes.txt", ["11.0 21.0 49.0 39.0"] * 7 + ["200.0 50.0 60.0 80.0"])
    assert birds.told() == (
        f"CUB/images/{birds.images[7]}  its box (200.0, 50.0, 60.0, 80.0) is not inside the 140 x 100 image\n"
        "       Number 8 of bounding_boxes.txt: x, y, width, height. Fetch the file again."
    )


def test_a_split_without_validation(birds):
    birds.write("train_test_split.txt", [1] * 8)
    assert birds.told() == (
        "train_test_split.txt  leaves no object in the validation split\n"
        "       Use more images, or another data.train_share."
    )
