from __future__ import annotations

from ipcnn_ray.report.ranking import COLUMNS, cells, markdown

PLAIN = {
    "run": "plain",
    "template": "plain",
    "combined": 1.0,
    "instability": 0.1402,
    "val_error": 0.125,
    "epoch": 12.0,
    "state": "succeeded",
    "why": "",
}
FAILED = {
    "run": "r1",
    "template": "L1 β2",
    "combined": None,
    "instability": float("nan"),
    "val_error": None,
    "epoch": None,
    "state": "failed",
    "why": "TrainingError: the loss is not finite",
}


def test_numbers_carry_their_units_and_the_control_is_named():
    assert cells(PLAIN, "plain") == ["plain", "plain (control)", "1.000", "0.1402", "12.5 %", "12", "succeeded"]


def test_what_is_missing_is_shown_as_missing():
    assert cells(FAILED, "plain") == ["r1", "L1 β2", "-", "-", "-", "-", "failed"]


def test_the_markdown_names_the_cause_of_a_failure():
    text = markdown([PLAIN, FAILED], "plain")
    assert text.splitlines()[0] == "| " + " | ".join(COLUMNS) + " |"
    assert "r1 failed: TrainingError: the loss is not finite" in text
