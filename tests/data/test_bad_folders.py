"""Every way a folder is wrong, with the text a person gets. Nothing is written for any of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import scipy.io
from PIL import Image

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError

S = 32


def told(folder, spec=None, paths=None) -> str:
    """What preparation says, with the folder's own path as DATA; asserts that nothing was written or changed."""
    before = snapshot(folder.root)
    with pytest.raises(DataError) as caught:
        prepare(spec or folder.spec(), S, paths or folder.paths)
    assert snapshot(folder.root) == before
    return str(caught.value).replace(str(folder.root), "DATA")


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def lines(*issues: tuple[str, str, str]) -> str:
    return "\n".join(f"{where}  {what}\n       {advice}" for where, what, advice in issues)


AGAIN = "Fetch the file again."
ONE_RELEASE = "The truth_part*.mat of a category must all be of one release: fetch them again."
JPEGS = "DATA/voc/VOCdevkit/VOC2010/JPEGImages"
COW = "DATA/voc/landmarks/cow"
MASKS = "DATA/voc/VOCdevkit/VOC2010/Annotations_Part"
BOX = (11, 21, 60, 60)


def test_the_folder_is_good(folder):
    assert len(prepare(folder.spec(), S, folder.paths).labels_N) == 14


def test_no_folder_is_named(folder):
    paths = dataclasses.replace(folder.paths, data=None)
    assert told(folder, paths=paths) == lines(
        ("data.kind = voc_part", "IPCNN_DATA is not set", "Set it to the folder that holds voc/.")
    )


def test_a_missing_folder(folder):
    folder.voc.rename(folder.root / "vco")
    assert told(folder) == lines(("DATA/voc", "no such folder", "IPCNN_DATA must name the folder that holds voc/."))


def test_a_missing_category(folder):
    assert told(folder, folder.spec(category="bird")) == lines(
        (
            "DATA/voc/landmarks/bird",
            "no such folder",
            "Landmark files are there for: cow. data.category names the folder.",
        )
    )


def test_no_landmarks_at_all(folder):
    (folder.voc / "landmarks").rename(folder.root / "gone")
    advice = "Landmark files are there for: no category. data.category names the folder."
    assert told(folder) == lines((COW, "no such folder", advice))


def test_a_missing_landmark_file(folder):
    folder.part_file(2).unlink()
    advice = "It holds the landmark 'neck'; take it out of data.landmarks, or add it."
    assert told(folder) == lines((f"{COW}/truth_part02.mat", "no such file", advice))


def test_a_missing_landmark_file_that_is_not_asked_for_is_no_problem(folder):
    folder.part_file(2).unlink()
    assert len(prepare(folder.spec(landmarks=("head", "torso")), S, folder.paths).labels_N) == 14


def test_a_landmark_file_of_another_matlab_version(folder):
    folder.part_file(1).write_bytes(b"\0\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0\6\0\0\0truth\0" + bytes(8))
    what = "is not a MATLAB v5 or v7.3 file"
    assert told(folder) == lines((f"{COW}/truth_part01.mat", what, AGAIN))


def test_a_landmark_file_that_is_a_web_page(folder):
    folder.part_file(3).write_text("<html>404 not found</html>")
    assert told(folder) == lines((f"{COW}/truth_part03.mat", "is not a MATLAB v5 or v7.3 file", AGAIN))


def test_a_cut_off_landmark_file(folder):
    whole = folder.part_file(1).read_bytes()
    folder.part_file(1).write_bytes(whole[: len(whole) // 2])
    text = told(folder)
    assert re.fullmatch(
        rf"{COW}/truth_part01\.mat  is a damaged MATLAB v5 file: [^\n]+\n       Fetch the file again\.", text
    )


def test_a_landmark_file_with_another_variable(folder):
    scipy.io.savemat(folder.part_file(2), {"model": 1.0, "anno": 2.0})
    assert told(folder) == lines((f"{COW}/truth_part02.mat", "has no variable 'truth'; it has anno, model", AGAIN))


def test_a_landmark_file_with_another_truth(folder):
    scipy.io.savemat(folder.part_file(2), {"truth": [[1.0, 2.0]]})
    what = "'truth' is not a struct array with the fields obj and pHW_center"
    assert told(folder) == lines((f"{COW}/truth_part02.mat", what, AGAIN))


def test_landmark_files_of_different_lengths(folder):
    folder.write_truth(2, folder.truth(2)[:7])
    what = (
        "the files list different numbers of objects: "
        "truth_part01.mat 8, truth_part02.mat 7, truth_part03.mat 8, truth_part04.mat 8"
    )
    assert told(folder) == lines((COW, what, ONE_RELEASE))


def test_landmark_files_of_different_objects(folder):
    boxes, folder.boxes = folder.boxes, list(reversed(folder.boxes))
    folder.write_truth(3, folder.truth(3))
    folder.boxes = boxes
    text = told(folder)
    assert text.startswith(
        lines(
            (
                f"{COW} object 1",
                "the files describe different objects: "
                "2008_000000.jpg (11, 21, 60, 60) and 2008_000003.jpg (71, 31, 130, 90)",
                ONE_RELEASE,
            )
        )
    )
    assert text.count("describe different objects") == 8


def test_an_unreadable_box(folder):
    elements = folder.truth(1)
    elements[4]["obj"]["bndbox"] = {"xmin": "11", "ymin": "x", "xmax": "60", "ymax": "60"}
    folder.write_truth(1, elements)
    what = "its filename or bndbox cannot be read: could not convert string to float: 'x'"
    assert told(folder) == lines((f"{COW} object 5", what, AGAIN))


def test_an_empty_category(folder):
    for number in folder.centers:
        folder.write_truth(number, [])
    assert told(folder) == lines((COW, "the files list no object of cow", AGAIN))


def test_only_small_objects(folder):
    what = "no cow with a box of at least 70^2 pixels"
    advice = "8 smaller ones were left out; lower data.min_side or choose another data.category."
    assert told(folder, folder.spec(min_side=70)) == lines(("DATA/voc", what, advice))


def test_a_landmark_that_nobody_shows(folder):
    folder.centers[2] = [None] * 7 + [(90.0, 90.0)]
    folder.write_truths()
    what = "landmark 'neck' is seen on 1 of 8 objects of cow"
    advice = "Location instability needs at least 2; take it out of data.landmarks."
    assert told(folder) == lines(("DATA/voc", what, advice))


@pytest.mark.parametrize(
    ("center", "shown"),
    [((300.0, 20.0), "300, 20"), ((20.0, -0.5), "20, -0.5"), ((float("nan"), 3.0), "nan, 3"), ((5.0,), "5")],
)
def test_a_landmark_outside_the_crop(folder, center, shown):
    folder.centers[1][2] = center
    folder.write_truths()
    what = f"landmark 'head' at ({shown}) is outside the crop"
    advice = "pHW_center is (row, col), each from 0 to 224: the object's box from edge to edge."
    assert told(folder) == lines((f"{COW} object 3", what, advice))


def test_a_missing_image(folder):
    (folder.jpegs / "2008_000002.jpg").unlink()
    assert told(folder) == lines(
        (f"{JPEGS}/2008_000002.jpg", "no such image", "The annotation of '2008_000002 5' names it."),
        (f"{JPEGS}/2008_000002.jpg", "no such image", "The annotation of '2008_000002 6' names it."),
    )


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


@pytest.mark.parametrize("which", ["object", "negative"])
def test_a_truncated_jpeg(folder, which):
    path = folder.jpegs / "2008_000001.jpg" if which == "object" else folder.negatives / "00004.JPEG"
    cut(path)
    where = re.escape(str(path).replace(str(folder.root), "DATA"))
    text = told(folder)
    assert re.fullmatch(
        rf"{where}  does not decode to its end: image file is truncated \(\d+ bytes not processed\)\n"
        r"       Fetch the file again\.",
        text,
    )


def test_a_file_that_is_not_an_image(folder):
    (folder.jpegs / "2008_000001.jpg").write_text("<html>404 not found</html>")
    (folder.negatives / "00002.JPEG").write_bytes(b"")
    assert told(folder) == lines(
        (f"{JPEGS}/2008_000001.jpg", "is not an image", AGAIN),
        ("DATA/voc/neg/00002.JPEG", "is not an image", AGAIN),
    )


def test_a_box_outside_its_image(folder):
    folder.boxes[1] = ("2008_000000.jpg", (71, 31, 141, 90))
    folder.boxes[2] = ("2008_000001.jpg", (0, 21, 60, 60))
    folder.write_truths()
    advice = "The image is 140 x 100 pixels, the first of them 1."
    what = "box (xmin, ymin, xmax, ymax) = {} of '{}' is not inside the image"
    assert told(folder) == lines(
        (f"{JPEGS}/2008_000000.jpg", what.format((71, 31, 141, 90), "2008_000000 2"), advice),
        (f"{JPEGS}/2008_000001.jpg", what.format((0, 21, 60, 60), "2008_000001 3"), advice),
    )


def test_an_inverted_box(folder):
    folder.boxes[1] = ("2008_000000.jpg", (130, 31, 71, 90))
    folder.boxes[2] = ("2008_000001.jpg", (11, 21, 60, 21))
    folder.write_truths()
    what, advice = "box (xmin, ymin, xmax, ymax) = {} is inverted or flat", "Expected xmin < xmax and ymin < ymax."
    assert told(folder) == lines(
        (f"{COW} object 2", what.format((130, 31, 71, 90)), advice),
        (f"{COW} object 3", what.format((11, 21, 60, 21)), advice),
    )


def test_too_few_negatives(folder):
    what = "4 of 10 negative images are missing, first 00007.JPEG"
    advice = "Add them, or set data.negatives to at most 6."
    assert told(folder, folder.spec(negatives=10)) == lines(("DATA/voc/neg", what, advice))


def test_no_negatives(folder):
    folder.negatives.rename(folder.root / "gone")
    what = "6 of 6 negative images are missing, first 00001.JPEG"
    assert told(folder) == lines(("DATA/voc/neg", what, "Add them."))


def masks(folder, **changed):
    return folder.spec(annotation="part_masks", **changed)


def test_no_part_masks(folder):
    advice = "Unpack Pascal-Part's Annotations_Part there, or use data.annotation: landmark_files."
    assert told(folder, masks(folder)) == lines((MASKS, "no such folder", advice))
    folder.masks.mkdir()
    assert told(folder, masks(folder)) == lines((MASKS, "has no .mat file", advice))


def test_part_masks_without_the_category(folder, annotate):
    annotate(folder, "2008_000001", [{"class": "person", "bbox": BOX, "parts": {"head": BOX}}])
    what = "its 1 files hold no object of cow"
    assert told(folder, masks(folder)) == lines((MASKS, what, "Choose another data.category."))


def test_part_masks_that_are_wrong_in_many_ways(folder, annotate):
    good = {"class": "cow", "bbox": BOX, "parts": {"head": BOX, "neck": BOX, "torso": BOX}}
    for i in range(4):
        annotate(folder, f"2008_00000{i}", [good, good])
    annotate(folder, "2008_000001", [good, {**good, "bbox": (60, 21, 11, 60)}])
    annotate(folder, "2008_000002", [{**good, "bbox": (100, 50, 200, 99)}])
    annotate(folder, "2008_000009", [good])
    (folder.masks / "2008_000004.mat").write_text("no")
    scipy.io.savemat(folder.masks / "2008_000005.mat", {"anno": {"imname": "x"}})
    assert told(folder, masks(folder)) == lines(
        (
            f"{MASKS}/2008_000001.mat cow 2",
            "box (xmin, ymin, xmax, ymax) = (60, 21, 11, 60) is inverted or flat",
            "Expected xmin < xmax and ymin < ymax.",
        ),
        (f"{MASKS}/2008_000004.mat", "is not a MATLAB v5 or v7.3 file", AGAIN),
        (f"{MASKS}/2008_000005.mat", "is not an annotation of Pascal-Part: KeyError('objects')", AGAIN),
        (
            f"{JPEGS}/2008_000002.jpg",
            "box (xmin, ymin, xmax, ymax) = (100, 50, 200, 99) of '2008_000002 1' is not inside the image",
            "The image is 140 x 100 pixels, the first of them 1.",
        ),
        (f"{JPEGS}/2008_000009.jpg", "no such image", "The annotation of '2008_000009 1' names it."),
    )


def test_masks_of_another_size_than_the_photograph(folder, annotate):
    for i in range(4):
        annotate(
            folder,
            f"2008_00000{i}",
            [{"class": "cow", "bbox": BOX, "parts": {"head": BOX, "neck": BOX, "torso": BOX}}],
        )
    path = folder.jpegs / "2008_000003.jpg"
    Image.open(path).resize((280, 200)).save(path)
    what = "is 280 x 200 pixels and the masks of '2008_000003 1' are 140 x 100"
    advice = "Photograph and annotation must be of one release of Pascal VOC."
    assert told(folder, masks(folder)) == lines((f"{JPEGS}/2008_000003.jpg", what, advice))


def test_all_problems_are_told_at_once(folder):
    folder.boxes[0] = ("2008_000000.jpg", (11, 21, 60, 101))
    folder.centers[3][5] = (225.0, 0.0)
    folder.write_truths()
    folder.part_file(2).write_text("x")
    (folder.jpegs / "2008_000003.jpg").unlink()
    (folder.negatives / "00006.JPEG").unlink()
    (folder.negatives / "00005.JPEG").write_text("x")
    cut(folder.jpegs / "2008_000001.jpg")
    heads = [line for line in told(folder).splitlines() if not line.startswith("       ")]
    expected = [
        f"{COW}/truth_part02.mat  is not a MATLAB v5 or v7.3 file",
        f"{COW} object 6  landmark 'torso' at (225, 0) is outside the crop",
        "DATA/voc/neg  1 of 6 negative images are missing, first 00006.JPEG",
        f"{JPEGS}/2008_000000.jpg  box (xmin, ymin, xmax, ymax) = (11, 21, 60, 101) of '2008_000000 1' "
        "is not inside the image",
        f"{JPEGS}/2008_000003.jpg  no such image",
        f"{JPEGS}/2008_000003.jpg  no such image",
        "DATA/voc/neg/00005.JPEG  is not an image",
        f"{JPEGS}/2008_000001.jpg  does not decode to its end: image file is truncated",
    ]
    assert len(heads) == len(expected)
    for head, start in zip(heads, expected, strict=True):
        assert head.startswith(start)


def test_a_bad_folder_loses_nothing_that_was_there(folder):
    store = prepare(folder.spec(), S, folder.paths)
    before = snapshot(folder.paths.cache)
    cut(folder.jpegs / "2008_000001.jpg")
    with pytest.raises(DataError):
        prepare(folder.spec(), S, folder.paths)
    assert snapshot(folder.paths.cache) == before
    assert (folder.paths.cache / "crops" / store.digest).is_dir()
