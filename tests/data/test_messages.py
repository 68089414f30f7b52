"""Damaged folders of datasets and exactly what a person reads (messages.yaml). Nothing is written for any of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.io
from fakes.datasets import (
    FISH,
    FOX,
    SIZE,
    CubFolder,
    IlsvrcFolder,
    element,
    struct_array,
    voc_folder,
)
from fakes.own_photographs import OwnPhotographs
from PIL import Image
from snapshots import message_of

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError

BOX = (11, 21, 60, 60)
PARTS = {"head": BOX, "neck": BOX, "torso": BOX}
COW = {"class": "cow", "bbox": BOX, "parts": PARTS}
MASKS = {"annotation": "part_masks"}


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def landmark_files_of_different_objects(folder):
    boxes, folder.boxes = folder.boxes, list(reversed(folder.boxes))
    folder.write_truth(3, folder.truth(3))
    folder.boxes = boxes


def unreadable_numbers(folder):
    elements = folder.truth(1)
    elements[4]["obj"]["bndbox"] = {"xmin": "11", "ymin": "x", "xmax": "60", "ymax": "60"}
    elements[5]["pHW_center"] = "here"
    folder.write_truth(1, elements)


def empty_category(folder):
    for number in folder.centers:
        folder.write_truth(number, [])


def landmark_that_nobody_shows(folder):
    folder.centers[2] = [None] * 7 + [(90.0, 90.0)]
    folder.write_truths()


def landmarks_outside_the_crop(folder):
    folder.centers[1][2:6] = [(300.0, 20.0), (20.0, -0.5), (float("nan"), 3.0), (5.0,)]
    folder.write_truths()


def files_that_are_no_images(folder):
    (folder.jpegs / "2008_000001.jpg").write_text("<html>404 not found</html>")
    (folder.negatives / "00002.JPEG").write_bytes(b"")


def boxes(first, second):
    def change(folder):
        folder.boxes[1:3] = [("2008_000000.jpg", first), ("2008_000001.jpg", second)]
        folder.write_truths()

    return change


def part_masks_without_the_category(folder):
    folder.annotate("2008_000001", [{"class": "person", "bbox": BOX, "parts": {"head": BOX}}])
    return MASKS


def part_masks_wrong_in_many_ways(folder):
    for i in range(4):
        folder.annotate(f"2008_00000{i}", [COW, COW])
    folder.annotate("2008_000001", [COW, {**COW, "bbox": (60, 21, 11, 60)}])
    folder.annotate("2008_000002", [{**COW, "bbox": (100, 50, 200, 99)}])
    folder.annotate("2008_000009", [COW])
    (folder.masks / "2008_000004.mat").write_text("no")
    scipy.io.savemat(folder.masks / "2008_000005.mat", {"anno": {"imname": "x"}})
    return MASKS


def masks_of_another_size_than_the_photograph(folder):
    for i in range(4):
        folder.annotate(f"2008_00000{i}", [COW])
    path = folder.jpegs / "2008_000003.jpg"
    Image.open(path).resize((280, 200)).save(path)
    return MASKS


def everything_at_once(folder):
    folder.boxes[0] = ("2008_000000.jpg", (11, 21, 60, 101))
    folder.centers[3][5] = (225.0, 0.0)
    folder.write_truths()
    folder.part_file(2).write_text("x")
    (folder.jpegs / "2008_000003.jpg").unlink()
    (folder.negatives / "00006.JPEG").unlink()
    (folder.negatives / "00005.JPEG").write_text("x")
    cut(folder.jpegs / "2008_000001.jpg")


MATLAB_4 = b"\0\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0\6\0\0\0truth\0" + bytes(8)
VOC = {
    "other_category": lambda folder: {"category": "bird"},
    "too_few_negatives": lambda folder: {"negatives": 10},
    "only_small_objects": lambda folder: {"min_side": 70},
    "no_part_masks": lambda folder: MASKS,
    "no_folder": lambda folder: folder.voc.rename(folder.root / "vco"),
    "no_landmarks_at_all": lambda folder: (folder.voc / "landmarks").rename(folder.root / "gone"),
    "no_landmark_file": lambda folder: folder.part_file(2).unlink(),
    "landmark_file_of_matlab_4": lambda folder: folder.part_file(1).write_bytes(MATLAB_4),
    "landmark_file_that_is_a_web_page": lambda folder: folder.part_file(3).write_text("<html>404 not found</html>"),
    "landmark_file_cut_off": lambda folder: cut(folder.part_file(1)),
    "landmark_file_with_other_variables": lambda folder: scipy.io.savemat(
        folder.part_file(2), {"model": 1.0, "anno": 2.0}
    ),
    "landmark_file_with_another_truth": lambda folder: scipy.io.savemat(folder.part_file(2), {"truth": [[1.0, 2.0]]}),
    "landmark_files_of_different_lengths": lambda folder: folder.write_truth(2, folder.truth(2)[:7]),
    "landmark_files_of_different_objects": landmark_files_of_different_objects,
    "unreadable_numbers": unreadable_numbers,
    "empty_category": empty_category,
    "landmark_that_nobody_shows": landmark_that_nobody_shows,
    "landmarks_outside_the_crop": landmarks_outside_the_crop,
    "no_such_image": lambda folder: (folder.jpegs / "2008_000002.jpg").unlink(),
    "truncated_object": lambda folder: cut(folder.jpegs / "2008_000001.jpg"),
    "truncated_negative": lambda folder: cut(folder.negatives / "00004.JPEG"),
    "files_that_are_no_images": files_that_are_no_images,
    "boxes_outside_their_image": boxes((71, 31, 141, 90), (0, 21, 60, 60)),
    "inverted_boxes": boxes((130, 31, 71, 90), (11, 21, 60, 21)),
    "no_negatives": lambda folder: folder.negatives.rename(folder.root / "gone"),
    "folder_without_part_masks": lambda folder: folder.masks.mkdir() or MASKS,
    "part_masks_without_the_category": part_masks_without_the_category,
    "part_masks_wrong_in_many_ways": part_masks_wrong_in_many_ways,
    "masks_of_another_size_than_the_photograph": masks_of_another_size_than_the_photograph,
    "everything_at_once": everything_at_once,
}
"""Case -> function that damages a folder and may return the changed fields of the spec."""


def broken_tables(birds):
    (birds.cub / "classes.txt").unlink()
    birds.write("bounding_boxes.txt", ["1 2 3 4", "1 2 three 4"])
    birds.write("image_class_labels.txt", ["1 2 3"])


def missing_and_broken_images(birds):
    (birds.cub / "images" / birds.images[1]).unlink()
    (birds.cub / "images" / birds.images[2]).write_text("no image")


GOOD_BIRD = "11.0 21.0 49.0 39.0"
CUB = {
    "unknown_species": lambda birds: {"category": "001.Black_foted_Albatross"},
    "broken_tables": broken_tables,
    "table_that_ends_early": lambda birds: birds.write("bounding_boxes.txt", [GOOD_BIRD] * 6),
    "missing_and_broken_images": missing_and_broken_images,
    "box_beside_the_image": lambda birds: birds.write("bounding_boxes.txt", [GOOD_BIRD] * 7 + ["200.0 50.0 60.0 80.0"]),
    "split_without_validation": lambda birds: birds.write("train_test_split.txt", [1] * 8),
}


def landmark_file_of_another_object(animals):
    moved = [element([[100.0], [10.0]], (11, 21, 90, 60)), *[element([[100.0], [10.0]], (10, 20, 60, 60))] * 5]
    animals.write_truth(FOX, 2, moved)


def many_missing_files(animals):
    (animals.root / f"{FOX}_obj/img/data.mat").unlink()
    (animals.root / f"landmarks/{FOX}/truth_part02.mat").unlink()
    (animals.root / f"landmarks/{FISH}/truth_part01.mat").write_text("<html>")
    return {"category": [FOX, FISH]}


def data_mat_without_boxes(animals):
    boxes = {"samples": struct_array([{"class": 1.0}] * 6)}
    scipy.io.savemat(animals.root / f"{FOX}_obj/img/data.mat", boxes)


ILSVRC = {
    "landmark_file_of_another_object": landmark_file_of_another_object,
    "files_of_different_lengths": lambda animals: (animals.root / f"{FOX}_obj/img/img/00006.jpg").unlink(),
    "many_missing_files": many_missing_files,
    "landmarks_outside_the_crop": lambda animals: animals.write_truth(FOX, 2, [element([[100.0], [300.0]])] * 6),
    "data_mat_without_boxes": data_mat_without_boxes,
}


def rows(change):
    """A case that changes the rows of the table, and asks for it."""

    def damage(own):
        change(own.rows)
        own.write()
        return own.table(negatives=3)

    return damage


def every_row_wrong(rows):
    rows[0]["image"] = "../../etc/passwd"
    rows[1]["image"] = "wren/7.jpg"
    rows[2]["image"] = r"wren\2.jpg"
    rows[3]["head_x"] = "nan"
    rows[4]["tail_y"] = "left"
    rows[5] |= {"head_x": 141, "head_y": -2}
    rows[6]["xmax"] = 141
    rows[7]["xmax"] = 40
    rows[8]["xmax"] = ""
    rows += [dict(rows[9]), {"category": "wren"}, {**rows[6], "category": "wren"}]


def table(text, *landmarks):
    def damage(own):
        (own.folder / "table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return own.table(landmarks=landmarks)

    return damage


def splits(first, second):
    def change(rows):
        for i, row in enumerate(rows):
            row["split"] = {0: first, 1: second}.get(i, "train")

    return rows(change)


def only_in_training(rows):
    for i, row in enumerate(rows):
        row["split"] = "val" if i == 1 else "train"


def images_of_a_table(damage):
    def change(own):
        damage(own.folder)
        return own.table(negatives=3)

    return change


TABLE = {
    "no_such_file": lambda own: own.table("mine/tabel.csv"),
    "no_such_category": lambda own: own.table(category=["wren", "robbin"]),
    "one_object_of_a_category": rows(lambda rows: rows.__delitem__(slice(6, 9))),
    "every_row_wrong": rows(every_row_wrong),
    "negative_with_an_object": rows(lambda rows: rows.append({"image": "wren/3.jpg"})),
    "empty": table(""),
    "only_a_header": table("image,category\n\n"),
    "not_utf_8": table("image,category\nwren/0.jpg,Zaunk\xf6nig\n".encode("latin-1")),
    "not_csv": table('image,category\n"wren/0.jpg,wren\n'),
    "a_spreadsheet": table(b"PK\3\4\0\0\xff\xfe\n\x85"),
    "wrong_columns": table("Image,category,xmin,head_x,head_y,tail_x\na,b,1,2,3,4\n", "head", "tail"),
    "no_columns": table("image,xmin,ymin,xmax,head_x,ear_y\na,1,2,3,4,5\n", "head", "eyes"),
    "a_column_twice": table("image,category,category\na,b,c\n"),
    "a_row_too_short": table("image,category,head_x,head_y\nwren/0.jpg,wren,1,\nwren/1.jpg,wren\n"),
    "wrong_splits": splits("test", "Train"),
    "no_splits": splits("", "train"),
    "a_category_in_one_split": rows(only_in_training),
    "landmark_that_nobody_shows": rows(lambda rows: [row.update(tail_x="", tail_y="") for row in rows[2:]]),
    "no_images": images_of_a_table(lambda folder: (folder / "robin/1.jpg").write_text("<html>404 not found</html>")),
    "images_cut_off": images_of_a_table(lambda folder: cut(folder / "negatives/1.jpg")),
}


def coco(change):
    def damage(own):
        own.coco = change(own.coco) or own.coco
        own.write()
        return own.table("mine/coco.json")

    return damage


def wrong_annotations(coco):
    annotations = coco["annotations"]
    annotations[0]["bbox"] = [1, 2, 3]
    annotations[1]["bbox"] = [1, 2, float("nan"), 3]
    annotations[2]["keypoints"] = [1, 2, 2]
    annotations[3]["keypoints"][2] = 3
    annotations[4]["image_id"] = 99
    annotations[5]["category_id"] = 99
    annotations[6]["bbox"] = [100, 20, 60, 60]
    annotations[8] = {**annotations[7], "id": 9}


def wrong_lists(coco):
    coco["images"][1]["id"] = 1
    coco["images"][2]["file_name"] = None
    coco["annotations"][0]["id"] = "1"
    coco["annotations"][1] = []


def wrong_names(coco):
    coco["categories"][0]["keypoints"] = ["head", "head"]
    coco["categories"][1] |= {"name": "wren", "keypoints": ["bill"]}


def no_json(own):
    (own.folder / "coco.json").write_text('{"images": [')
    return own.table("mine/coco.json")


COCO = {
    "no_json": no_json,
    "another_json": coco(lambda coco: [1, 2]),
    "wrong_annotations": coco(wrong_annotations),
    "wrong_lists": coco(wrong_lists),
    "wrong_names": coco(wrong_names),
    "no_images": coco(lambda coco: coco | {"images": [], "annotations": []}),
    "images_of_another_size": coco(lambda coco: coco["images"][0].update(width=280, height=200)),
}


def nested(own):
    (own.folder / "robin").rename(own.folder / "robins")
    return own.classes()


def almost_empty(own):
    for path in [*sorted((own.folder / "robin").iterdir())[1:], *(own.folder / "wren").iterdir()]:
        path.unlink()
    (own.folder / "wren/notes.txt").write_text("none")
    return own.classes()


def broken_images(own):
    (own.folder / "wren/0.jpg").write_text("<html>")
    (own.folder / "negatives/2.jpg").write_bytes(b"")
    return own.classes(category="wren")


def one_robin(own):
    for path in sorted((own.folder / "robin").iterdir())[1:]:
        path.unlink()
    return own.classes()


FOLDER = {
    "no_such_folder": lambda own: own.classes(path="mien"),
    "no_such_class_folder": nested,
    "no_images": almost_empty,
    "one_image": one_robin,
    "broken_images": broken_images,
    "truncated_image": lambda own: cut(own.folder / "wren/3.jpg") or own.classes(),
    "no_negatives": lambda own: own.classes(category="wren", negative_folder="none"),
}


def files(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def message(root: Path, action: Callable[[], object]) -> str:
    """The message of an action, which writes and changes nothing. What differs between libraries is left out."""
    before = files(root)
    text = message_of(action, {str(root): "DATA"})
    assert files(root) == before
    text = re.sub(r"\(\d+ bytes not processed\)", "(N bytes not processed)", text)
    return re.sub(r"(is a damaged MATLAB v5 file): .+", r"\1: WHY", text)


def test_what_a_person_reads(tmp_path, snapshot):
    texts = {}
    for kind, cases in {"voc_part": VOC, "cub200": CUB, "ilsvrc_animal_part": ILSVRC}.items():
        for name, damage in cases.items():
            root = tmp_path / f"{kind}_{name}"
            folder = {"voc_part": voc_folder, "cub200": CubFolder, "ilsvrc_animal_part": IlsvrcFolder}[kind](root)
            fields = damage(folder)
            changed = fields if isinstance(fields, dict) else {}
            texts[f"{kind} {name}"] = message(root, lambda f=folder, c=changed: f.store(**c))
    for kind, cases in {"table": TABLE, "coco": COCO, "folder": FOLDER}.items():
        for name, damage in cases.items():
            own = OwnPhotographs(tmp_path / f"{kind}_{name}")
            section = damage(own)
            texts[f"{kind} {name}"] = message(own.root, lambda o=own, s=section: o.store(s))
    count = sum(map(len, (VOC, CUB, ILSVRC, TABLE, COCO, FOLDER)))
    assert len(texts) == count > 65
    snapshot.check("data/messages.yaml", texts)


def test_no_folder_is_set(folder):
    paths = folder.paths.__class__.from_environment({"IPCNN_HOME": str(folder.root / "home")})
    with pytest.raises(DataError) as caught:
        prepare(folder.spec(), SIZE, paths)
    assert str(caught.value) == (
        "data.kind = voc_part  IPCNN_DATA is not set\n       Set it to the folder that holds voc/."
    )


def test_the_folders_are_good(folder, tmp_path):
    assert len(prepare(folder.spec(), SIZE, folder.paths).labels_N) == 14
    assert len(CubFolder(tmp_path / "cub").store().labels_N) == 12
    assert len(IlsvrcFolder(tmp_path / "ilsvrc").store().labels_N) == 10
    folder.part_file(2).unlink()  # a landmark file that is not asked for
    assert len(prepare(folder.spec(landmarks=("head", "torso")), SIZE, folder.paths).labels_N) == 14


def test_a_bad_folder_loses_nothing_that_was_there(folder):
    store = prepare(folder.spec(), SIZE, folder.paths)
    before = files(folder.paths.cache)
    cut(folder.jpegs / "2008_000001.jpg")
    with pytest.raises(DataError):
        prepare(folder.spec(), SIZE, folder.paths)
    assert files(folder.paths.cache) == before
    assert (folder.paths.cache / "crops" / store.digest).is_dir()
