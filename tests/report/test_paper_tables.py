"""The papers' tables on our page: the printed numbers come back exactly, ours stand beside them."""

from __future__ import annotations

import re
from html import unescape

import pytest
from check_vectors import SHARED
from fakes.tracker import PLAIN, FakeTracker, gradient, repeated_templates, uniform

from ipcnn_ray.report import published
from ipcnn_ray.report.experiment_record import read_experiments
from ipcnn_ray.report.page import Page
from ipcnn_ray.report.paper_tables import paper_chapter, paper_template, zhang_template
from ipcnn_ray.report.published import CATEGORIES, NETWORKS, TEMPLATES

PAPER = SHARED / "paper" / "part-templates-paper.md"
LAYER = SHARED / "reference" / "interpretable-layer.md"
PHOTOGRAPHS = {"data.drawn": "false", "model.weights": "conv1, conv2", "code.dirty": "false"}


def tables_of(html: str) -> dict[str, list[list[str]]]:
    """Tables of a page by their id: rows of cells as text."""
    found = {}
    for name, table in re.findall(r'<table id="(\w+)">(.*?)</table>', html, re.S):
        rows = re.findall(r"<tr.*?</tr>", table, re.S)
        found[name] = [list(map(unescape, re.findall(r"<t[hd]\b.*?>(.*?)</t[hd]>", row, re.S))) for row in rows]
    return found


def page_of(tracker: FakeTracker) -> str:
    """A page of the papers' tables alone: figures take seconds to draw."""
    chapter = paper_chapter(read_experiments(tracker, tracker.experiments()))
    return Page("the papers' tables", [chapter], ([], [])).html


@pytest.fixture(scope="module")
def on_page() -> dict[str, list[list[str]]]:
    return tables_of(page_of(repeated_templates(2)))


def printed(rows: list[list[str]]) -> dict[str, list[str]]:
    return {row[0]: row[2:] for row in rows if row[1] == "published"}


def name(network: str, template: str) -> str:
    return f"{NETWORKS[network]} ({TEMPLATES[template]})" if TEMPLATES[template] else NETWORKS[network]


def test_the_printed_numbers_come_back_exactly(on_page):
    for known, stable, accurate in ((published.MIDWAY, "table1", "table2"), (published.FINAL, "table3", "table5")):
        rows, accuracies = printed(on_page[stable]), printed(on_page[accurate])
        assert len(rows) == len(accuracies) == len(known)
        for key, row in known.items():
            assert [float(text) for text in rows[name(*key)]] == [*row.by_category, row.average]
            assert accuracies[name(*key)] == [*["not printed"] * 6, f"{row.accuracy}"]
    assert {model: tuple(map(float, cells[:3])) for model, cells in printed(on_page["table4"]).items()} == {
        NETWORKS[network]: row for network, row in published.L1_AGAINST_L2.items()
    }
    zhang = {(row[0], row[1]): (float(row[2]), float(row[4])) for row in on_page["zhang"][1:] if row[1] != "compact"}
    assert sorted(zhang.values()) == sorted(tuple(one) for rows in published.ZHANG.values() for one in rows.values())


@pytest.mark.skipif(not PAPER.is_file(), reason="needs the paper's text")
def test_the_page_has_the_numbers_of_the_paper(on_page):
    """Read from the paper's own text, not from our module."""
    number = r"(\d+\.\d+)"
    text = PAPER.read_text(encoding="utf-8")
    rows = re.findall(rf"^(\S+(?: \([\w-]+\))?)\t{chr(9).join([number] * 7)}$", text, re.MULTILINE)
    assert len(rows) == 20
    found = {**printed(on_page["table1"]), **printed(on_page["table3"])}
    assert found == {row[0]: list(row[1:]) for row in rows}
    pairs = re.findall(rf"^(\S+)\t{number}\t{number}\t{number}$", text, re.MULTILINE)
    assert {model: cells[:3] for model, cells in printed(on_page["table4"]).items()} == {
        row[0]: list(row[1:]) for row in pairs
    }
    accuracies = re.findall(r"((?:AlexNet|VGG-\w+)(?: \([\w-]+\))?)\t(\d\d\.\d)(?=\s)", text)
    assert len(accuracies) == 20
    ours = {**printed(on_page["table2"]), **printed(on_page["table5"])}
    assert {model: cells[-1] for model, cells in ours.items()} == dict(accuracies)


@pytest.mark.skipif(not LAYER.is_file(), reason="needs the reference")
def test_the_page_has_the_numbers_of_zhang_et_al(on_page):
    text = LAYER.read_text(encoding="utf-8").partition("## D.")[2].partition("## E.")[0]
    known = sorted((float(a), float(b)) for a, b in re.findall(r"([\d.]*\d)→([\d.]*\d)", text))
    assert len(known) == 23
    assert (
        sorted((float(row[2]), float(row[4])) for row in on_page["zhang"][1:] if row[1] in NETWORKS.values()) == known
    )


def ours(rows: list[list[str]], model: str) -> list[str]:
    return next(row[2:] for row in rows if row[:2] == [model, "ours"])


def test_what_is_missing_says_so_and_what_is_there_has_spread_and_marks(on_page):
    assert ours(on_page["table1"], "AlexNet") == ["missing"] * 7
    cells = ours(on_page["table1"], "compact (L1)")
    assert re.fullmatch(r"0\.12\d\d ± 0\.\d{4} \(n 2\) \[d s\]", cells[2])
    assert cells[:2] == ["missing", "missing"]
    assert re.fullmatch(r"0\.12\d\d \(1 of 6\) \[d s\]", cells[-1])


def test_all_six_categories_have_an_average():
    tracker = FakeTracker()
    for index, category in enumerate(CATEGORIES):
        tracker.parent(category)
        params = {"model.network": "alexnet", "data.kind": "voc_part", "data.category": category}
        tracker.child(
            category, "plain", {**PLAIN, **params}, instability=0.14 + index / 1000, error=0.05, tags=PHOTOGRAPHS
        )
        tracker.child(category, "l1", {**gradient("l1"), **params}, instability=0.1 + index / 1000, tags=PHOTOGRAPHS)
        tracker.child(category, "l2", {**gradient("l2"), **params}, instability=0.09 + index / 500, tags=PHOTOGRAPHS)
    found = tables_of(page_of(tracker))
    assert ours(found["table1"], "AlexNet") == ["0.1400", "0.1410", "0.1420", "0.1430", "0.1440", "0.1450", "0.1425"]
    assert ours(found["table2"], "AlexNet")[-1] == "95.00"
    # L1 - L2 = .01 less .001 for each animal: .010, .009, ... .005, all of one sign: p = 2 / 2^6.
    assert ours(found["table4"], "AlexNet") == ["0.1025", "0.0950", "+0.0075", "6", "0.0312", "more than luck"]
    row = next(row for row in found["zhang"] if row[:2] == ["Location instability, VOC Part, one category", "AlexNet"])
    assert row[2:] == ["0.140", "0.1425 (6 categories)", "0.088", "missing"]


def test_a_failed_run_is_not_merely_missing_and_photographs_come_before_drawings():
    tracker = FakeTracker()
    tracker.parent("drawn")
    tracker.child("drawn", "plain", PLAIN, instability=0.1)
    tracker.parent("photographed")
    params = {"data.kind": "voc_part", "template.tau": "0.1"}
    tracker.child("photographed", "plain", {**PLAIN, "data.kind": "voc_part"}, instability=0.2, tags=PHOTOGRAPHS)
    tracker.child("photographed", "l1", {**gradient("l1"), **params}, state="failed", why="out of memory")
    tracker.child(
        "photographed", "l2", {**gradient("l2"), **params}, tags={**PHOTOGRAPHS, "model.partial_weights": "true"}
    )
    html = page_of(tracker)
    found = tables_of(html)
    assert ours(found["table1"], "compact")[2] == "0.2000"
    assert ours(found["table1"], "compact (L1)")[2] == "missing (failed)"
    assert ours(found["table3"], "compact (L2)")[2] == "0.1300 [w t]"
    assert "compact none cow: 2 settings fit, shown is photographed-12345678-plain." in html


def test_which_template_a_run_has():
    assert [paper_template(one) for one in (PLAIN, gradient("l1"), uniform("l2"), uniform("l1", 4.0, 4.0))] == [
        "none", "l1", "uniform_l2", "uniform_l1"
    ]  # fmt: skip
    assert [paper_template(one) for one in (gradient("l1", 4.0), uniform("l1", 2.0, 0.5), gradient("linf"), {})] == [
        None
    ] * 4
    assert zhang_template(gradient("l1", 4.0)) == zhang_template({"template.shape": "released"}) == "interpretable"
    assert zhang_template(gradient("l2", 4.0)) is zhang_template(gradient("l1")) is None
