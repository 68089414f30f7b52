"""Validation error by epoch and epochs to converge: figures 7 and 8 of the part-template paper, for every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from ipcnn_ray.core.statistics import spread
from ipcnn_ray.report import published
from ipcnn_ray.report.document import Block, Chapter, FigureBlock, Paragraphs, TableBlock
from ipcnn_ray.report.experiment_record import PLAIN, STYLED_CURVES, Experiment, ReportedRun
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.report.ranking_table import Table, number, spread_words
from ipcnn_ray.report.style import BLACK, CONTROL_STYLE, GREY, SERIES_STYLES, SeriesStyle, new_figure
from ipcnn_ray.utils.text import counted

PANEL_TITLES = {"gradient": "Templates that fall off", "uniform": "Uniform templates", PLAIN: "Plain network"}
"""Figures 7 and 8, which come first; the panel of any other shape is named after it."""
PANELS_PER_ROW = 3
Curve = list[tuple[int, float]]
"""(epoch, validation error as a share)"""


def convergence_chapter(experiment: Experiment) -> Chapter | None:
    """None if no run was evaluated."""
    groups = experiment.evaluated
    if not groups:
        return None
    blocks: list[Block] = [_figure(experiment, groups), _table(experiment, groups)]
    comparison = _against_the_paper(experiment)
    return Chapter("Convergence", [*blocks, Paragraphs((comparison,))] if comparison else blocks)


def mean_curve(runs: Sequence[ReportedRun]) -> Curve:
    """Mean error over the runs that were evaluated in as many epochs as any of them."""
    longest = max((len(run.errors) for run in runs), default=0)
    curves = [dict(run.errors) for run in runs if len(run.errors) == longest]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(epoch, math.fsum(curve[epoch] for curve in curves) / len(curves)) for epoch in epochs]


def _figure(experiment: Experiment, groups: Sequence[Group]) -> FigureBlock:
    by_kind: dict[str, list[Group]] = {}
    for group in groups:
        by_kind.setdefault(experiment.by_group[group.name][0].template_kind, []).append(group)
    order = [*PANEL_TITLES, *sorted(by_kind.keys() - PANEL_TITLES.keys())]
    panels = [kind for kind in order if kind in by_kind and kind != PLAIN] or [PLAIN]
    columns = min(len(panels), PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    most = max(min(len(by_kind[kind]), STYLED_CURVES) for kind in panels)
    figure = new_figure(4.6 * columns + 0.4, rows * (4.4 + 0.16 * most))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    texts: dict[Artist, list[str]] = {}
    for axis, kind in zip(axes.flat, panels, strict=False):
        plain = by_kind.get(PLAIN, []) if kind != PLAIN else []
        texts |= _panel(axis, experiment, by_kind[kind], plain)
        axis.set(title=PANEL_TITLES.get(kind, f"{kind.capitalize()} templates"), xlabel="epoch")
    for unused in axes.flat[len(panels) :]:
        unused.remove()
    axes[0, 0].set_ylim(bottom=0)  # all panels share it; before the last curve is drawn it would fix the upper limit
    for axis in axes[:, 0]:
        axis.set_ylabel("validation error (% of images)")
    caption = (
        "Validation error, per cent of images, after each evaluated epoch. A line is the mean of a setting's seeds, "
        "its marker the epoch at which it had converged (mean over seeds; none where it was stopped; a hollow one is a "
        "setting's only epoch); thin grey lines are the settings that are not among the best of their panel; the black "
        "line is the plain network. Read how early a line becomes flat: "
        "the part-template paper finds uniform templates (its figure 8) flat after about 50 epochs, gradient ones "
        "(figure 7) after about 115."
    )
    return FigureBlock("convergence", "Validation error by epoch", caption, figure, texts)


def _panel(
    axis: Axes, experiment: Experiment, groups: Sequence[Group], plain: Sequence[Group]
) -> dict[Artist, list[str]]:
    """Draw the curves of a panel; return the texts of its lines."""
    texts: dict[Artist, list[str]] = {}
    named = [group for group in groups if group.origin == "named"]
    styled = [*named, *(group for group in groups if group not in named)][:STYLED_CURVES]
    rest = [group for group in groups if group not in styled]
    named_curves = [(group, curve) for group in rest if (curve := mean_curve(experiment.by_group[group.name]))]
    curves = [curve for _, curve in named_curves]
    sampled = "" if len(curves) == len(rest) else f"{len(curves)} of "
    label = f"{sampled}{counted(len(rest), 'other setting')}"
    if lines := [np.column_stack(_xy(curve)) for curve in curves if len(curve) > 1]:
        style: dict[str, Any] = {"linewidths": 0.6, "alpha": 0.7, "label": label, "rasterized": len(rest) > 200}
        thin = axis.add_collection(LineCollection(lines, colors=GREY, zorder=1, **style))
        texts[thin] = [
            f"{_label(group)}\nin the end {100 * curve[-1][1]:.2f} %" for group, curve in named_curves if len(curve) > 1
        ]
    if points := [_xy(curve) for curve in curves if len(curve) == 1]:
        axis.plot(*np.concatenate(points, axis=1), ".", color=GREY, label="others, 1 epoch")
    for group in plain[:1]:
        texts |= _line(axis, experiment, group, CONTROL_STYLE)
    for group, series in zip(styled, SERIES_STYLES, strict=False):
        texts |= _line(axis, experiment, group, series)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    longest = max(map(len, axis.get_legend_handles_labels()[1]), default=0)
    columns = 2 if longest < 24 else 1
    axis.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns)
    axis.grid(alpha=0.3)
    return texts


def _label(group: Group) -> str:
    """Name of a setting, with its template if it was sampled."""
    return f"{group.name}: {group.template}" if group.origin == "sampled" else group.name


def _line(axis: Axes, experiment: Experiment, group: Group, series: SeriesStyle) -> dict[Artist, list[str]]:
    """Draw the curve of a setting; return the texts of its points."""
    curve = mean_curve(experiment.by_group[group.name])
    if not curve:
        return {}
    label = _label(group)
    words = [f"{label}\nepoch {epoch}: error {100 * error:.2f} %" for epoch, error in curve]
    style: dict[str, Any] = {"color": series.colour, "marker": series.marker}
    if len(curve) == 1:  # a line through one point is invisible
        length = "1 epoch" if curve[0][0] else "not trained"
        (point,) = axis.plot(*_xy(curve), linestyle="", markerfacecolor="none", label=f"{label}, {length}", **style)
        return {point: words}
    # The line shows its marker in the legend only; in the plot it marks the epoch of convergence.
    style |= {"markevery": [], "markeredgecolor": BLACK}
    (line,) = axis.plot(*_xy(curve), linestyle=series.line, linewidth=1.6, label=label, **style)
    texts: dict[Artist, list[str]] = {line: words}
    if converged := group.spreads.get("epochs_to_converge"):
        height = float(np.interp(converged.mean, *_xy(curve)))
        style = {"color": series.colour, "markeredgecolor": BLACK, "markersize": 7}
        (point,) = axis.plot(converged.mean, height, series.marker, linestyle="", **style)
        texts[point] = [f"{label}\nconverged at epoch {converged.mean:.1f}"]
    return texts


def _xy(curve: Curve) -> tuple[list[int], list[float]]:
    """Epochs, and errors in per cent."""
    return [epoch for epoch, _ in curve], [100 * error for _, error in curve]


def _table(experiment: Experiment, groups: Sequence[Group]) -> TableBlock:
    columns = ("run", "template", "kind", "epochs to converge", "best error", "mean error", "epochs trained", "state")
    rows = []
    for group in groups:
        run = experiment.by_group[group.name][0]
        epochs = "-"
        if converged := group.spreads.get("epochs_to_converge"):
            epochs = f"{converged.mean:.1f}" + ("" if converged.sd is None else f" ± {converged.sd:.1f}")
        errors = [spread_words("val_error", group.spreads.get(key)) for key in ("best_val_error", "area_under_error")]
        trained = number("epoch", group.means.get("epoch"))
        rows.append([group.name, run.template, run.template_kind, epochs, *errors, trained, group.state])
    share = next((run.params[key] for run in experiment.runs if (key := "eval.convergence_share") in run.params), "?")
    caption = (
        f"Epochs to converge: the first evaluated epoch whose error is at most the run's best error / {share}. Best "
        "and mean error over the evaluated epochs, per cent of validation images; the mean is the area under the curve "
        "divided by its epochs, lower is faster. ±: over seeds. A run that is best in its last epoch may not have "
        "converged."
    )
    return TableBlock("convergence", "Epochs to converge", caption, Table(columns, rows, columns[3:7]))


def _against_the_paper(experiment: Experiment) -> str:
    """Epochs to converge of gradient and uniform templates beside the published ones; empty without any of ours."""
    comparisons, measured = [], False
    for kind, published_epochs in published.EPOCHS_TO_CONVERGE.items():
        runs = [run for run in experiment.runs if run.template_kind == kind and run.state == "succeeded"]
        epochs = [run.metrics["epochs_to_converge"] for run in runs if "epochs_to_converge" in run.metrics]
        ours = "missing"
        if epochs:
            measured = True
            lengths = {run.metrics.get("epoch", 0.0) for run in runs if "epochs_to_converge" in run.metrics}
            trained = f"{min(lengths):.0f}" + ("" if len(lengths) == 1 else f" to {max(lengths):.0f}")
            ours = f"{spread(epochs).mean:.1f} of {trained} trained (mean of {counted(len(epochs), 'run')})"
        comparisons.append(f"{kind} templates: published about {published_epochs}, ours {ours}")
    return f"Epochs to converge. {'; '.join(comparisons)}." if measured else ""
