"""Figures of a search: objective over trials, parallel coordinates, field importance, beta against gamma."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from ipcnn_ray.report import published
from ipcnn_ray.report.baselines import instability_baselines
from ipcnn_ray.report.document import FigureBlock
from ipcnn_ray.report.experiment_record import MOST_FOR_IMPORTANCE, Experiment
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.report.style import BLACK, BLUE, GREEN, GREY, MAP, ORANGE, RED, draw_baselines, new_figure
from ipcnn_ray.spec.extensions import INSTABILITY
from ipcnn_ray.spec.search import lower_is_better, metric_info
from ipcnn_ray.utils.text import counted, parse_number

CELLS = 6
"""Minimum number of cells of the heat map along beta and along gamma."""


@dataclass(frozen=True)
class Trial:
    """One setting that a grid or a search tried."""

    number: int
    """From 1, in the order in which the trials were opened."""
    group: Group
    values: Mapping[str, str]
    """Searched field -> its recorded value; only the fields that the trial has."""
    value: float | None
    """Mean of the goal over its succeeded runs or, without any, over the incomplete ones; None if all failed."""

    @property
    def ended(self) -> bool:
        return any(run.state == "succeeded" for run in self.group.runs)

    def words(self, goal: str) -> str:
        """Its number, setting and value of the goal, for the text under the mouse."""
        found = "no number" if self.value is None else f"{goal} {self.value:.4g}"
        tried = "\n".join(f"{path} {value}" for path, value in self.values.items())
        end = "" if self.ended else f"\n{self.group.state}"
        return f"trial {self.number}, {self.group.name}: {self.group.template}\n{found}{end}\n{tried}"


def trials_of(experiment: Experiment, goal: str) -> list[Trial]:
    """The trials of a search with their values of `goal`."""
    trials = []
    for number, group in enumerate(experiment.trials, 1):
        params = experiment.by_group[group.name][0].params
        values = {path: params[path] for path in experiment.searched if path in params}
        trials.append(Trial(number, group, values, group.means.get(goal)))
    return trials


def objective_figure(experiment: Experiment, trials: Sequence[Trial], goal: str, name: str) -> FigureBlock:
    """Objective over trials, with the best so far and the control."""
    figure = new_figure(7, 3.8)
    axis = figure.subplots()
    texts: dict[Artist, list[str]] = {}
    kinds = {
        "trained to the end": ([t for t in trials if t.ended and t.value is not None], BLUE, "o", True),
        "stopped before its end": ([t for t in trials if not t.ended and t.value is not None], GREY, "s", False),
    }
    for label, (shown, colour, marker, filled) in kinds.items():
        if shown:
            x, y = [t.number for t in shown], np.array([t.value for t in shown], float)
            face = colour if filled else "none"
            points = axis.scatter(x, y, s=28, marker=marker, facecolor=face, edgecolor=colour, label=label, zorder=2)
            texts[points] = [trial.words(goal) for trial in shown]
    best: list[tuple[int, float]] = []
    for trial in kinds["trained to the end"][0]:
        assert trial.value is not None
        if not best or ((trial.value < best[-1][1]) == lower_is_better(goal) and trial.value != best[-1][1]):
            best.append((trial.number, trial.value))
    if best:
        x = [number for number, _ in best] + [trials[-1].number]
        axis.step(x, [value for _, value in best] + [best[-1][1]], where="post", color=BLACK, label="best so far")
    failed = [t for t in trials if t.value is None]
    if failed:
        place = ([t.number for t in failed], [0.03] * len(failed))
        transform = axis.get_xaxis_transform()
        points = axis.scatter(*place, s=20, marker="x", color=RED, transform=transform, label="no number")
        texts[points] = [trial.words(goal) for trial in failed]
    reference = next(
        (g.means.get(goal) for g in experiment.ranking.groups if g.name == experiment.objectives.control), None
    )
    if reference is not None:
        axis.axhline(reference, color=GREEN, linestyle="--", label=f"control ({experiment.objectives.control})")
    if goal == INSTABILITY:
        baselines = instability_baselines(experiment.ranking.groups)
        draw_baselines(axis, {baseline.line_label: baseline.value for baseline in baselines})
    axis.set(xlabel="trial, in the order in which it was opened", ylabel=_axis(goal))
    axis.grid(alpha=0.3)
    axis.margins(y=0.15)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend(fontsize="small", frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    ended, stopped = (len(shown) for shown, *_ in kinds.values())
    counts = f"{ended} trained to the end, {stopped} stopped before"
    caption = (
        f"{_unit(goal)} of every trial: {counts}, {len(failed)} without a number (failed or not begun; crosses at the "
        "bottom). The line is the best so far of those trained to the end: where it is flat, the search no longer "
        "found anything. Trials that were stopped show their last epoch, so do not compare them with the others."
    )
    return FigureBlock(f"{name}trials", f"{goal} over trials", caption, figure, texts)


def parallel_coordinates(experiment: Experiment, trials: Sequence[Trial], goal: str, name: str) -> FigureBlock | None:
    """Parallel coordinates; None with fewer than two trials with a value, or if they do not differ in any field."""
    shown = [t for t in trials if t.value is not None]
    paths = [path for path in experiment.searched if len({t.values.get(path) for t in shown}) > 1]
    if not paths or len(shown) < 2:
        return None
    figure = new_figure(1.9 * (len(paths) + 1) + 1.4, 4.4)
    axis = figure.subplots()
    scales = [_scale([t.values.get(path) for t in shown], experiment.logarithmic(path)) for path in paths]
    values = [t.value for t in shown if t.value is not None]
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    norm = Normalize(low, high)
    scales.append(_Scale({}, [(float(norm(v)), f"{v:.3g}") for v in np.linspace(low, high, 5)]))
    cmap = LinearSegmentedColormap.from_list("shown", colormaps[MAP](np.linspace(0, 0.85, 64)))  # no yellow on white

    def line(trial: Trial) -> list[float]:
        """Heights at which a trial crosses the axes."""
        heights = [scale.heights[trial.values.get(path)] for path, scale in zip(paths, scales, strict=False)]
        assert trial.value is not None
        return [*heights, float(norm(trial.value))]

    drawn: dict[bool, list[tuple[np.ndarray, Any, str]]] = {False: [], True: []}
    for trial in sorted(shown, key=lambda t: (t.ended, _cost(t, goal))):
        heights = line(trial)
        points = np.column_stack([range(len(heights)), heights])
        drawn[trial.ended].append((points, cmap(heights[-1]), trial.words(goal)))
    texts: dict[Artist, list[str]] = {}
    for ended, lines in drawn.items():
        style = {"linewidths": 1.6, "zorder": 3} if ended else {"linewidths": 0.9, "linestyles": ":", "zorder": 2}
        segments, colours = [points for points, *_ in lines], [colour for _, colour, _ in lines]
        drawn_lines = LineCollection(segments, colors=colours, alpha=0.85, rasterized=len(shown) > 200, **style)
        texts[axis.add_collection(drawn_lines)] = [words for *_, words in lines]
    if winner := min((t for t in shown if t.ended), key=lambda t: _cost(t, goal), default=None):
        (best,) = axis.plot(line(winner), color=RED, linewidth=2.2, marker="o", zorder=4, label="best")
        texts[best] = [winner.words(goal)] * len(scales)
        axis.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for position, scale in enumerate(scales):
        axis.axvline(position, color=BLACK, linewidth=0.8, zorder=1)
        last = position == len(paths)
        for height, label in scale.ticks:
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
            side, x = ("left", position + 0.04) if last else ("right", position - 0.04)
            axis.text(x, height, label, ha=side, va="center", fontsize=7.5, bbox=box, zorder=5)
    axis.set_xticks(
        range(len(scales)), [*(path.replace(".", ".\n") for path in paths), _axis(goal).replace(" (", "\n(")]
    )
    axis.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.35, len(scales) - 0.65))
    for spine in axis.spines.values():
        spine.set_visible(False)
    caption = (
        f"Each line is a trial: where it crosses an axis is the value that it tried, its colour and its last axis are "
        f"its {_unit(goal)}; dotted lines were stopped before their end, the red line is the best of the "
        "others, trials without a number are left out. Read which values the good lines share; an axis that good and "
        "bad lines cross everywhere does not matter. `none`: the trial has no such field."
    )
    return FigureBlock(f"{name}parallel", "What the trials tried", caption, figure, texts)


class _Scale(NamedTuple):
    """Heights of values, from 0 to 1, on a vertical axis, and its tick labels."""

    heights: Mapping[str | None, float]
    ticks: Sequence[tuple[float, str]]


def _scale(values: Sequence[str | None], logarithmic: bool) -> _Scale:
    """A numeric scale for at least four numbers, one step per value otherwise. Absent values are below all others."""
    known = sorted({value for value in values if value is not None})
    numbers = {value: number for value in known if (number := parse_number(value)) is not None}
    heights: dict[str | None, float] = {None: -0.03} if None in values else {}
    absent_tick = [(-0.03, "none")] if heights else []
    floor = 0.06 if heights else 0.0
    if len(numbers) < len(known) or len(known) < 4:
        order = sorted(known, key=lambda value: (value not in numbers, numbers.get(value, 0.0), value))
        step = (1 - floor) / max(len(order) - 1, 1)
        steps = [floor + i * step for i in range(len(order))]
        heights.update(zip(order, steps, strict=True))
        return _Scale(heights, [*zip(steps, order, strict=True), *absent_tick])
    logarithmic = logarithmic and min(numbers.values()) > 0
    transform = math.log if logarithmic else float
    low, high = transform(min(numbers.values())), transform(max(numbers.values()))
    heights.update((v, floor + (1 - floor) * (transform(number) - low) / (high - low)) for v, number in numbers.items())
    ticks = [(floor + (1 - floor) * i / 4, low + (high - low) * i / 4) for i in range(5)]
    labels = [(height, f"{math.exp(number) if logarithmic else number:.3g}") for height, number in ticks]
    return _Scale(heights, [*labels, *absent_tick])


def importance_figure(
    shares: Mapping[str, float], directions: Mapping[str, float], goal: str, trials: int, name: str
) -> FigureBlock:
    """Bars of fANOVA importance.

    shares: field -> share of the variance of the goal. directions: field -> rank correlation with the goal.
    """
    figure = new_figure(7, 1.1 + 0.42 * len(shares))
    axis = figure.subplots()
    order = sorted(shares, key=lambda path: shares[path])
    bars = axis.barh(order, [shares[path] for path in order], color=ORANGE, edgecolor=BLACK, linewidth=0.6)
    texts: dict[Artist, list[str]] = {}
    for index, (path, bar) in enumerate(zip(order, bars, strict=True)):
        direction = directions.get(path)
        text = f"{shares[path]:.2f}" + ("" if direction is None else f"  (rank correlation {direction:+.2f})")
        axis.text(shares[path] + 0.01, index, text, va="center", fontsize="small")
        texts[bar] = [f"{path}: {text}"]
    axis.set(xlabel=f"importance for {goal} (share of variance, fANOVA)", xlim=(0, 1.45))
    axis.set_xticks(np.linspace(0, 1, 6))
    caption = (
        f"How much of the variation of {_unit(goal)} each searched field explains (fANOVA over a random forest, as "
        f"Optuna has it; the shares sum to 1), from {min(trials, MOST_FOR_IMPORTANCE)} of {trials} "
        "trials trained to the end; in brackets Spearman's rank "
        "correlation of a numeric field with it: the sign says which way to turn. Only fields that every one of these "
        "trials has are compared. With fewer trials than about ten for each field, do not trust the order."
    )
    return FigureBlock(f"{name}importance", "Importance of each searched field", caption, figure, texts)


def beta_gamma_figure(experiment: Experiment, goal: str, name: str) -> FigureBlock | None:
    """Heat map of the goal over log beta and log gamma; None unless both vary over at least 4 settings."""
    points, words = [], []
    for group in experiment.ranking.groups:
        run = experiment.by_group[group.name][0]
        beta, gamma, value = run.number("template.beta"), run.number("template.gamma"), group.means.get(goal)
        uniform = run.params.get("template.shape") == "uniform"
        if uniform and beta and gamma and value is not None:
            points.append((beta, gamma, value, group.order < 2))
            words.append(f"{group.name}: {group.template}\n{goal} {value:.4g}")
    if sum(point[3] for point in points) < 4 or any(len({point[i] for point in points}) < 2 for i in (0, 1)):
        return None
    betas, gammas, values, ended = (np.array(column) for column in zip(*points, strict=True))
    edges = [_edges(betas, published.BETA), _edges(gammas, published.GAMMA)]
    total, count = (
        np.histogram2d(betas[ended], gammas[ended], bins=edges, weights=weights)[0] for weights in (values[ended], None)
    )
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    figure = new_figure(6.6, 4.8)
    axis = figure.subplots()
    mesh = axis.pcolormesh(*edges, mean.T, cmap=MAP, edgecolor="white", linewidth=0.5)
    cells = zip(mean.T.ravel(), count.T.ravel(), strict=True)
    texts: dict[Artist, list[str]] = {
        mesh: [f"mean {goal} {value:.4g}\nof {counted(int(size), 'setting')}" for value, size in cells]
    }
    x, y = betas[ended], gammas[ended]
    shown = axis.scatter(x, y, s=14, c="white", edgecolor=BLACK, linewidth=0.7, label="trained to the end")
    texts[shown] = [text for text, is_end in zip(words, ended, strict=True) if is_end]
    if not ended.all():
        x, y = betas[~ended], gammas[~ended]
        shown = axis.scatter(x, y, s=22, marker="x", c=BLACK, linewidth=1, label="stopped before its end")
        texts[shown] = [text for text, is_end in zip(words, ended, strict=True) if not is_end]
    paper = (published.BETA, published.GAMMA)
    axis.plot(*paper, "*", color=RED, markeredgecolor="white", markersize=17, label="the paper's point (2, 2)")
    axis.set(xscale="log", yscale="log", xlabel="beta (1)", ylabel="gamma (1)", facecolor="#e8e8e8")
    for direction, edge in ((axis.xaxis, edges[0]), (axis.yaxis, edges[1])):
        ticks = [tick for tick in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if edge[0] <= tick <= edge[-1]]
        direction.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        direction.set_ticks([], minor=True)
    axis.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    figure.colorbar(mesh, ax=axis, label=f"{_axis(goal)}, mean of the cell")
    side = "Darker" if lower_is_better(goal) else "Brighter"
    caption = (
        f"{_unit(goal)} of uniform templates by beta and gamma (both without a unit), the mean of the settings in each "
        f"cell that were trained to their end; in light grey cells none was. {side} is better. The star is the "
        "part-template paper's beta 2, gamma 2. "
        "Only gamma / beta, the radius as a share of the map's side, changes the template, so cells along a rising "
        "diagonal should be alike: how much they differ is how much luck there is."
    )
    return FigureBlock(f"{name}beta_gamma", "Beta against gamma", caption, figure, texts)


def _edges(values: np.ndarray, middle: float) -> np.ndarray:
    """Edges of cells that cover all values, equal on a logarithmic scale, with `middle` in the middle of a cell."""
    logs, at = np.log(values), math.log(middle)
    low, high = min(logs.min(), at), max(logs.max(), at)
    step = max((high - low) / (CELLS - 1), 1e-6)
    first = math.floor((low - at) / step + 0.5)
    last = math.floor((high - at) / step + 0.5)
    edges: np.ndarray = np.exp(at + step * (np.arange(first, last + 2) - 0.5))
    return edges


def _cost(trial: Trial, goal: str) -> float:
    assert trial.value is not None
    return trial.value if lower_is_better(goal) else -trial.value


def _unit(goal: str) -> str:
    """Goal, unit and direction."""
    return f"{goal} ({metric_info(goal).unit}, {metric_info(goal).better} is better)"


def _axis(goal: str) -> str:
    """Goal and unit, for an axis."""
    return f"{goal} ({metric_info(goal).unit})"


def rank_correlations(trials: Sequence[Trial], paths: Sequence[str]) -> dict[str, float]:
    """Spearman's correlation of each numeric field of at least 4 values with the goal, over succeeded trials."""
    from scipy.stats import spearmanr

    correlations = {}
    for path in paths:
        pairs = [
            (number, trial.value)
            for trial in trials
            if trial.ended and trial.value is not None and (number := parse_number(trial.values.get(path))) is not None
        ]
        if len({number for number, _ in pairs}) >= 4 and len({value for _, value in pairs}) > 1:
            correlations[path] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return correlations
