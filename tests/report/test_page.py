"""The whole page: half-failed searches, many runs, what it saves and costs."""

from __future__ import annotations

import csv
import io
import random
import re
import time
from html import unescape
from itertools import pairwise

import pytest
from fakes.tracker import (
    PLAIN,
    SEARCH,
    FakeTracker,
    gradient,
    half_failed_search,
    many_runs,
    repeated_templates,
    uniform,
)
from fakes.verdict import BASELINES, recorded

from ipcnn_ray.cli.report import build_page
from ipcnn_ray.on_ray.param_importance import importances
from ipcnn_ray.report.chapters import compute_hours, duration, early_stopping_savings
from ipcnn_ray.report.error_curves import convergence_chapter, mean_curve
from ipcnn_ray.report.experiment_record import ReportedRun, read_experiments
from ipcnn_ray.report.page import LONG, Page
from ipcnn_ray.report.search_figures import CELLS, _edges, trials_of
from ipcnn_ray.report.tradeoff import correlation


def page_of(tracker: FakeTracker, *names: str) -> Page:
    """The report on some experiments of a record, or on all."""
    return build_page(read_experiments(tracker, names or tracker.experiments()))


@pytest.fixture(scope="module")
def half_failed() -> Page:
    return page_of(half_failed_search(60))


def blocks(page: Page, kind: str) -> dict[str, object]:
    return {block.name: block for part in page.chapters for block in getattr(part, kind)}


def test_a_half_failed_search_is_told_whole(half_failed):
    assert set(blocks(half_failed, "figures")) == {
        "convergence", "tradeoff", "trials", "parallel", "importance", "beta_gamma"
    }  # fmt: skip
    html = half_failed.html
    assert "20 trained to the end, 10 stopped before, 30 without a number" in html
    assert html.count("TrainingError: the loss is not finite in epoch 3") == 30
    # 20 trials of 12 epochs and 10 of 4 were trained; 10 x 8 epochs were not, at 4 s each..
    assert "Early stopping ended 10 of 30 trials: 280 epochs were trained, 80 (22 %) were not" in html
    assert "about 0.0889 CPU-hours" in html
    assert "64 of 64 runs: drawn images, not photographs." in html


def test_a_search_that_a_person_interrupted_is_not_called_stopped_early():
    tracker = half_failed_search(2)
    why = "interrupted; submitted again, it goes on"
    tracker.child("sweep", "r0000000f", uniform("l2"), epochs=1, state="stopped", why=why, origin="sampled")
    html = page_of(tracker, "sweep").html
    assert "0 trained to the end, 2 stopped before, 1 without a number" in html
    assert "Early stopping ended 1 of 1 trials" in html


def test_no_table_hides_rows_in_a_page_that_is_printed_or_looked_at(half_failed, monkeypatch):
    """A box of fixed height hides our own rows, which stand last, on a screen whose scrollbars hide themselves. Only
    tables too long to look at have one, and they say so."""
    rows = {name: len(table.table.rows) for name, table in blocks(half_failed, "tables").items()}
    assert max(rows.values()) < LONG and 'class="long"' not in half_failed.html
    monkeypatch.setattr("ipcnn_ray.report.page.LONG", 30)
    many = page_of(many_runs(36))
    assert many.html.count('class="long"') == 2  # the ranking and the convergence of 36 settings
    assert "36 rows: scroll in the table, or open ranking.csv." in many.html


def test_a_setting_of_one_epoch_is_seen_and_epochs_are_whole():
    tracker = FakeTracker()
    tracker.parent("short")
    tracker.child("short", "plain", PLAIN, epochs=1, state="stopped", why="interrupted")
    figure = blocks(page_of(tracker, "short"), "figures")["convergence"].figure
    axis = figure.axes[0]
    assert [(line.get_marker(), line.get_xydata().tolist()) for line in axis.lines] == [("o", [[1.0, 10.0]])]
    shown = [tick for tick in axis.get_xticks() if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
    assert shown == [1]


def test_a_run_that_was_not_trained_stands_beside_the_others():
    tracker = FakeTracker()
    tracker.parent("controls")
    tracker.child("controls", "plain", PLAIN)
    tracker.child("controls", "narrow", {"template.shape": "gradient"})
    tracker.child("controls", "untrained", {"template.shape": "gradient", "train.epochs": "0"}, epochs=0)
    page = page_of(tracker, "controls")
    axis = blocks(page, "figures")["convergence"].figure.axes[0]
    points = {line.get_label(): line.get_xydata()[:, 0].tolist() for line in axis.lines}
    assert points["untrained, not trained"] == [0.0]
    rows = {row[0]: row for row in blocks(page, "tables")["convergence"].table.rows}
    assert rows["untrained"][3] == "-" and rows["untrained"][6] == "0"
    assert rows["narrow"][3] != "-"
    assert "of 12 trained (mean of 1 run)" in page.html


def test_every_shape_of_template_has_its_own_panel_and_points():
    """Also shapes that this package does not know; the authors' code's counts as the gradient template that it is."""
    tracker = FakeTracker()
    tracker.parent("shapes")
    for shape in ("none", "gradient", "released", "uniform", "star", "ring", "cross"):
        tracker.child("shapes", shape, {"template.shape": shape})
    page = page_of(tracker, "shapes")
    titles = [axis.get_title() for axis in blocks(page, "figures")["convergence"].figure.axes]
    others = ["Cross templates", "Ring templates", "Star templates"]
    assert titles == ["Templates that fall off", "Uniform templates", *others]
    (axis,) = blocks(page, "figures")["tradeoff"].figure.axes
    points = {group.get_label(): group.get_paths()[0].vertices.tobytes() for group in axis.collections}
    assert list(points) == ["gradient", "uniform", "plain", "cross", "ring", "star"]
    assert len(set(points.values())) == 6
    rows = blocks(page, "tables")["convergence"].table.rows
    assert {row[0]: row[2] for row in rows} == {
        **{shape: shape for shape in ("gradient", "uniform", "star", "ring", "cross")},
        "none": "plain",
        "released": "gradient",
    }


def test_every_figure_has_units_and_a_caption(half_failed):
    for plot in blocks(half_failed, "figures").values():
        assert len(plot.caption) > 80
        labels = [label for axes in plot.figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
        labels += [tick.get_text() for axes in plot.figure.axes for tick in axes.get_xticklabels()]
        assert any("(" in label for label in labels), (plot.name, labels)
        assert plot.caption in half_failed.markdown("x/")


def test_the_page_needs_nothing_else(half_failed):
    """test_page_in_browser.py watches what its scripts do."""
    markup, *scripts = re.split(r"<script\b.*?</script>", half_failed.html, flags=re.DOTALL)
    assert len(scripts) >= 3
    for text in (markup, *scripts):
        assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", text)
        assert "@import" not in text and "url(" not in text
    assert len(half_failed.html) < 3e6


def test_text_from_the_record_cannot_become_markup():
    tracker = FakeTracker()
    tracker.parent("x")
    tracker.child("x", "plain", PLAIN, state="failed", why="<img src=http://a.example/x> | a")
    page = page_of(tracker, "x")
    assert "<img src=http" not in page.html
    assert r"\| a" in page.markdown("x/")


def test_files(half_failed, tmp_path):
    written = half_failed.write(tmp_path / "a.html")
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    assert {"a.html", "a.md", "a/ranking.csv", "a/table3.csv", "a/trials.png", "a/runs.csv"} <= names
    assert all(path.stat().st_size > 0 for path in written)
    for link in re.findall(r"\]\((\S+)\)", (tmp_path / "a.md").read_text()):
        assert (tmp_path / link).is_file()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a/runs.csv").read_text())))
    assert len(rows) == 64
    assert float(rows[0]["instability"]) == 0.14
    assert [row["state"] for row in rows].count("failed") == 30


def test_the_same_record_gives_the_same_page(half_failed):
    assert page_of(half_failed_search(60)).html == half_failed.html


@pytest.mark.slow
def test_a_thousand_runs_in_twenty_seconds():
    begun = time.process_time()
    page = page_of(many_runs(1000))
    size = len(page.html) + sum(map(len, page.files.values()))
    assert time.process_time() - begun < 20
    assert size < 20e6
    assert len(blocks(page, "tables")["ranking"].table.rows) == 1000


def test_of_many_curves_an_even_sample_is_read_and_the_figure_says_so():
    tracker, asked = many_runs(600), []
    tracker.history = lambda handle, metric: (
        asked.append((handle, metric)) or FakeTracker.history(tracker, handle, metric)
    )
    (experiment,) = read_experiments(tracker, ["many"])
    assert len(asked) == len(set(asked)) == 1 + 6 + 200
    part = convergence_chapter(experiment)
    axis = part.figures[0].figure.axes[0]
    assert "200 of 593 other settings" in [text.get_text() for text in axis.get_legend().get_texts()]
    assert len(part.tables[0].table.rows) == 600
    ranked = [group.name for group in experiment.ranking.groups]
    drawn = [ranked.index(run.label) for run in experiment.runs if run.errors and run.label != "plain"]
    assert {0, 1, 2, 3, 4, 5} <= set(drawn) and max(drawn) > 590  # the best, and the sample reaches to the worst


def test_repeats_are_tested_and_their_curves_are_means():
    page = page_of(repeated_templates(6))
    assert {"luck_instability", "luck_val_error", "luck_combined"} <= set(blocks(page, "tables"))
    assert "gradient templates: published about 115, ours" in page.html
    assert "(mean of 12 runs)" in page.html
    runs = [reported("x", errors=((1, 0.2 + s), (2, 0.1))) for s in (0.0, 0.2)]
    assert mean_curve(runs) == [(1, pytest.approx(0.3)), (2, pytest.approx(0.1))]
    assert mean_curve([*runs, reported("y", state="stopped", errors=((1, 9.0),))])[0][1] < 1


def reported(label: str, state: str = "succeeded", **more) -> ReportedRun:
    return ReportedRun(run_id=f"a-1-{label}", label=label, handle="h", state=state, **more)


def test_two_experiments_on_one_page():
    tracker = repeated_templates(1, ("cow", "dog"))
    page = page_of(tracker)
    assert {"1_ranking", "2_ranking", "table1"} <= set(blocks(page, "tables"))
    assert len({one.name for part in page.chapters for one in part.tables}) == sum(
        len(part.tables) for part in page.chapters
    )


def test_an_experiment_that_has_nothing_yet():
    tracker = FakeTracker()
    tracker.parent("new")
    tracker.child("new", "plain", {}, state="failed", why="killed")
    page = page_of(tracker, "new")
    assert blocks(page, "figures") == {}
    assert "runs of unknown cost" in page.html
    tracker.parent("empty")
    assert "Report of empty-12345678" in page_of(tracker, "empty").html


def test_hours():
    ended = compute_hours(reported("x", metrics={"gpu_hours": 2.0, "epoch": 4}))
    assert (ended.kind, ended.hours, ended.exact) == ("gpu_hours", 2.0, True)
    tags = {"ipcnn.workers": "2", "ipcnn.compute.cpus_per_worker": "4", "ipcnn.device": "cpu"}
    epochs = {"params": {"train.epochs": "10"}, "seconds": ((1, 900.0), (2, 900.0)), "metrics": {"epoch": 2.0}}
    pruned = reported("y", state="pruned", tags=tags, **epochs)
    assert compute_hours(pruned).hours == 4.0  # half an hour on 2 x 4 cores
    sharing = reported("z", tags={"ipcnn.device": "NVIDIA H100", "ipcnn.gpus_per_worker": "0.25"}, **epochs)
    assert (compute_hours(sharing).kind, compute_hours(sharing).hours) == ("gpu_hours", 0.125)
    found = early_stopping_savings([pruned])
    assert (found.epochs_trained, found.epochs_saved, found.hours_saved) == (2, 8, 16.0)
    interrupted = reported("y", state="stopped", cause="early stopping at epoch 2 of 10", **epochs)
    assert early_stopping_savings([interrupted]).runs == 0
    assert [duration(s) for s in (12.34, 320, 3900)] == ["12.3 s", "5 min 20 s", "1 h 05 min"]


def test_correlation():
    assert correlation([(0.1, 0.14), (0.2, 0.13), (0.3, 0.12)]) is None
    assert correlation([(0.1, 0.14), (0.1, 0.13), (0.1, 0.12), (0.1, 0.11)]) is None
    found = correlation([(0.1, 0.14), (0.2, 0.13), (0.3, 0.12), (0.4, 0.01)])
    assert found.spearman == pytest.approx(-1)
    assert -1 < found.pearson < -0.7


def test_importance_finds_the_field_that_matters():
    noise = random.Random(0)
    trials = []
    for _ in range(40):
        settings = {"a": noise.uniform(1, 8), "b": noise.choice(["l1", "l2"]), "same": 1.0}
        trials.append((settings, 3 * settings["a"] + 0.1 * noise.random()))
    found = importances(trials, ["a"])
    assert set(found) == {"a", "b"}
    assert found["a"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importances(trials[:7]) is None
    assert importances([({"a": 1.0}, float(i)) for i in range(9)]) is None
    partly = [({"b": s["b"]} if i else s, v) for i, (s, v) in enumerate(trials)]
    assert set(importances(partly)) == {"b"}


def test_the_papers_point_is_in_the_middle_of_a_cell():
    values = [1.1, 3.0, 7.9]
    edges = _edges(values, 2.0)
    assert edges[0] <= 1.1 and edges[-1] >= 7.9 and len(edges) - 1 >= CELLS
    assert any(a * b == pytest.approx(4.0) for a, b in pairwise(edges))


def test_named_runs_are_not_trials():
    tracker = half_failed_search(4)
    tracker.child("sweep", "r1234abcd", gradient("l1"))
    (experiment,) = read_experiments(tracker, ["sweep"])
    assert [trial.number for trial in trials_of(experiment, "combined")] == [1, 2, 3, 4]
    assert trials_of(experiment, "combined")[1].value is None


def test_the_verdict_comes_first_and_baselines_are_lines_beside_the_points():
    page = page_of(recorded())
    first, second, third, *_ = page.chapters
    assert (first.title, second.title, third.title) == ("Verdict", "Experiment drawn-12345678", "Ranking")
    told = first.blocks[0].lines
    assert told[0].startswith("plain: instability ")
    assert told[1].startswith("released (released width 2) moved to the middle: ")
    assert told[2].startswith("narrow (L2 β10) follows parts: ")
    assert told[1] in unescape(page.html) and told[2] in page.markdown("page/")
    ranking = blocks(page, "tables")["ranking"].table
    assert ["-- best constant place", "0.0753"] in [
        [row[0], row[ranking.columns.index("instability")]] for row in ranking.rows
    ]
    axis = blocks(page, "figures")["tradeoff"].figure.axes[0]
    lines = {line.get_label(): line.get_ydata()[0] for line in axis.lines if "(0." in line.get_label()}
    assert lines == {
        "best constant place (0.0753)": pytest.approx(0.0753),
        "peak at the centre (0.0755)": pytest.approx(0.0755),
        "random cell (0.1389)": pytest.approx(0.1389),
    }


def test_of_several_experiments_each_has_its_verdict():
    tracker = recorded()
    tracker.parent("other")
    tracker.child("other", "plain", PLAIN, more=BASELINES)
    titles = [chapter.title for chapter in page_of(tracker).chapters]
    assert titles[0] == "Verdict: drawn-12345678" and titles[1] == "Experiment drawn-12345678"
    assert "Verdict: other-12345678" in titles
    starts = [chapter.title for chapter in page_of(tracker).chapters if chapter.starts_line]
    assert starts == ["Verdict: drawn-12345678", "Verdict: other-12345678", "The papers' tables"]


def test_baselines_are_lines_in_a_search_for_instability():
    tracker = FakeTracker()
    tracker.parent("sweep", spec={"search": SEARCH}, goals="instability")
    for label, origin in (("plain", "named"), ("r00000001", "sampled"), ("r00000002", "sampled")):
        tracker.child("sweep", label, uniform("l1"), more=BASELINES, origin=origin)
    axis = blocks(page_of(tracker), "figures")["trials"].figure.axes[0]
    assert {line.get_label() for line in axis.lines} >= {"random cell (0.1389)", "control (plain)"}
