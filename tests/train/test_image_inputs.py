"""Photographs by files, folders, patterns and URLs, and the boxes of a table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipcnn_ray.errors import DataError, TrackingError
from ipcnn_ray.train.image_inputs import (
    ImageInput,
    find_images,
    images_of_boxes,
    read_boxes,
    read_image,
    with_absolute_paths,
    with_boxes,
)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "in/c.jpeg", "in/deep/a.jpg", ".hidden/x.jpg", "in/.y.jpg", "[1].webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def names(*given: str, **how) -> list[str]:
    return [image.path for image in find_images(given, **how)]


def test_folders_are_searched_to_their_bottom(photos):
    everything = ["photos/[1].webp", "photos/a.jpg", "photos/b.PNG", "photos/in/c.jpeg", "photos/in/deep/a.jpg"]
    assert names("photos") == everything
    assert names(str(photos)) == [str(photos.parent / name) for name in everything]
    assert names("photos", skip=photos / "in") == everything[:3]


def test_files_patterns_and_each_once(photos):
    assert names("photos/notes.txt", "photos/[1].webp") == ["photos/notes.txt", "photos/[1].webp"]
    assert names("photos/*.jpg", "photos/a.jpg", str(photos / "a.jpg")) == ["photos/a.jpg"]
    assert names("photos/**/a.jpg") == ["photos/a.jpg", "photos/in/deep/a.jpg"]
    assert names("photos/i*") == ["photos/in/c.jpeg", "photos/in/deep/a.jpg"]  # a folder
    (image,) = find_images(["photos/a.jpg"])
    assert image.stamp.startswith("5-") and read_image(image.path) == Path("photos/a.jpg")
    assert with_absolute_paths([image]) == [ImageInput(str(photos / "a.jpg"), None, image.stamp)]


def test_names_without_images_are_told_together(photos):
    with pytest.raises(DataError) as caught:
        names("photos/a.jpg", "empty", "fotos", "photos/*.gif")
    empty, missing, pattern = str(caught.value).split("\n       ")[0], *str(caught.value).splitlines()[2::2]
    assert empty == "empty  holds no images"
    assert missing == "fotos  no such file or folder" and pattern == "photos/*.gif  no such file or folder"
    assert "Images end in .bmp, .gif, .jpeg" in str(caught.value)


def test_images_in_a_bucket(fake_s3):
    fake_s3.objects = {"in/b.jpg": b"b", "in/c/a.png": b"a", "in/notes.txt": b"n"}
    assert names("s3://bucket/in") == ["s3://bucket/in/b.jpg", "s3://bucket/in/c/a.png"]
    assert names("s3://bucket/in/b.jpg", "s3://bucket/in/") == ["s3://bucket/in/b.jpg", "s3://bucket/in/c/a.png"]
    assert read_image("s3://bucket/in/c/a.png") == b"a"
    with pytest.raises(DataError, match="s3://bucket/out  holds no images"):
        names("s3://bucket/out")
    with pytest.raises(TrackingError, match=r"gone\.jpg cannot be read"):
        read_image("s3://bucket/in/gone.jpg")


def table(path: Path, *rows: str, header: str = "image,xmin,ymin,xmax,ymax,who") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_boxes_of_images(photos):
    file = table(
        photos / "boxes.csv", "a.jpg,1,2,3.5,4,me", "in/c.jpeg,,,,,", "deep/a.jpg,5,6,7,8,", "gone.jpg,1,2,3,4,"
    )
    rows = read_boxes(file)
    images = find_images(["photos/in", "photos/b.PNG"])
    given, remark = with_boxes(images, rows[1:], file)
    assert [(image.path, image.edges) for image in given] == [
        ("photos/in/c.jpeg", None),
        ("photos/in/deep/a.jpg", (5, 6, 7, 8)),
        ("photos/b.PNG", None),  # no row: as a whole
    ]
    assert remark == f"1 row of {file} name images that are not given"
    assert [image.path for image in images_of_boxes(file, rows)] == [
        str(photos / name) for name in ("a.jpg", "in/c.jpeg", "deep/a.jpg", "gone.jpg")
    ]
    twice, remark = with_boxes(images[:1], [rows[1], *read_boxes(table(file, "c.jpeg,0,0,9,9,"))], file)
    assert [image.edges for image in twice] == [None, (0, 0, 9, 9)] and not remark


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["a.jpg,1,2,3,4,"], "boxes.csv:2  image 'a.jpg' is the end of photos/a.jpg and photos/in/deep/a.jpg"),
        (["x.jpg,1,2,3,4,"], "boxes.csv  names none of the 5 images, such as photos/[1].webp"),
        (["b.PNG,1,2,,4,"], "boxes.csv:2  xmin = '1', ymin = '2', xmax = '', ymax = '4': not 4 numbers"),
        ([], "boxes.csv  has a header and no rows\n       Expected a header with image and xmin"),
    ],
)
def test_wrong_boxes(photos, rows, text):
    file = table(photos / "boxes.csv", *rows)
    with pytest.raises(DataError, match=re.escape(text)):
        with_boxes(find_images(["photos"]), read_boxes(file), file)


def test_a_table_without_boxes(photos):
    with pytest.raises(DataError, match="has no column 'xmin'"):
        read_boxes(table(photos / "boxes.csv", "a.jpg,b", header="image,name"))
