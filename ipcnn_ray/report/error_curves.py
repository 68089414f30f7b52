"""How fast the validation error falls: figures 7 and 8 of the part-template paper, for every run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from ipcnn_ray.core.statistics import spread
from ipcnn_ray.report import published
from ipcnn_ray.report.document import Block, Part, Plot, Text, Titled
from ipcnn_ray.report.experiment_record import DRAWN_LABEL, Entry, Experiment
from ipcnn_ray.report.ranking import Table, number, spread_words
from ipcnn_ray.report.run_summary import Group
from ipcnn_ray.report.style import BLACK, CONTROL, GREY, LOOKS, Look, canvas

KINDS = {"gradient": "Templates that fall off", "uniform": "Uniform templates"}
"""Group of shapes -> title of its panel; figures 7 and 8."""
OTHER = "other"
NAMED = len(LOOKS)
"""Settings of a panel that have a colour; the rest are thin and grey."""
MOST_CURVES = 200
"""Settings of which a curve is drawn beside the named ones and the best; of more an even sample, best to worst."""
Curve = list[tuple[int, float]]


def template_kind(run: Entry) -> str:
    """`uniform`, `plain`, `gradient` (the paper's, and the authors' code's), or `other`."""
    shape = run.params.get("template.shape", "")
    return {"uniform": "uniform", "none": "plain", "gradient": "gradient", "released": "gradient"}.get(shape, OTHER)


def convergence_part(experiment: Experiment, name: str) -> Part | None:
    """None where no run was evaluated. `name` begins the names of its files."""
    curved = evaluated(experiment)
    if not curved:
        return None
    blocks: list[Block] = [_figure(experiment, curved, name), _table(experiment, curved, name)]
    line = _against_the_paper(experiment)
    return Part("Convergence", [*blocks, Text((line,))] if line else blocks)


def evaluated(experiment: Experiment) -> list[Group]:
    """Settings that have a validation error, as the ranking has them."""
    return [
        group
        for group in experiment.ranking.groups
        if any("val_error" in run.metrics for run in _runs(experiment, group))
    ]


def curves_to_draw(experiment: Experiment) -> list[Group]:
    """Those whose curve the figure shows: the ones that a person named, the best of every panel, and of the rest all or
    a sample. For their run's errors to be read."""
    groups = evaluated(experiment)
    named = [group for group in groups if not DRAWN_LABEL.fullmatch(group.name)]
    best = {kind: 0 for kind in (*KINDS, OTHER, "plain")}
    rest = []
    for group in groups:
        if group not in named:
            kind = template_kind(_runs(experiment, group)[0])
            best[kind] += 1
            (named if best[kind] <= NAMED else rest).append(group)
    step = max(1.0, len(rest) / MOST_CURVES)
    return [*named, *(rest[int(i * step)] for i in range(int(len(rest) / step)))]


def _runs(experiment: Experiment, group: Group) -> list[Entry]:
    return experiment.by_group[group.name]


def mean_curve(runs: Sequence[Entry]) -> Curve:
    """Mean error over the runs that were evaluated in all epochs that any of them was; a single run's own curve."""
    longest = max((len(run.errors) for run in runs), default=0)
    whole = [dict(run.errors) for run in runs if len(run.errors) == longest]
    epochs = sorted(set.intersection(*(set(one) for one in whole))) if whole else []
    return [(epoch, math.fsum(one[epoch] for one in whole) / len(whole)) for epoch in epochs]


def _figure(experiment: Experiment, curved: Sequence[Group], name: str) -> Plot:
    by_kind: dict[str, list[Group]] = {}
    for group in curved:
        by_kind.setdefault(template_kind(_runs(experiment, group)[0]), []).append(group)
    panels = [kind for kind in (*KINDS, OTHER) if by_kind.get(kind)] or ["plain"]
    most = max(min(len(by_kind[kind]), NAMED) for kind in panels)
    figure = canvas(4.6 * len(panels) + 0.4, 4.4 + 0.16 * most)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, panels, strict=True):
        plain = by_kind.get("plain", []) if kind != "plain" else []
        _panel(axis, experiment, by_kind[kind], plain)
        axis.set(title=KINDS.get(kind, "Plain network" if kind == "plain" else "Other templates"))
        axis.set(xlabel="epoch")
    axes[0].set_ylim(bottom=0)  # the panels share it; set before all is drawn, it would cut off what comes later
    axes[0].set_ylabel("validation error (% of images)")
    caption = (
        "Validation error, per cent of images, after each evaluated epoch. A line is the mean of a setting's seeds, "
        "its marker the epoch at which it had converged (mean over seeds; none where it was stopped; a hollow one is a "
        "setting's only epoch); thin grey lines are the settings that are not among the best of their panel; the black "
        "line is the plain network. Read how early a line becomes flat: "
        "the part-template paper finds uniform templates (its figure 8) flat after about 50 epochs, gradient ones "
        "(figure 7) after about 115."
    )
    return Plot(f"{name}convergence", "Validation error by epoch", caption, figure)


def _panel(axis: Axes, experiment: Experiment, groups: Sequence[Group], plain: Sequence[Group]) -> None:
    named = [group for group in groups if not DRAWN_LABEL.fullmatch(group.name)]
    shown = [*named, *(group for group in groups if group not in named)][:NAMED]
    rest = [group for group in groups if group not in shown]
    curves = [curve for group in rest if (curve := mean_curve(_runs(experiment, group)))]
    some = "" if len(curves) == len(rest) else f"{len(curves)} of "
    lines = [np.column_stack(_xy(curve)) for curve in curves if len(curve) > 1]
    style = {"linewidths": 0.6, "alpha": 0.7, "label": f"{some}{len(rest)} other setting{'s' if len(rest) > 1 else ''}"}
    if lines:
        axis.add_collection(LineCollection(lines, colors=GREY, zorder=1, rasterized=len(rest) > 200, **style))
    if dots := [_xy(curve) for curve in curves if len(curve) == 1]:
        axis.plot(*np.concatenate(dots, axis=1), ".", color=GREY, label="others, 1 epoch")
    for group in plain[:1]:
        _line(axis, experiment, group, CONTROL)
    for group, look in zip(shown, LOOKS, strict=False):
        _line(axis, experiment, group, look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=_columns(axis))
    axis.grid(alpha=0.3)


def _columns(axis: Axes) -> int:
    """Of the legend: short labels stand side by side."""
    return 2 if max(map(len, axis.get_legend_handles_labels()[1]), default=0) < 24 else 1


def _line(axis: Axes, experiment: Experiment, group: Group, look: Look) -> None:
    curve = mean_curve(_runs(experiment, group))
    if not curve:
        return
    label, style = _title(experiment, group), {"color": look.colour, "marker": look.marker}
    if len(curve) == 1:  # a line of one point would not be seen
        axis.plot(*_xy(curve), linestyle="", markerfacecolor="none", label=f"{label}, 1 epoch", **style)
        return
    style |= {"markevery": [], "markeredgecolor": BLACK}  # the marker is for the legend, and for one point below
    axis.plot(*_xy(curve), linestyle=look.line, linewidth=1.6, label=label, **style)
    converged = group.spreads.get("epochs_to_converge")
    if converged:
        height = float(np.interp(converged.mean, *_xy(curve)))
        axis.plot(converged.mean, height, look.marker, color=look.colour, markeredgecolor=BLACK, markersize=7)


def _xy(curve: Curve) -> tuple[list[int], list[float]]:
    return [epoch for epoch, _ in curve], [100 * error for _, error in curve]


def _title(experiment: Experiment, group: Group) -> str:
    return f"{group.name}: {group.rows[0].template}" if DRAWN_LABEL.fullmatch(group.name) else group.name


def _table(experiment: Experiment, curved: Sequence[Group], name: str) -> Titled:
    columns = ("run", "template", "kind", "epochs to converge", "best error", "mean error", "epochs trained", "state")
    rows = []
    for group in curved:
        runs = _runs(experiment, group)
        converged = group.spreads.get("epochs_to_converge")
        epochs = "-" if converged is None else f"{converged.mean:.1f}"
        if converged is not None and converged.sd is not None:
            epochs += f" ± {converged.sd:.1f}"
        numbers = [
            spread_words("val_error", group.spreads.get(measure)) for measure in ("best_val_error", "area_under_error")
        ]
        trained = number("epoch", group.means.get("epoch"))
        rows.append([group.name, runs[0].template, template_kind(runs[0]), epochs, *numbers, trained, group.state])
    share = next((run.params["eval.convergence_share"] for run in experiment.runs if _has_share(run)), "?")
    caption = (
        f"Epochs to converge: the first evaluated epoch whose error is at most the run's best error / {share}. Best "
        "and mean error over the evaluated epochs, per cent of validation images; the mean is the area under the curve "
        "divided by its epochs, lower is faster. ±: over seeds. A run that is best in its last epoch may not have "
        "converged."
    )
    return Titled(f"{name}convergence", "Epochs to converge", caption, Table(columns, rows, columns[3:7]))


def _has_share(run: Entry) -> bool:
    return "eval.convergence_share" in run.params


def _against_the_paper(experiment: Experiment) -> str:
    """Gradient against uniform templates, ours beside the paper's."""
    told = []
    for kind, epochs in published.EPOCHS_TO_CONVERGE.items():
        runs = [run for run in experiment.runs if template_kind(run) == kind and run.state == "succeeded"]
        found = [run.metrics["epochs_to_converge"] for run in runs if "epochs_to_converge" in run.metrics]
        trained = {run.metrics.get("epoch", 0.0) for run in runs} or {0.0}
        of = f"{min(trained):.0f}" + ("" if len(trained) == 1 else f" to {max(trained):.0f}")
        many = f"mean of {len(found)} run{'s' if len(found) > 1 else ''}"
        ours = f"{spread(found).mean:.1f} of {of} trained ({many})" if found else "missing"
        told.append(f"{kind} templates: published about {epochs}, ours {ours}")
    return f"Epochs to converge. {'; '.join(told)}." if any("mean of" in one for one in told) else ""
