"""Plots that answer the mouse: they show the numbers of the record, as the static figures do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes.tracker import PLAIN, SEARCH, FakeTracker, half_failed_search, many_runs, uniform
from fakes.verdict import BASELINES
from matplotlib.collections import LineCollection, PathCollection, QuadMesh

from ipcnn_ray.cli.report import build_page
from ipcnn_ray.report.document import FigureBlock
from ipcnn_ray.report.experiment_record import Experiment, read_experiments
from ipcnn_ray.report.interactive import MARKERS, as_script, panels, plots
from ipcnn_ray.report.style import KIND_MARKERS, KNOWN_KINDS, SERIES_STYLES, new_figure


def sources(value: Any) -> Iterator[dict[str, list[Any]]]:
    """The columns of every data source of a plot's JSON."""
    if isinstance(value, dict):
        if value.get("name") == "ColumnDataSource":
            yield dict(value["attributes"]["data"]["entries"])
        for entry in value.values():
            yield from sources(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from sources(entry)


def figures_of(experiment: Experiment) -> dict[str, FigureBlock]:
    page = build_page([experiment])
    return {figure.name: figure for chapter in page.chapters for figure in chapter.figures}


@pytest.fixture(scope="module")
def search() -> tuple[Experiment, dict[str, FigureBlock]]:
    (experiment,) = read_experiments(half_failed_search(60), ["sweep"])
    return experiment, figures_of(experiment)


def columns(figure: FigureBlock) -> list[dict[str, list[Any]]]:
    return [source for plot in plots(figure, figure.name) for source in sources(plot)]


def test_every_run_is_a_point_with_its_label_template_and_numbers(search):
    experiment, figures = search
    shown = {
        text.partition("\n")[0]: (x, y)
        for source in columns(figures["tradeoff"])
        for x, y, text in zip(source["x"], source["y"], source["text"], strict=True)
        if "error" in text
    }
    measured = [run for run in experiment.runs if "instability" in run.metrics]
    assert len(measured) == 34
    assert shown == {
        run.title: (pytest.approx(100 * run.metrics["val_error"]), run.metrics["instability"]) for run in measured
    }
    (words,) = [text for source in columns(figures["tradeoff"]) for text in source["text"] if text.startswith("l1: ")]
    assert words == "l1: L1 β2\nerror 10.60 %, instability 0.1360"


def test_curves_are_the_recorded_errors(search):
    experiment, figures = search
    (run,) = [run for run in experiment.runs if run.label == "l2"]
    (source,) = [one for one in columns(figures["convergence"]) if one["text"][0].startswith("l2\nepoch 1:")]
    assert list(zip(source["x"], source["y"], strict=True)) == [
        (e, pytest.approx(100 * error)) for e, error in run.errors
    ]
    assert source["text"][-1] == f"l2\nepoch 12: error {100 * run.errors[-1][1]:.2f} %"


def test_trials_are_points_lines_and_bars(search):
    experiment, figures = search
    values = [group.means["combined"] for group in experiment.trials if "combined" in group.means]
    shown = [
        y
        for source in columns(figures["trials"])
        for y, text in zip(source.get("y", []), source["text"], strict=True)
        if text.startswith("trial ") and "no number" not in text
    ]
    assert sorted(shown) == sorted(values) and len(values) == 30
    failed = [text for source in columns(figures["trials"]) for text in source["text"] if "no number" in text]
    assert sum(text.startswith("trial ") for text in failed) == 30
    lines = [text for source in columns(figures["parallel"]) if "xs" in source for text in source["text"]]
    assert len(lines) == 30 and all("template.beta" in text for text in lines)
    bars = [source["right"][0] for source in columns(figures["importance"])]
    assert sum(bars) == pytest.approx(1)
    cells = next(source for source in columns(figures["beta_gamma"]) if "value" in source)
    for value, text in zip(cells["value"], cells["text"], strict=True):
        assert text.startswith(f"mean combined {value:.4g}\nof ")


@pytest.mark.parametrize("name", ["convergence", "tradeoff", "trials", "parallel", "importance", "beta_gamma"])
def test_both_forms_of_a_figure_have_the_same_numbers(search, name):
    """Every point of the picture is in the plot, in the numbers of its axes."""
    figure = search[1][name]
    found = columns(figure)
    for axis in panels(figure.figure):
        for artist in axis.collections:
            if isinstance(artist, QuadMesh):
                wanted = [float(value) for value in np.ma.masked_invalid(artist.get_array()).compressed()]
                assert wanted and any(source.get("value") == wanted for source in found)
            elif isinstance(artist, LineCollection):
                ys = [np.asarray(segment)[:, 1].tolist() for segment in artist.get_segments()]
                assert any(source.get("ys") == ys for source in found)
            elif isinstance(artist, PathCollection) and artist.get_offset_transform() == axis.transData:
                xy = np.asarray(artist.get_offsets(), float).T.tolist()
                assert any([source.get("x"), source.get("y")] == xy for source in found)
        for line in axis.lines:
            if line.get_transform() == axis.transData:
                xy = [np.asarray(values, float).tolist() for values in line.get_data()]
                assert any([source.get("x"), source.get("y")] == xy for source in found)


def test_baselines_and_crosses_lie_where_the_picture_has_them():
    tracker = FakeTracker()
    tracker.parent("sweep", spec={"search": SEARCH}, goals="instability")
    for label, state in (("plain", "succeeded"), ("r00000001", "succeeded"), ("r00000002", "failed")):
        origin = "named" if label == "plain" else "sampled"
        tracker.child("sweep", label, uniform("l1"), more=BASELINES, origin=origin, state=state, why="lost")
    (experiment,) = read_experiments(tracker, ["sweep"])
    figure = figures_of(experiment)["trials"]
    (axis,) = panels(figure.figure)
    low, high = axis.get_ylim()
    by_text = {source["text"][0]: source for source in columns(figure)}
    line = by_text["random cell (0.1389)"]
    assert line["y"] == pytest.approx([0.1389, 0.1389], abs=1e-4)
    assert line["x"] == pytest.approx(list(axis.get_xlim()))
    (cross,) = [source for text, source in by_text.items() if "no number" in text and text.startswith("trial")]
    assert cross["x"] == [2.0] and cross["y"] == pytest.approx([low + 0.03 * (high - low)])


def test_equal_figures_give_equal_plots(search):
    (again,) = read_experiments(half_failed_search(60), ["sweep"])
    assert plots(figures_of(again)["tradeoff"], "t") == plots(search[1]["tradeoff"], "t")


def test_text_from_the_record_cannot_end_the_script():
    tracker = FakeTracker()
    tracker.parent("x")
    tracker.child("x", "plain", PLAIN, tags={"ipcnn.template": "</script><b>"})
    (experiment,) = read_experiments(tracker, ["x"])
    text = as_script(plots(figures_of(experiment)["tradeoff"], "t"))
    assert "<" not in text and json.loads(text)[0]["target_id"] == "t-0"


def test_every_marker_has_a_form_of_its_own():
    assert len(set(MARKERS.values())) == len(MARKERS)
    used = {*KIND_MARKERS, *(style.marker for style in (*KNOWN_KINDS.values(), *SERIES_STYLES))}
    assert used <= MARKERS.keys()


def test_what_has_no_interactive_form_is_an_error():
    figure = new_figure(2, 2)
    figure.subplots().pie([1, 2])
    with pytest.raises(TypeError, match="pies: Wedge has no interactive form"):
        plots(FigureBlock("pies", "Pies", "", figure), "pies")


@pytest.mark.slow
def test_many_runs_stay_small():
    (experiment,) = read_experiments(many_runs(1000), ["many"])
    figures = figures_of(experiment)
    assert sum(len(as_script(plots(figure, name))) for name, figure in figures.items()) < 3e6
