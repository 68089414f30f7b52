"""One's own photographs: a table, a COCO file and class folders, read by hand. Wrong ones: test_messages.py."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from fakes.datasets import HEIGHT, SIZE, WIDTH, photograph
from fakes.own_photographs import OwnPhotographs
from PIL import Image, ImageOps

from ipcnn_ray.data.datasets.table_rows import read_csv
from ipcnn_ray.data.inspection import contact_sheet, summary
from ipcnn_ray.data.photographs import Annotations
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.data.section_of_files import section_of_files
from ipcnn_ray.errors import DataError
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.train.data_sync import local_paths
from ipcnn_ray.utils.paths import Paths


@pytest.fixture
def own(tmp_path) -> OwnPhotographs:
    return OwnPhotographs(tmp_path)


def test_a_table_by_hand(own):
    store = own.store(own.table(negatives=2))
    assert store.categories == ("wren", "robin") and store.landmark_names == ("head", "tail")
    assert store.labels_N.tolist() == [0] * 5 + [1] * 4 + [-1] * 2
    assert store.names[:2] == ("0 2", "1 3") and store.names[-1] == "1 12"
    # The box is the pixels 40 ... 99 and 20 ... 79, scaled by 32 / 60; pixel 50 of the image is pixel 10 of the box.
    row, col = (30 - 20 + 0.5) * 32 / 60 - 0.5, (50 - 40 + 0.5) * 32 / 60 - 0.5
    assert store.landmarks_NK2[0, 0].tolist() == pytest.approx([row, col])
    assert np.isnan(store.landmarks_NK2[0, 1]).all() and not np.isnan(store.landmarks_NK2[1, 1]).any()
    assert store.left_out == {"negatives beyond data.negatives = 2": 1}
    # Of 5, 4 and 2 half are trained on: round(linspace(1, 5, 3)) = 1 3 5, round(linspace(1, 4, 2)) = 1 4, and 2.
    assert store.train_items.tolist() == [[i, flip] for i in (0, 2, 4, 5, 8) for flip in (0, 1)] + [[10, 0]]
    assert store.val_items.tolist() == [[i, flip] for i in (1, 3, 6, 7) for flip in (0, 1)] + [[9, 0]]
    with Image.open(own.folder / "wren/0.jpg") as image:
        crop = image.crop((40, 20, 100, 80)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))


def test_a_coco_file_is_the_same_as_the_table(own):
    table, coco = own.store(own.table(negatives=3)), own.store(own.table("mine/coco.json", negatives=3))
    assert np.array_equal(table.images_N3SS, coco.images_N3SS)
    assert np.array_equal(table.landmarks_NK2, coco.landmarks_NK2, equal_nan=True)
    assert np.array_equal(table.labels_N, coco.labels_N) and np.array_equal(table.train_items, coco.train_items)
    assert table.digest != coco.digest and coco.names[0] == "0 1"


def test_what_of_a_coco_file_is_left_out_is_counted(own):
    annotations = own.coco["annotations"]
    annotations[0]["keypoints"][2] = 1  # hidden
    annotations[1]["iscrowd"] = 1
    annotations[2]["keypoints"][:2] = [30, 30]  # beside its box
    annotations[3]["bbox"] = [40, 20, 60, 1.2]
    own.coco["categories"].append({"id": 3, "name": "fox", "keypoints": ["ear"]})
    annotations[4] |= {"category_id": 3, "keypoints": [1, 1, 2]}
    annotations[5]["bbox"] = [50, 20, 12, 60]
    own.write()
    store = own.store(own.table("mine/coco.json", min_side=30, landmarks=["head"], negatives=0))
    assert store.labels_N.tolist() == [0, 0, 1, 1, 1]
    assert np.isnan(store.landmarks_NK2[:2]).all() and not np.isnan(store.landmarks_NK2[2:]).any()
    assert summary(store)["left_out"] == {
        "landmarks that are hidden (visibility 1), taken as not seen": 1,
        "crowds (iscrowd 1)": 1,
        "landmarks that data.landmarks does not list (tail, ear)": 2,
        "negatives beyond data.negatives = 0": 3,
        "landmarks outside the box of their object, taken as not seen": 1,
        "narrower than 2 pixels": 1,
        "of categories that data.category does not list (fox)": 1,
        "smaller than 30^2 pixels": 1,
    }


def test_a_table_that_splits_its_rows(own):
    for i, row in enumerate(own.rows):
        row["split"] = "val" if i in (1, 6, 10) else "train"
    own.write()
    store = own.store(own.table(negatives=3, mirror=False))
    assert store.val_items.tolist() == [[1, 0], [6, 0], [10, 0]]
    assert store.train_items.tolist() == [[i, 0] for i in (0, 2, 3, 4, 5, 7, 8, 9, 11)]


def test_a_table_without_boxes_and_with_images_elsewhere(own):
    rows = ["image;category", *(f"{i}.jpg;wren" for i in range(4)), "./4.jpg;", "other.jpg;", ""]
    (own.root / "tables").mkdir()
    (own.root / "tables/wrens.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    photograph(own.folder / "wren/other.jpg", 50)
    store = own.store(own.table("tables/wrens.csv", images="mine/wren", category="wren", landmarks=[]))
    assert store.labels_N.tolist() == [0] * 4 + [-1] * 2 and store.landmarks_NK2.shape == (6, 0, 2)
    with Image.open(own.folder / "wren/0.jpg") as image:
        whole = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(store.images_N3SS[0], whole)


def test_class_folders_by_hand(own):
    (own.folder / "wren/notes.txt").write_text("late")
    (own.folder / "wren/.DS_Store").write_text("")
    (own.folder / "wren/more").mkdir()
    photograph(own.folder / "fox/0.jpg", 60)
    store = own.store(own.classes())
    assert store.landmarks_NK2.shape == (8, 0, 2) and store.landmark_names == ()
    assert store.names[:6] == (*(f"wren/{i}.jpg" for i in range(5)), "robin/0.jpg")
    assert store.left_out == {
        "files that are no images (without a suffix)": 1,
        "folders inside a class folder": 1,
        "files that are no images (.txt)": 1,
        "negatives beyond data.negatives = 0": 3,
        "in class folders that data.category does not list (fox)": 1,
    }
    with Image.open(own.folder / "robin/1.jpg") as image:
        assert image.size == (WIDTH, HEIGHT)
        whole = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(store.images_N3SS[6], whole)
    wrens = own.store(own.classes(category="wren", negative_folder="robin"))
    assert wrens.labels_N.tolist() == [0] * 5 + [-1] * 3


def test_a_photograph_is_turned_as_viewers_show_it(own):
    path = own.folder / "wren/0.jpg"
    with Image.open(path) as image:
        stored = image.copy()
    stored.getexif()[0x0112] = 6
    stored.save(path, exif=stored.getexif(), quality=95)
    own.rows[0] |= {"xmin": 0, "ymin": 20, "xmax": 100, "ymax": 140, "head_x": 99, "head_y": 139}
    own.write()
    with Image.open(path) as image:
        seen = ImageOps.exif_transpose(image).crop((0, 20, 100, 140))
    store = own.store(own.table())
    expected = np.asarray(seen.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(store.images_N3SS[0], expected)
    with pytest.raises(DataError, match=r"'wren/0.jpg' is 100 x 140 pixels, and the table says 140 x 100"):
        own.store(own.table("mine/coco.json"))


def test_copies_of_a_photograph(own):
    """One of a pair in training and the other in validation would be a leak."""
    for name in ("wren/2b.jpg", "wren/7.jpg"):
        shutil.copy(own.folder / "wren/2.jpg", own.folder / name)
    shutil.copy(own.folder / "negatives/1.jpg", own.folder / "negatives/9.jpg")
    store = own.store(own.classes(category="wren"))
    assert store.names == (*(f"wren/{i}.jpg" for i in range(5)), *(f"negatives/{i}.jpg" for i in range(3)))
    assert store.left_out["copies of an image of their class folder"] == 3
    photograph(own.folder / "wren/7.jpg", 77)  # no copy any more
    assert len(own.store(own.classes(category="wren")).labels_N) == 9
    shutil.copy(own.folder / "wren/2.jpg", own.folder / "robin/5.jpg")
    with pytest.raises(DataError, match=r"wren/2.jpg  is the same image as .*robin/5.jpg\n +Keep it in one class"):
        own.store(own.classes(category=["robin", "wren"]))


def test_a_new_file_gives_another_store(own):
    first = own.store(own.classes())
    os.utime(own.folder / "wren", (1, 1))
    photograph(own.folder / "wren/9.jpg", 70)
    second = own.store(own.classes())
    assert second.digest != first.digest and len(second.labels_N) == 9


def test_the_sheet_of_images_without_landmarks(own, tmp_path):
    contact_sheet(own.store(own.classes(negatives=3)), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size == (8 * 128, 20 + 3 * (128 + 14)) and len(page.getcolors(1 << 24)) > 1000


def test_a_position_on_the_edge_of_a_box_stays_on_its_outer_pixels(own):
    own.rows[0] |= {"xmax": 100, "head_x": 100, "head_y": 20}
    own.write()
    store = own.store(own.table())
    # Half a pixel beyond the center of the last of 60 pixels is the edge of the crop: 31.5.
    assert store.landmarks_NK2[0, 0].tolist() == pytest.approx([0.5 * 32 / 60 - 0.5, 31.5])


def test_a_category_that_lacks_a_landmark(own):
    for row in own.rows[5:9]:
        row.pop("tail_x", None), row.pop("tail_y", None)
    own.write()
    store = own.store(own.table())
    seen = ~np.isnan(store.landmarks_NK2[:, 1, 0])
    assert seen[:5].sum() == 2 and not seen[5:].any()


def test_an_image_that_is_too_large_to_decode(own, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        DataError, match=r"wren/0.jpg  cannot be opened as an image: Image size \(14000 pixels\) exceeds"
    ):
        own.store(own.classes())


def test_a_bucket_holds_the_same_as_a_folder(own, fake_s3, tmp_path):
    for path in own.folder.rglob("*"):
        if path.is_file():
            open_storage("s3://bucket/data").put_bytes(path.read_bytes(), path.relative_to(own.root).as_posix())
    env = {"IPCNN_HOME": str(tmp_path / "other"), "IPCNN_DATA": "s3://bucket/data"}
    paths = local_paths(Paths.from_environment(env))
    for section in (own.table(), own.table("mine/coco.json"), own.classes()):
        assert prepare(section, SIZE, paths).digest == own.store(section).digest


def test_many_issues_are_counted(own):
    for row in own.rows[1:]:
        row["image"] = "gone/" + row["image"]
    own.rows += [{**own.row(f"gone/{i}.jpg", 1), "category": "wren"} for i in range(30)]
    own.write()
    with pytest.raises(DataError) as caught:
        own.store(own.table(negatives=3))
    # 7 photographs, of the pair the first row, 3 negatives, and 30 more
    assert len(caught.value.issues) == 21 and "and 20 more like these" in str(caught.value)


def test_a_table_that_is_too_large_is_not_read(own):
    with (own.folder / "table.csv").open("r+b") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(DataError, match=r"table.csv  has 1.1 GB; a table has at most 1.1 GB"):
        own.store(own.table())


def test_quoted_cells_and_tabs(tmp_path):
    (tmp_path / "t.tsv").write_text('image\tcategory\theads\t split\n"a\tb.jpg"\t"wren, ""small"""\t1\ttrain\n\n')
    table = Annotations()
    (row,) = read_csv(tmp_path / "t.tsv", (), table).rows
    assert not table.issues
    assert (row.image, row.category, row.in_training) == ("a\tb.jpg", 'wren, "small"', True)
    assert row.where == f"{tmp_path / 't.tsv'}:2"


@pytest.mark.parametrize("name", ["mine", "mine/table.csv", "mine/coco.json"])
def test_the_section_of_a_folder_or_table(own, name):
    section = section_of_files(own.root / name, own.root)
    kind = {"path": name} if name == "mine" else {"file": name, "landmarks": ["head", "tail"]}
    categories = ["robin", "wren"] if name == "mine" else ["wren", "robin"]
    assert section == {"kind": "folder" if name == "mine" else "table", **kind, "category": categories}


def test_the_folder_of_the_images_of_a_table_is_found(own):
    (own.root / "notes/a").mkdir(parents=True)
    for place, images in (("mine", None), ("notes", "mine"), ("", "mine")):
        moved = own.root / place / "moved.json"
        moved.write_text(json.dumps(own.coco))
        assert section_of_files(moved, own.root).get("images") == images
    (own.root / "notes/a/moved.json").write_text(json.dumps(own.coco))
    assert "images" not in section_of_files(own.root / "notes/a/moved.json", own.root)
    with pytest.raises(DataError, match=r"moved.json  has no image in .*notes/a, such as wren/0.jpg\n +Name the"):
        own.store(own.table("notes/a/moved.json"))


def test_no_section_of_what_is_not_there(own, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        section_of_files(own.root / "theirs", own.root)
    with pytest.raises(DataError, match="IPCNN_DATA  is not set"):
        section_of_files(own.folder, None)
    with pytest.raises(DataError, match="which does not hold"):
        section_of_files(own.folder, own.root / "mine/wren")
    (own.folder / "empty").mkdir()
    with pytest.raises(DataError, match="has no categories"):
        section_of_files(own.folder / "empty", own.root)
    (own.folder / "bad.json").write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match="has no list 'categories'"):
        section_of_files(own.folder / "bad.json", own.root)
