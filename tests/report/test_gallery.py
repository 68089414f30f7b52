"""The gallery of filters as text: numbers, pictures once, and what is said where there are none."""

from __future__ import annotations

import csv
import io
import re
from html import unescape

from fakes.gallery import COWS, small_gallery
from fakes.tracker import half_failed_search

from ipcnn_ray.cli.report import build_page
from ipcnn_ray.report.experiment_record import read_experiments
from ipcnn_ray.report.gallery import gallery_html
from ipcnn_ray.report.page import Page


def page() -> Page:
    return build_page(read_experiments(half_failed_search(4), ["sweep"]), [small_gallery()])


def test_a_photograph_is_in_the_page_once():
    html = gallery_html("filters", small_gallery())
    assert html.count("data:image/jpeg;base64,") == len(COWS) == 5
    assert html.count('<use href="#filters-i0"/>') == 3
    assert html.count('<use href="#') == 15
    assert len(re.findall(r'<svg class="tile"[^>]*aria-label="cow_\d.jpg: activation', html)) == 15


def test_marks_lie_on_the_peak_and_the_landmarks():
    html = gallery_html("filters", small_gallery())
    cards = re.findall(r'<li class="card".*?</li>', html, re.DOTALL)
    assert [re.search(r'data-filter="(\d)', card).group(1) for card in cards[:3]] == ["1", "2", "0"]  # by tracking
    first, second, last = cards[0], cards[1], cards[2]
    line = '<line stroke="#E69F00" x1="0.750" y1="0.250" x2="0.500" y2="0.250"/>'  # from the peak to the head
    assert first.count(line) == 5
    assert second.count("<line ") == 2  # the tail is in one image: the line and its outline
    assert "<line " not in last
    assert first.count("<circle") == last.count("<circle") == 6
    assert 'd="M0.700 0.200L0.800 0.300M0.700 0.300L0.800 0.200"' in first
    assert "cow_0.jpg: activation 5, head 0.125, tail 0.250" in first
    assert "cow_1.jpg: activation 4, head 0.125<" in first


def test_numbers_as_the_page_says_them():
    html = unescape(page().html)
    assert "narrow: L2 β10: 3 filters of conv5, 2 follow a landmark" in html
    assert "plain: 2 of 9 filters of conv5, 1 follow a landmark" in html
    words = "filter 1 follows head, tracking 0.90, instability 0.0625, fires in 50 % of the images"
    assert f'aria-label="{words}: enlarge"' in html
    rows = list(csv.DictReader(io.StringIO(page().files["filters.csv"].decode())))
    assert [row["run"] for row in rows] == ["narrow"] * 3 + ["plain"] * 2
    assert rows[2] == {
        **{"run": "narrow", "layer": "conv5", "filter": "2", "category": "cow", "landmark": "tail"},
        **{"tracking": "0.4", "instability": "", "fires": "0.25"},
    }


def test_a_run_without_pictures_says_why():
    made = page()
    assert "No pictures: model.safetensors is missing &lt;here&gt;" in made.html
    assert "plain: 2 of 9 filters of conv5, 1 follow a landmark (no pictures: model.safetensors is" in made.markdown(
        "x/"
    )
    assert "[filters.csv](x/filters.csv)" in made.markdown("x/")


def test_without_filters_there_is_no_chapter():
    made = build_page(read_experiments(half_failed_search(4), ["sweep"]))
    assert "Filters" not in [chapter.title for chapter in made.chapters]
    assert "<dialog" not in made.html and "filters.csv" not in made.files
