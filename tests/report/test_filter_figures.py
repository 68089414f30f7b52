"""Pictures of filters and receptive fields, and their tables, from small made-up numbers."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipcnn_ray.report.filter_figures import (
    COLORS,
    FilterView,
    RankedFilter,
    RunColumn,
    distances_csv,
    filters_csv,
    format_distance,
    save_filter_figure,
    save_ranking_figure,
    save_receptive_fields_figure,
    save_template_figure,
    terminal_table,
)
from ipcnn_ray.report.filter_figures import _color as color
from ipcnn_ray.report.filter_figures import _lines as lines
from ipcnn_ray.report.filter_figures import _marker as marker

NAN = math.nan
PNG = b"\x89PNG\r\n\x1a\n"


def pixels(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == PNG
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def view(images: int, landmarks: int) -> FilterView:
    made = np.random.default_rng(0)
    paths = made.random((images, landmarks, 2)) * 16
    paths[0, 0] = NAN
    distance = made.random((images, landmarks))
    distance[0, 0] = NAN
    means, deviations = np.array([NAN, 0.2, *[0.3] * landmarks]), np.array([NAN, NAN, *[0.1] * landmarks])
    ranked = RankedFilter(1, 3, "cow", 0.08, means[:landmarks], deviations[:landmarks], np.arange(landmarks), 3)
    return FilterView(
        ranked=ranked,
        title="l1: L1 β2, conv5, filter 3",
        measured=32,
        objects=5,
        landmark_names=tuple(f"part{k}" for k in range(landmarks)),
        image_names=tuple(f"a_rather_long_name_of_an_image_{i}" for i in range(images)),
        images_ISS3=made.integers(0, 255, (images, 16, 16, 3)).astype(np.uint8),
        activation_I=made.random(images),
        peak_I2=made.random((images, 2)) * 16,
        landmarks_IK2=paths,
        distance_IK=distance,
        counted_K=tuple(made.random(n) for n in [0, 1, *[9] * landmarks][:landmarks]),
    )


@pytest.mark.parametrize(("images", "landmarks"), [(2, 3), (14, 8)])
def test_a_filter(tmp_path, images, landmarks):
    """Fewer and more images than tiles; landmarks that no image shows, and more of them than colours."""
    save_filter_figure(view(images, landmarks), tmp_path / "filter.png")
    assert pixels(tmp_path / "filter.png") == (1240, 550)


def test_every_landmark_has_its_own_mark():
    marks = [(color(k), marker(k)) for k in range(49)]
    assert len(set(marks)) == 49
    assert len({shape for _, shape in marks[: len(COLORS)]}) == len(COLORS)  # told apart without colour


def test_short_numbers_and_lines():
    assert [format_distance(value) for value in (0.0834, 1.25, NAN)] == [".083", "1.250", "-"]
    assert lines(["head .371", "neck .260", "torso .100"], 22) == ["head .371  neck .260", "torso .100"]


def test_the_ranking(tmp_path):
    deviations = np.sort(np.random.default_rng(1).random((5, 2)), axis=0)
    counts = np.full(2, 9)
    filters = [RankedFilter(i, i, "cow", row.mean(), row, row, counts, 1) for i, row in enumerate(deviations, 1)]
    save_ranking_figure(filters, ["head", "neck"], filters[::4], "plain, conv5", tmp_path / "ranked.png")
    assert pixels(tmp_path / "ranked.png")[0] == 836


def test_receptive_fields(tmp_path):
    """Regions that fill an image, touch its edge, and are empty."""
    images = np.full((3, 16, 16, 3), 200, np.uint8)
    regions = np.zeros((3, 16, 16), bool)
    regions[0], regions[1, :5, :5] = True, True
    one = RunColumn("plain\nplain", RANKED[0], regions)
    save_receptive_fields_figure(images, [one] * 8, 60, "its most stable filter", tmp_path / "many.png")
    save_receptive_fields_figure(images, [one], 60, "its most stable filter", tmp_path / "one.png")
    assert pixels(tmp_path / "many.png")[0] > pixels(tmp_path / "one.png")[0] == 572


RANKED = [
    RankedFilter(1, 7, "cow", 0.2, np.array([0.3, 0.5]), np.array([0.1, 0.3]), np.array([9, 4]), 5),
    RankedFilter(None, 2, "cow", NAN, np.array([0.3, NAN]), np.array([0.1, NAN]), np.array([9, 1]), 0),
]


def test_tables(tmp_path):
    (row,) = terminal_table(RANKED[:1], ["head", "neck"]).rows
    assert row == ["1", "7", "0.2000", "head 0.300 ± 0.100", "neck 0.500 ± 0.300"]
    filters_csv(RANKED, ["head", "neck"], tmp_path / "filters.csv")
    best, dropped = csv.DictReader((tmp_path / "filters.csv").open())
    assert (best["rank"], best["filter"], best["instability"], best["neck_deviation"]) == ("1", "7", "0.2", "0.3")
    assert (dropped["rank"], dropped["instability"], dropped["neck_images"]) == ("", "", "1")
    distances_csv([(7, "cow-1", 1.5, 2.0, 3.5, "head", 1 / 3, True)], tmp_path / "distances.csv")
    (row,) = csv.DictReader((tmp_path / "distances.csv").open())
    assert (row["image"], float(row["distance"]), row["counted"]) == ("cow-1", 1 / 3, "1")


def test_a_positive_template_is_brighter_at_its_centre(tmp_path):
    n = 5
    unit = np.full((n * n, n, n), -1.0)
    for position in range(n * n):
        unit[position, position // n, position % n] = 1.0
    save_template_figure(unit, "point", tmp_path / "a.png")
    save_template_figure(np.full((n * n, n, n), -1.0), "point", tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.size[0] > 600
        assert np.asarray(a.convert("L"), float).sum() > np.asarray(b.convert("L"), float).sum()
