from __future__ import annotations

import os
import re

import numpy as np
import pytest
from fakes.datasets import photograph
from PIL import Image, ImageOps

from ipcnn_ray.data.crops import ImageFileError, image_size, place_in_crop, square_crop


def test_a_crop_of_its_own_size_is_the_pixels_of_the_box(tmp_path):
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert image_size(tmp_path / "x.png") == (8, 6)
    # 1-based, inclusive: columns 3..6, rows 2..5
    assert np.array_equal(square_crop(tmp_path / "x.png", (3, 2, 6, 5), 4), pixels[1:5, 2:6].transpose(2, 0, 1))


def test_shrinking_averages(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2] = 200  # stripes of one pixel: without antialiasing a shrunk image is black or white
    Image.fromarray(pixels).save(tmp_path / "x.png")
    crop = square_crop(tmp_path / "x.png", None, 8)
    assert abs(crop[:, 2:6, 2:6].astype(int) - 100).max() <= 4


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_colours_become_rgb(tmp_path, mode):
    Image.new("RGB", (10, 10), (90, 90, 90)).convert(mode).save(tmp_path / "x.tif")
    assert square_crop(tmp_path / "x.tif", None, 5).shape == (3, 5, 5)


def test_grey_is_the_same_in_all_channels(tmp_path):
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(tmp_path / "x.png")
    crop = square_crop(tmp_path / "x.png", None, 10)
    assert np.array_equal(crop[0], np.arange(100).reshape(10, 10))
    assert np.array_equal(crop[0], crop[1])
    assert np.array_equal(crop[0], crop[2])


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("box", [(11, 6, 70, 85), (5, 5, 54, 34), (1, 1, 120, 90)])
def test_a_spot_is_where_its_place_in_the_crop_says(tmp_path, box, size):
    row, col = box[1] + 3 * (box[3] - box[1]) // 4, box[0] + (box[2] - box[0]) // 4  # 1-based centre of the spot
    pixels = np.zeros((90, 120, 3), np.uint8)
    pixels[row - 2 : row + 1, col - 2 : col + 1] = 255  # 3 x 3
    Image.fromarray(pixels).save(tmp_path / "x.png")
    share = np.array([[(row - box[1]) / (box[3] - box[1]), (col - box[0]) / (box[2] - box[0])]])
    weight = square_crop(tmp_path / "x.png", box, size)[0].astype(float)
    rows, cols = np.mgrid[:size, :size]
    centroid = [(weight * rows).sum() / weight.sum(), (weight * cols).sum() / weight.sum()]
    assert np.abs(place_in_crop(share, box, size)[0] - centroid).max() < 0.05


def test_corners_by_hand():
    # A box 4 pixels wide and 2 high becomes 8 x 8: each of its pixels is 2 wide and 4 high.
    corners = place_in_crop(np.array([[0.0, 0.0], [1.0, 1.0]]), (1, 1, 4, 2), 8)
    assert corners.tolist() == [[1.5, 0.5], [5.5, 6.5]]


def test_unseen_stays_unseen():
    assert np.isnan(place_in_crop(np.full((3, 2), np.nan), (1, 1, 4, 2), 8)).all()


def test_files_that_are_no_whole_image(tmp_path):
    photograph(tmp_path / "x.jpg", 1)
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    assert image_size(tmp_path / "half.jpg") == (140, 100)  # only its header is read
    with pytest.raises(ImageFileError, match=f"^{re.escape('does not decode to its end: image file is truncated')}"):
        square_crop(tmp_path / "half.jpg", None, 8)
    for read in (image_size, lambda path: square_crop(path, None, 8)):
        with pytest.raises(ImageFileError, match=r"^is not an image$"):
            read(tmp_path / "text.jpg")


@pytest.mark.parametrize("orientation", range(9))
def test_an_image_is_turned_as_viewers_do_where_asked_for(tmp_path, orientation):
    path, pixels = tmp_path / "x.png", np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation  # 0 is not one
    image.save(path, exif=image.getexif())
    seen = ImageOps.exif_transpose(Image.open(path))
    assert image_size(path) == (8, 6) and image_size(path, upright=True) == seen.size
    whole = (1, 1, *seen.size)
    expected = np.asarray(seen.resize((6, 6), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(square_crop(path, whole, 6, upright=True), expected)
    as_stored = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(square_crop(path, None, 6), as_stored)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert image_size(tmp_path / "x.jpg", upright=True) == (8, 6)
    assert square_crop(tmp_path / "x.jpg", None, 6, upright=True).shape == (3, 6, 6)


def test_images_of_sixteen_bits_are_refused_where_nothing_may_be_lost(tmp_path):
    Image.fromarray(np.full((6, 8), 1000, np.uint16)).save(tmp_path / "x.tif")
    with pytest.raises(ImageFileError, match=r"has more than 8 bits per channel \(mode I;16\)"):
        image_size(tmp_path / "x.tif", upright=True)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif", "ppm", "mpo"])
def test_every_format_of_photographs_is_read(tmp_path, suffix):
    Image.new("RGB", (8, 6), (200, 100, 50)).save(tmp_path / f"x.{suffix}")
    assert image_size(tmp_path / f"x.{suffix}") == (8, 6)
    assert square_crop(tmp_path / f"x.{suffix}", None, 4).shape == (3, 4, 4)


def test_formats_that_start_programs_and_bombs_and_pipes_are_no_images(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "postscript.jpg", "EPS")  # Pillow starts Ghostscript to decode it
    with pytest.raises(ImageFileError, match=r"^is not an image$"):
        square_crop(tmp_path / "postscript.jpg", None, 4)
    Image.new("1", (30_000, 3_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageFileError, match=r"^has 30000 x 3000 pixels, more than 89 million$"):
        image_size(tmp_path / "bomb.png")
    Image.new("1", (60_000, 3_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageFileError, match=r"^cannot be opened as an image: Image size"):
        image_size(tmp_path / "bomb.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageFileError, match=r"^is not a file$"):
        image_size(tmp_path / "pipe.jpg")
