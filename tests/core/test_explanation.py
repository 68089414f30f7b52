"""Explanations by hand: scores, peaks, receptive fields and landmarks in pixels of an image that is not square."""

from __future__ import annotations

import math

import pytest
import torch

from ipcnn_ray.core.crop_place import CropPlace
from ipcnn_ray.core.explanation import (
    ExplanationContext,
    KnownFilter,
    Score,
    decision_label,
    explain,
)
from ipcnn_ray.core.receptive_field import Field

WHOLE = CropPlace(80, 40, (0, 0, 80, 40), 20)
"""A crop of 20 x 20: each of its pixels is 4 wide and 2 high in the image."""
BOX = CropPlace(80, 40, (10, 5, 50, 25), 20)
FIELD = Field(stride=5, size=9, first_center=2.0)
"""Cells of a 4 x 4 map have their centres at 2, 7, 12, 17."""


def context(*known: KnownFilter, form: str = "logistic", categories: tuple[str, ...] = ("cow",)) -> ExplanationContext:
    return ExplanationContext(categories, form, {"low": Field(1, 1, 0.0), "top": FIELD}, {"top": known})


def one_cell(value: float, row: int, col: int, n: int = 4) -> torch.Tensor:
    map_nn = torch.full((n, n), -1.0)
    map_nn[row, col] = value
    return map_nn


def test_positions_by_hand():
    """Cell (row 1, col 3) has its centre at row 7, col 17 of the crop: pixel edges 17 to 18, 7 to 8."""
    maps = {
        "low": torch.full((1, 1, 20, 20), -1.0),
        "top": torch.stack([one_cell(0.5, 1, 3), one_cell(2.0, 0, 0), one_cell(-0.5, 2, 2)])[None],
    }
    known = (
        KnownFilter("cow", "head", 0.9, (0.1, -0.25), (0.05, 0.1)),  # 2 rows below, 5 columns to the left
        KnownFilter("cow", None, 0.1),
        KnownFilter("cow", "tail", 0.8, (0.0, 0.0), (0.0, 0.0)),
    )
    logits = torch.tensor([[1.5]])
    (said,) = explain(logits, maps, [("a.jpg", WHOLE)], context(*known))
    assert (said.image, said.width, said.height, said.box, said.crop_size) == ("a.jpg", 80, 40, (0, 0, 80, 40), 20)
    assert said.scores == {"cow": Score(1.5, pytest.approx(1 / (1 + math.exp(-1.5))))} and said.decision == ("cow",)
    strong, weak = said.filters  # the third does not fire; nothing of `low` does
    assert (strong.filter, strong.activation, weak.filter, weak.activation) == (1, 2.0, 0, 0.5)
    # the middle of crop pixel 17 is 17.5 / 20 of the width: 70; half a pixel less, since 0 is the centre of the first
    assert (weak.crop_x, weak.crop_y, weak.x, weak.y) == (17, 7, 69.5, 14.5)
    # the field is 9 wide: crop edges 13 to 22, cut at 20, and 3 to 12
    assert weak.field == (52, 6, 80, 24)
    assert (weak.category, weak.landmark, weak.tracking) == ("cow", "head", 0.9)
    # the landmark: crop column 12, row 9
    assert (weak.landmark_x, weak.landmark_y) == (49.5, 18.5)
    assert (weak.landmark_x_deviation, weak.landmark_y_deviation) == (8, 2)
    assert (strong.x, strong.y, strong.landmark, strong.landmark_x, strong.tracking) == (9.5, 4.5, None, None, 0.1)
    assert strong.field == (0, 0, 28, 14)


def test_a_box_by_hand():
    """A box of 40 x 20 from 10, 5: a crop pixel is 2 wide and 1 high."""
    maps = {"low": torch.full((1, 1, 20, 20), -1.0), "top": one_cell(1.0, 1, 3)[None, None]}
    known = KnownFilter("cow", "head", 0.9, (0.1, -0.25), (0.05, 0.1))
    (fired,) = explain(torch.tensor([[0.0]]), maps, [("", BOX)], context(known))[0].filters
    assert (fired.x, fired.y) == (10 + 17.5 * 2 - 0.5, 5 + 7.5 - 0.5)
    assert fired.field == (36, 8, 50, 17)
    assert (fired.landmark_x, fired.landmark_y, fired.landmark_x_deviation) == (10 + 12.5 * 2 - 0.5, 5 + 9.5 - 0.5, 4)


def test_layers_from_the_top_and_the_first_of_equals():
    maps = {
        "low": torch.stack([one_cell(9.0, 0, 0, 20), one_cell(9.0, 5, 5, 20)])[None],
        "top": torch.stack([one_cell(1.0, 0, 0), torch.ones(4, 4), one_cell(3.0, 2, 1), one_cell(0.0, 1, 1)])[None],
    }
    (said,) = explain(torch.tensor([[-1.0]]), maps, [("", WHOLE)], context())
    assert [(fired.layer, fired.filter) for fired in said.filters] == [
        ("top", 2),
        ("top", 0),
        ("top", 1),
        ("low", 0),
        ("low", 1),
    ]
    assert (said.filters[2].crop_x, said.filters[2].crop_y) == (2, 2)  # the first cell of equal ones
    assert [(fired.layer, fired.filter) for fired in said.strongest(1)] == [("top", 2), ("low", 0)]
    assert said.decision == () and decision_label(said.decision) == "none"
    # nothing is known of them
    assert {(fired.category, fired.landmark, fired.tracking, fired.landmark_y) for fired in said.filters} == {
        (None, None, None, None)
    }


@pytest.mark.parametrize(("form", "decision"), [("logistic", [("dog", "cat"), ()]), ("softmax", [("cat",), ("cow",)])])
def test_several_categories(form, decision):
    logits = torch.tensor([[-1.0, 2.0, 3.0], [-0.5, -2.0, -3.0]])
    maps = {"low": torch.full((2, 1, 20, 20), -1.0), "top": torch.full((2, 1, 4, 4), -1.0)}
    said = explain(logits, maps, [("a", WHOLE), ("b", BOX)], context(form=form, categories=("cow", "dog", "cat")))
    assert [one.decision for one in said] == decision
    for one, logits_L in zip(said, logits.tolist(), strict=True):
        total = sum(math.exp(logit) for logit in logits_L)
        for score, logit in zip(one.scores.values(), logits_L, strict=True):
            expected = math.exp(logit) / total if form == "softmax" else 1 / (1 + math.exp(-logit))
            assert (score.logit, score.probability) == (logit, pytest.approx(expected, rel=1e-12))
    assert decision_label(("dog", "cat")) == "dog, cat"


def test_as_json_has_all_fields():
    maps = {"low": torch.full((1, 1, 20, 20), -1.0), "top": one_cell(1.0, 1, 3)[None, None]}
    (said,) = explain(torch.tensor([[0.25]]), maps, [("a.jpg", WHOLE)], context(KnownFilter("cow", "head", 0.9)))
    told = said.as_json()
    assert told["box"] == [0, 0, 80, 40] and told["decision"] == ["cow"]
    assert told["scores"] == {"cow": {"logit": 0.25, "probability": said.scores["cow"].probability}}
    (fired,) = told["filters"]
    assert fired["x"] == 69.5 and fired["landmark"] == "head" and fired["landmark_x"] is None
    assert fired["field"] == [52, 6, 80, 24] and set(fired) == set(vars(said.filters[0]))
