"""The page of `ipcnn predict`: what it says of images, and what it draws where."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from ipcnn_ray.core.explanation import Explanation, FiringFilter, Score
from ipcnn_ray.report import prediction_page as module
from ipcnn_ray.report.prediction_page import (
    PredictedRun,
    filter_table,
    picture,
    prediction_page,
    score_table,
    shown_filters,
    to_jpeg,
)

RUN = PredictedRun("sweep-1-l1", "L1 β2", "cow (voc_part)", 0.043, {"conv5": (1, 3)})


def fired(number: int, layer: str = "conv5", landmark: str | None = "head", **changed) -> FiringFilter:
    field = (10.0, 10.0, 60.0, 60.0)
    at = (None, None, None, None) if landmark is None else (70.0, 25.0, 4.0, 3.0)
    made = FiringFilter(layer, number, 3.0 - number, 40.0, 20.0, 9.0, 9.0, field, "cow", landmark, 0.9, *at)
    return replace(made, **changed)


def said(*filters: FiringFilter, logit: float = 2.0, **changed) -> Explanation:
    scores, decision = {"cow": Score(logit, 0.88)}, ("cow",) if logit > 0 else ()
    return replace(Explanation("a&b.jpg", 120, 80, (0, 0, 120, 80), 64, scores, decision, filters), **changed)


def test_which_filters_are_drawn():
    low = fired(0, "conv4")
    assert shown_filters(said(fired(0, landmark=None), fired(1), fired(2), low), 1) == (fired(1),)
    assert shown_filters(said(fired(0, landmark=None), low), 3) == (fired(0, landmark=None),)
    assert shown_filters(said(), 3) == ()


def test_tables():
    table = filter_table([fired(2), fired(5, landmark=None, tracking=None), fired(1, landmark_x=None)])
    assert table.rows[0] == ["conv5", "2", "1", "40", "20", "head", "0.90", "70 ± 4", "25 ± 3"]
    assert table.rows[1][5:] == ["-", "-", "-", "-"] and table.rows[2][5:] == ["head", "0.90", "-", "25 ± 3"]
    early = filter_table([fired(2, landmark_x=None)])
    assert early.columns[-1] == "tracking" and early.rows[0][-2:] == ["head", "0.90"]
    one = score_table([said(fired(1))])
    assert one.columns == ("image", "decision", "probability (logit)", "filters that fire")
    assert one.rows == [["a&b.jpg", "cow", "88.0 % (+2.00)", "1"]]
    many = {name: Score(logit, 0.5) for name, logit in (("a", -1.0), ("b", 3.0), ("c", 0.0), ("d", 1.0))}
    several = score_table([said(scores=many, decision=("b", "d"), box=(1, 2, 30, 40))])
    assert several.rows == [
        ["a&b.jpg", "1, 2, 30, 40", "b, d", "b 50.0 % (+3.00)  d 50.0 % (+1.00)  c 50.0 % (+0.00)", "0"]
    ]


def test_peaks_and_landmarks_are_where_they_say():
    """On a black image: the first colour at the place of the landmark, white at the peak, nothing far from both."""
    one = said(fired(1), box=(0, 0, 120, 80))
    figure = picture(np.zeros((80, 120, 3), np.uint8), one, one.filters)
    pixels = matplotlib.image.imread(io.BytesIO(to_jpeg(figure)), format="jpeg").astype(int)
    width, height = figure.get_size_inches()
    across = pixels.shape[1] / 120
    assert across == pytest.approx(7 * module.DPI / 120, rel=0.01) and height > width * 80 / 120

    def at(x: float, y: float) -> list[int]:
        return pixels[round((y + 0.5) * across), round((x + 0.5) * across)].tolist()

    red, green, blue = at(70, 25)
    assert red > 180 and 100 < green < 200 and blue < 80  # orange, the first colour of landmarks
    label = pixels[round(19.5 * across) : round(21.5 * across), round(39.5 * across) : round(41.5 * across)].min(2)
    assert 0.2 < (label > 200).mean() < 0.9 and label.min() < 60  # a white label with its number
    assert max(at(100, 70)) < 40
    frame = picture(np.zeros((80, 120, 3), np.uint8), said(box=(20, 20, 100, 70)), ())
    framed = matplotlib.image.imread(io.BytesIO(to_jpeg(frame)), format="jpeg")
    assert framed[round(20 * framed.shape[0] / 80) - 2 : round(20 * framed.shape[0] / 80) + 3].max() > 200
    tall = picture(np.zeros((80, 20, 3), np.uint8), said(width=20, box=(0, 0, 20, 80)), ()).get_size_inches()
    assert tall[1] / tall[0] == pytest.approx(4)


def test_the_page(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 3)
    explanations = [said(fired(1), fired(0, "conv4", None)), said(logit=-1.0), said(), said()]
    pictures = [("0001_a_b", explanations[0], b"jpeg"), ("0002_a_b", explanations[1], b"jpeg")]
    page = prediction_page(RUN, explanations, [("x.jpg", "is not an image")], pictures, 6)
    html = page.html
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "Run sweep-1-l1: L1 β2, trained on cow (voc_part). Its validation error there: 4.3 % of images." in text
    assert "1 of the 3 filters of conv5 followed a landmark in training." in text
    assert "4 images predicted (cow: 3, none: 1)." in text and "1 image could not be read." in text
    assert "The first 3 images; 1 more are in predictions.csv." in text
    assert "The first 2 of 4 images; predictions.json has all" in text
    assert "x.jpg" in text and "is not an image" in text
    assert html.count("data:image/jpeg;base64,anBlZw==") == 2 and "a&amp;b.jpg" in html
    assert (
        "Drawn: the 1 strongest filter of conv5 that followed a landmark. Mean of their places of the head: 70, 25."
        in text
    )
    assert "2 filters fire." in text and "0 filters fire." in text
    assert "http" not in html.replace("http-equiv", "")
    blind = prediction_page(replace(RUN, following={}, upright=False), explanations[:1], [], [], 6).html
    assert "nothing tells what filters follow" in blind and "Images are not turned by their EXIF" in blind
    assert "Not read" not in blind and 'href="#p1">How to read this' in blind
