from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from fakes.datasets import voc_folder
from fakes.matlab import write_mat
from PIL import Image

from ipcnn_ray.data.datasets.voc_part import NOSE, VocPart
from ipcnn_ray.data.inspection import summary
from ipcnn_ray.data.photographs import AnnotatedObject, Annotations
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError
from ipcnn_ray.utils.paths import Paths

BODY = (11, 21, 60, 60)
SIZE = 64


def read(spec, folder) -> Annotations:
    """The annotations of the single category of a spec, with arrays for lists."""
    (annotations,) = spec.annotations(folder.voc)
    annotations.objects = [
        replace(one, landmarks_K2=np.array(one.landmarks_K2), sizes_K2=np.array(one.sizes_K2))
        for one in annotations.objects
    ]
    return annotations


def test_landmark_files_by_hand(folder):
    found = read(folder.spec(landmarks=("head", "neck", "torso", "nose")), folder)
    assert found.issues == []
    assert [(one.image, one.box) for one in found.objects] == folder.boxes
    assert found.objects[1].name == "2008_000000 2"
    # pHW_center / 224
    assert found.objects[0].landmarks_K2.tolist()[:3] == [[0.25, 0.125], [60 / 224, 60 / 224], [0.5, 0.5]]
    assert np.isnan(found.objects[0].landmarks_K2[3]).all()
    assert np.isnan(found.objects[1].landmarks_K2[1]).all()
    assert [path.name for path in found.files] == [f"truth_part{n:02}.mat" for n in (1, 2, 3, 4)]
    turned = read(folder.spec(landmarks=("torso", "head")), folder)
    assert turned.objects[0].landmarks_K2.tolist() == [[0.5, 0.5], [0.25, 0.125]]


def test_v73_landmark_files(folder):
    spec = folder.spec(landmarks=("head", "neck", "torso", "nose"))
    expected = read(spec, folder).objects
    for number in (1, 4):
        write_mat(folder.part_file(number), "v7.3", {"truth": folder.truth(number)})
    found = read(spec, folder)
    assert found.issues == []
    assert [(one.image, one.box, one.name) for one in found.objects] == [(o.image, o.box, o.name) for o in expected]
    for one, other in zip(found.objects, expected, strict=True):
        assert np.array_equal(one.landmarks_K2, other.landmarks_K2, equal_nan=True)


def test_an_object_that_its_landmark_files_do_not_show(folder):
    folder.part_file(5).write_text("not a mat file")
    assert len(read(folder.spec(), folder).objects) == 8, "further files are left alone where every object is known"
    folder.part_file(5).unlink()
    for number in (1, 3):
        folder.centers[number][3] = None
    folder.write_truths()
    found = read(folder.spec(), folder)
    assert len(found.objects) == 7
    assert found.left_out == {"none of its parts is in a landmark file": 1}
    folder.centers[9] = [(10.0, 10.0)] * 8
    folder.write_truths()
    found = read(folder.spec(), folder)
    assert [(one.image, one.box) for one in found.objects] == folder.boxes
    assert np.isnan(found.objects[3].landmarks_K2).all()
    assert [path.name for path in found.files][-1] == "truth_part09.mat"


@pytest.mark.parametrize(
    ("center", "expected"),
    [
        ((10.0, 20.0, 30.0, 40.0), [np.nan] * 2),  # several instances: none is used
        ((0.0, 0.0), [0.0] * 2),
        ((224.0, 224.0), [1.0] * 2),  # the edges of the frame are inside
    ],
)
def test_centres_at_the_limits(folder, center, expected):
    folder.centers[1][0] = center
    folder.write_truths()
    found = read(folder.spec(), folder)
    assert found.issues == []
    assert np.array_equal(found.objects[0].landmarks_K2[0], expected, equal_nan=True)


def test_part_masks_by_hand(folder):
    cow = {
        "class": "cow",
        "bbox": BODY,  # 50 x 40 pixels
        "parts": {
            "head": (11, 21, 20, 30),
            "lear": (41, 21, 60, 22),  # not part of the head's box
            "neck": (21, 31, 21, 31),
            "torso": BODY,
            "muzzle": (60, 60, 60, 60),
        },
    }
    folder.annotate("2008_000001", [{"class": "person", "bbox": BODY, "parts": {"head": BODY}}, cow])
    folder.annotate("2008_000002", [{"class": "person", "bbox": BODY, "parts": {}}])
    found = read(folder.spec(annotation="part_masks", landmarks=("head", "neck", "torso", "nose")), folder)
    assert found.issues == []
    (one,) = found.objects
    assert (one.image, one.box, one.name) == ("2008_000001.jpg", BODY, "2008_000001 1")
    assert one.mask_size == (140, 100)
    expected = [[4.5 / 39, 4.5 / 49], [10 / 39, 10 / 49], [0.5, 0.5], [1, 1]]
    assert np.allclose(one.landmarks_K2, expected, rtol=0, atol=1e-12)
    assert [path.name for path in found.files] == ["2008_000001.mat"]  # the other holds no cow


def test_both_annotations_of_an_object_agree(folder):
    """As the released readPartTruth makes its landmark files from boxes of parts."""
    parts = {"head": (20, 25, 33, 48), "neck": (40, 30, 47, 55)}
    xmin, ymin, xmax, ymax = BODY
    for number, (a, b, c, d) in enumerate(parts.values(), start=1):
        center = ((b + d) / 2 - ymin) / (ymax - ymin) * 224, ((a + c) / 2 - xmin) / (xmax - xmin) * 224
        folder.centers[number] = [center, *folder.centers[number][1:]]
    folder.write_truths()
    folder.annotate("2008_000000", [{"class": "cow", "bbox": BODY, "parts": parts}])
    spec = {"landmarks": ("head", "neck")}
    files = read(folder.spec(**spec), folder).objects[0]
    masks = read(folder.spec(annotation="part_masks", **spec), folder).objects[0]
    assert files.box == masks.box
    assert np.allclose(files.landmarks_K2, masks.landmarks_K2, rtol=0, atol=1e-12)


def test_pixels_of_a_part_outside_the_box_do_not_count(folder):
    parts = {"head": (1, 21, 20, 30), "neck": (100, 80, 110, 90)}
    folder.annotate("2008_000001", [{"class": "cow", "bbox": BODY, "parts": parts}])
    found = read(folder.spec(annotation="part_masks", landmarks=("head", "neck")), folder)
    assert np.allclose(found.objects[0].landmarks_K2[0], [4.5 / 39, 4.5 / 49])
    assert np.isnan(found.objects[0].landmarks_K2[1]).all()


@pytest.mark.parametrize(("category", "part"), NOSE.items())
def test_the_nose_of_each_animal(folder, category, part):
    parts = {"nose": (12, 22, 12, 22), "muzzle": (22, 32, 22, 32), "beak": (32, 42, 32, 42)}
    folder.annotate("2008_000001", [{"class": category, "bbox": BODY, "parts": parts}])
    spec = folder.spec(annotation="part_masks", landmarks=("nose",), category=category)
    row = {"nose": 1, "muzzle": 11, "beak": 21}[part]
    assert np.allclose(read(spec, folder).objects[0].landmarks_K2[0], [row / 39, row / 49])


def test_sizes_of_parts_by_hand(folder):
    """Object 1 has the box (11, 21, 60, 60): 40 rows of 50 columns. Its head is 10 rows of 25 columns; the landmark
    file says the same from first to last pixel, 9 / 39 and 24 / 49 of the frame."""
    elements = folder.truth(1)
    elements[0]["pHW_scale"] = np.array([[9 / 39 * 224], [24 / 49 * 224]])
    elements[1]["pHW_scale"] = np.empty((0, 0))
    elements[2]["pHW_scale"] = np.array([[-1.0], [300.0]])
    folder.write_truth(1, elements)
    found = read(folder.spec(landmarks=("head", "neck")), folder)
    assert found.objects[0].sizes_K2[0] == pytest.approx([10 / 40, 25 / 50])
    assert np.isnan([one.sizes_K2[0] for one in found.objects[1:3]]).all()
    assert np.isnan(found.objects[1].sizes_K2[1]).all()  # a neck that is not seen
    parts = {"head": (21, 31, 45, 40), "neck": (5, 21, 20, 30)}
    folder.annotate("2008_000000", [{"class": "cow", "bbox": (11, 21, 60, 60), "parts": parts}])
    (one,) = read(folder.spec(annotation="part_masks", landmarks=("head", "neck", "torso")), folder).objects
    assert one.sizes_K2[0] == pytest.approx([10 / 40, 25 / 50])
    assert one.sizes_K2[1] == pytest.approx([10 / 40, 10 / 50])  # columns 11 to 20 are inside the box
    assert np.isnan(one.sizes_K2[2]).all()
    head, neck, torso = one.masks
    assert torso is None and head is not None and neck is not None
    # Half of 10 rows and 25 columns of the crop's 40 and 50, in steps of 1 / 32 of it: 4 rows and 8 columns each way.
    assert head[32, 32] == 1 and head[32 - 3 : 32 + 4, 32 - 7 : 32 + 8].all()
    assert not head[: 32 - 5].any() and not head[:, : 32 - 9].any() and not head[32 + 6 :].any()


@pytest.mark.slow
@pytest.mark.real_data
def test_cow_as_released(real_data, tmp_path):
    if not (real_data / "voc/landmarks/cow").is_dir():
        pytest.skip("IPCNN_DATA has no voc/landmarks/cow")
    paths = replace(Paths.from_environment({"IPCNN_HOME": str(tmp_path)}), data=real_data)
    spec = VocPart.model_validate(
        {"kind": "voc_part", "category": "cow", "landmarks": ["head", "neck", "torso", "nose"]}
    )
    store = prepare(spec, SIZE, paths)
    found = summary(store)
    assert (found["objects"], found["negatives"], found["left_out"]) == (194, 1000, {})
    seen = {name: landmark["seen"] for name, landmark in found["landmarks"].items()}
    assert seen == {"head": 182, "neck": 90, "torso": 193, "nose": 161}
    splits = found["splits"]
    assert splits["training"]["items"] + splits["validation"]["items"] == 4000
    assert (splits["training"]["negative_items"], splits["training"]["objects"]) == (900, 175)
    # The first cow by hand: its box is columns 219..292 and rows 162..220, its head rows 195..214 and columns 219..236,
    # its neck rows 186..202 and columns 225..237 of the photograph, 1-based.
    assert store.names[0] == "2008_000009 1"
    image = Image.open(real_data / "voc/VOCdevkit/VOC2010/JPEGImages/2008_000009.jpg")
    crop = image.crop((218, 161, 292, 220)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images_N3SS[0], np.asarray(crop).transpose(2, 0, 1))
    for k, (top, bottom, left, right) in enumerate([(195, 214, 219, 236), (186, 202, 225, 237)]):
        row, col = (top + bottom) / 2 - 162, (left + right) / 2 - 219
        assert store.landmarks_NK2[0, k] == pytest.approx(
            [(row + 0.5) * SIZE / 59 - 0.5, (col + 0.5) * SIZE / 74 - 0.5], abs=1e-4
        )
    # Landmarks lie in their crops, and heads beside torsos.
    landmarks = store.landmarks_NK2[store.objects]
    inside = landmarks[~np.isnan(landmarks)]
    assert inside.min() > -0.5 and inside.max() < SIZE - 0.5
    apart = landmarks[:, 0] - landmarks[:, 2]
    apart = apart[~np.isnan(apart).any(1)]
    assert (np.linalg.norm(apart, axis=1) > SIZE / 10).mean() > 0.9


@pytest.mark.parametrize("image", ["../../../../secret.jpg", "/etc/passwd", "\ud800.jpg"])
def test_an_image_outside_its_folder_is_refused(tmp_path, image):
    annotations = Annotations(objects=[AnnotatedObject(image, (1, 1, 60, 60), [(0.5, 0.5)] * 3, "x")] * 2)
    (tmp_path / "secret.jpg").touch()
    says = "not UTF-8" if image == "\ud800.jpg" else "is not inside the folder of photographs"
    with pytest.raises(DataError, match=re.escape(f"image {image!r}") + ".*" + says):
        voc_folder(tmp_path).spec()._gather([annotations], tmp_path)
