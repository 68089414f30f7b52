"""The measures beside location instability, in the page's ranking."""

from __future__ import annotations

from dataclasses import replace

from fakes.metrics import install
from fakes.verdict import NARROW, trained
from fakes.verdict import PLAIN as CONTROL

from ipcnn_ray.report.chapters import landmarks_table, measures_table
from ipcnn_ray.report.ranking_table import Ranking
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.run_summary import RunSummary

AIMS = Objectives(("instability",), ())


def ended(label: str, template: str, **metrics: float) -> RunSummary:
    return RunSummary(f"a-1-{label}", label, seed=0, template=template, state="succeeded", metrics=metrics)


PLAIN = ended("plain", "plain", instability=0.13, val_error=0.02, purity=0.1)
L1 = ended("l1", "L1 β2", instability=0.12, val_error=0.04, activation_entropy=0.25)


def test_every_measure_that_any_setting_has_with_its_direction_and_meaning():
    found = measures_table(Ranking.of([PLAIN, L1], AIMS))
    assert found.name == "measures"
    assert found.table.columns == ("run", "template", "purity ↑", "activation_entropy ↓")
    assert found.table.numbers == ("purity ↑", "activation_entropy ↓")
    assert found.table.rows == [["l1", "L1 β2", "-", "0.2500"], ["plain", "plain", "0.1000", "-"]]
    assert "purity, share of images: of the filter's 10 strongest images" in found.caption
    assert "activation_entropy, share of log n^2" in found.caption and "consistency" not in found.caption


def test_repeats_have_a_mean_and_a_spread():
    rows = [
        replace(PLAIN, seed=seed, metrics={**PLAIN.metrics, "purity": purity}) for seed, purity in ((0, 0.1), (1, 0.3))
    ]
    found = measures_table(Ranking.of(rows, AIMS))
    assert found.table.rows == [["plain", "plain", "0.2000 ± 0.1414"]]


def test_nothing_where_none_was_taken():
    bare = replace(PLAIN, metrics={"instability": 0.13})
    assert measures_table(Ranking.of([bare], AIMS)) is None


def test_a_metric_of_another_package_has_its_column_and_its_direction(monkeypatch):
    install(monkeypatch, sparsity="Sparsity")
    runs = [ended(name, name, sparsity=value, instability=0.1) for name, value in (("plain", 0.2), ("l1", 0.7))]
    found = measures_table(Ranking.of(runs, Objectives(("sparsity",))))
    assert found.table.columns == ("run", "template", "sparsity ↑")
    assert [row[0] for row in found.table.rows] == ["l1", "plain"]  # higher is better
    assert "sparsity, share of cells: cells of the filter's map that are zero" in found.caption


def test_whether_filters_follow_landmarks_with_what_chance_gives():
    runs = [*trained("plain", CONTROL, seeds=1), *trained("narrow", NARROW, seeds=1)]
    found = landmarks_table(Ranking.of(runs, AIMS))
    assert (found.name, found.title) == ("landmarks", "Do filters follow landmarks?")
    assert found.table.columns == (
        "run", "template", "tracking ↑", "following ↑", "few: tracking, following ↑", "landmarks ↑", "peaks apart ↑",
        "spread", "keypoint error ↓", "filters by landmark",
    )  # fmt: skip
    assert found.table.rows == [
        ["narrow", "narrow", "0.92 (-1.10)", "97 % (3 %)", "-0.10, 30 %", "1.0", "0.14", "0.27", "0.120 (0.150)",
         "head 31.0, neck 0.0, torso 0.0"],
        ["plain", "plain", "-0.29 (-1.10)", "25 % (3 %)", "-0.10, 30 %", "1.5", "0.45", "0.27", "0.120 (0.150)",
         "head 6.0, neck 2.0, torso 0.0"],
    ]  # fmt: skip
    assert measures_table(Ranking.of(runs, AIMS)) is None  # every run has these, so they are no measures of eval


def test_columns_that_no_setting_has_are_left_out():
    old = [replace(run, metrics={"instability": 0.1, "peak_spread": 0.2}) for run in trained("plain", CONTROL)]
    found = landmarks_table(Ranking.of([*old, PLAIN], AIMS))
    assert found.table.columns == ("run", "template", "spread")
    assert [row[2] for row in found.table.rows] == ["0.20 ± 0.00"]
    assert landmarks_table(Ranking.of([PLAIN, L1], AIMS)) is None
