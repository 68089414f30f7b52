"""Interpretability against classification: section 6.4 of the part-template paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist

from ipcnn_ray.core.multi_objective import pareto_front
from ipcnn_ray.core.statistics import SIGNIFICANCE_LEVEL
from ipcnn_ray.report.baselines import BaselineValue, instability_baselines
from ipcnn_ray.report.document import Chapter, FigureBlock, Paragraphs
from ipcnn_ray.report.experiment_record import PLAIN, Experiment, ReportedRun
from ipcnn_ray.report.ranking_table import p_words
from ipcnn_ray.report.style import BLACK, GREY, RED, draw_baselines, kind_styles, new_figure
from ipcnn_ray.utils.text import shortened_list

LEAST = 4
"""Settings needed for a correlation."""


class Correlation(NamedTuple):
    """Correlation of instability with error over n settings."""

    n: int
    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float


def correlation(points: Sequence[tuple[float, float]]) -> Correlation | None:
    """Correlation of (error, instability); None for fewer than LEAST points or if one of the two is constant."""
    columns = list(zip(*points, strict=True))
    if len(points) < LEAST or any(min(column) == max(column) for column in columns):
        return None
    from scipy.stats import pearsonr, spearmanr

    linear, ranks = pearsonr(*columns), spearmanr(*columns)
    return Correlation(len(points), float(linear[0]), float(linear[1]), float(ranks.statistic), float(ranks.pvalue))


def tradeoff_chapter(experiment: Experiment) -> Chapter | None:
    """None if no run has both numbers."""
    measured = [
        (run, (run.metrics["val_error"], run.metrics["instability"]))
        for run in experiment.runs
        if {"val_error", "instability"} <= run.metrics.keys()
    ]
    ended = [(run, point) for run, point in measured if run.state == "succeeded"]
    if not measured:
        return None
    on_front = pareto_front([point for _, point in ended])
    best = [pair for pair, wins in zip(ended, on_front, strict=True) if wins]
    best.sort(key=lambda pair: pair[1])
    means = [
        (group.means["val_error"], group.means["instability"])
        for group in experiment.ranking.groups
        if group.order < 2 and {"val_error", "instability"} <= set(group.means)
    ]
    baselines = instability_baselines(experiment.ranking.groups)
    return Chapter("Trade-off", [_figure(measured, best, baselines), Paragraphs(_sentences(best, means))])


def _figure(
    measured: Sequence[tuple[ReportedRun, tuple[float, float]]],
    best: Sequence[tuple[ReportedRun, tuple[float, float]]],
    baselines: Sequence[BaselineValue],
) -> FigureBlock:
    figure = new_figure(7, 4.6 + 0.1 * len(baselines))
    axis = figure.subplots()
    many = len(measured) > 300
    texts: dict[Artist, list[str]] = {}
    for kind, style in kind_styles(run.template_kind for run, _ in measured).items():
        for ended in (True, False):
            of_kind = [
                (run, point)
                for run, point in measured
                if run.template_kind == kind and (run.state == "succeeded") is ended
            ]
            if of_kind:
                x, y = np.array([point for _, point in of_kind]).T
                shown = axis.scatter(
                    100 * x,
                    y,
                    marker=style.marker,
                    s=(120 if kind == PLAIN else 36) / (3 if many else 1),
                    facecolor=style.colour if ended else "none",
                    edgecolor=BLACK if ended else GREY,
                    linewidth=0.5 if ended else 1,
                    label=kind if ended else f"{kind}, not trained to its end",
                    zorder=3 if kind == PLAIN else 2,
                    rasterized=many,
                )
                texts[shown] = [_words(run, point) for run, point in of_kind]
    if best:
        x, y = np.array([point for _, point in best]).T
        axis.step(100 * x, y, where="post", color=RED, linestyle="--", linewidth=1.2, label="Pareto front", zorder=1)
    draw_baselines(axis, {baseline.line_label: baseline.value for baseline in baselines})
    axis.set(xlabel="validation error (% of images)", ylabel="location instability (share of image diagonal)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    caption = (
        "Each point is a run: its validation error against its location instability, both better towards the lower "
        "left. No run that was trained to its end lies to the lower left of the dashed line, their Pareto front. "
        "Where stability costs accuracy, as the part-template paper suggests in its section 6.4, the points fall from "
        "the upper left to the lower right."
    )
    if baselines:
        caption += (
            " The grey lines are filters that look at nothing: a run above the lowest of them is less stable than a "
            "filter that never moves, whatever it follows."
        )
    return FigureBlock("tradeoff", "Instability against error", caption, figure, texts)


def _words(run: ReportedRun, point: tuple[float, float]) -> str:
    error, instability = point
    state = "" if run.state == "succeeded" else f"\n{run.state}: {run.cause or 'not trained to its end'}"
    return f"{run.title}\nerror {100 * error:.2f} %, instability {instability:.4f}{state}"


def _sentences(
    best: Sequence[tuple[ReportedRun, tuple[float, float]]], means: Sequence[tuple[float, float]]
) -> tuple[str, ...]:
    points = [f"{run.label} ({100 * error:.1f} %, {instability:.4f})" for run, (error, instability) in best]
    lines = [f"On the Pareto front (error, instability): {shortened_list(points, 12) or 'none'}."]
    measured = correlation(means)
    if measured is None:
        lines.append(
            f"Correlation: not computed; it needs {LEAST} settings with different numbers, there are {len(means)}."
        )
    else:
        meaning = "stability costs accuracy" if measured.spearman < 0 else "stable settings are also the accurate ones"
        if measured.spearman_p >= SIGNIFICANCE_LEVEL:
            meaning = "no relation that could not be luck"
        lines.append(
            f"Correlation of instability with error over {measured.n} settings (means over seeds): Spearman "
            f"{measured.spearman:+.2f} (p {p_words(measured.spearman_p)}), Pearson {measured.pearson:+.2f} (p "
            f"{p_words(measured.pearson_p)}): {meaning}."
        )
    return tuple(lines)
