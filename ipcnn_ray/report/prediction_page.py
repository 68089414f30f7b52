"""The page of `ipcnn predict`: scores of new photographs, and pictures of where filters fire in them."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Rectangle
from numpy.typing import NDArray

from ipcnn_ray.core.crop_place import Edges
from ipcnn_ray.core.explanation import Explanation, FiringFilter, decision_label
from ipcnn_ray.core.receptive_field import DISC_DIAMETER
from ipcnn_ray.report.document import Block, Chapter, Paragraphs, PictureBlock, TableBlock
from ipcnn_ray.report.filter_figures import COLORS
from ipcnn_ray.report.page import Page
from ipcnn_ray.report.ranking_table import Table
from ipcnn_ray.report.style import DPI, GREY, new_figure
from ipcnn_ray.utils.text import counted

MOST_PICTURES = 24
"""Images with a picture."""
MOST_ROWS = 500
"""Images in the table of scores."""
MOST_SCORES = 3
"""Categories in a row of the table of scores, those with the largest logits."""
PREVIEW = 900
"""Largest side of a photograph in a picture, pixels."""
JPEG_QUALITY = 88
HOW_TO_READ = (
    "Scores: a positive logit says that the image shows the category; the probability is the one that the network was "
    "trained to say, which is not calibrated.",
    "A filter fires where its map is above 0 at its peak. Activations of different filters have different scales: they "
    "rank the filters of one layer and image, no more.",
    "What a filter follows is what it followed in training, over its strongest images, with its landmark tracking: 1 "
    "at a fixed offset from the landmark, 0 as a filter that never moves. Nothing of it is measured on these images.",
    "Place of the landmark: the peak and the mean offset from it in training, with one standard deviation of it. A "
    "filter says a place in every image in which it fires, also where the image does not show the landmark.",
    "Positions are x, y in pixels of the image, 0 the center of the first pixel.",
)


@dataclass(frozen=True)
class PredictedRun:
    """What the page says of the run."""

    run: str
    template: str
    data: str
    """Its categories and the kind of its data."""
    error: float | None
    """Validation error in training, a share; None if it is not recorded."""
    following: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By layer the number of filters that follow a landmark, and of all; empty without landmarks."""
    upright: bool = True
    """Whether images are turned by their EXIF orientation."""


def shown_filters(explanation: Explanation, count: int) -> tuple[FiringFilter, ...]:
    """Return the strongest filters of the highest layer that fires: those that follow a landmark, any if none does."""
    if not explanation.filters:
        return ()
    layer = explanation.filters[0].layer
    of_layer = [fired for fired in explanation.filters if fired.layer == layer]
    return tuple(([fired for fired in of_layer if fired.landmark] or of_layer)[:count])


def filter_table(filters: Sequence[FiringFilter]) -> Table:
    """One row per filter: where it fires, what it followed in training, and, if it is known, where it says this is."""
    placed = any(fired.landmark_x is not None for fired in filters)
    places = ("landmark x", "landmark y") if placed else ()
    columns = ("layer", "filter", "activation", "x", "y", "follows", "tracking", *places)
    rows = []
    for fired in filters:
        row = [fired.layer, str(fired.filter), f"{fired.activation:.3g}", f"{fired.x:.0f}", f"{fired.y:.0f}"]
        row += [fired.landmark or "-", "-" if fired.tracking is None else f"{fired.tracking:.2f}"]
        if placed:
            row.append(_with_deviation(fired.landmark_x, fired.landmark_x_deviation))
            row.append(_with_deviation(fired.landmark_y, fired.landmark_y_deviation))
        rows.append(row)
    return Table(columns, rows, tuple(name for name in columns if name not in ("layer", "follows")))


def _with_deviation(value: float | None, deviation: float | None) -> str:
    return "-" if value is None or deviation is None else f"{value:.0f} ± {deviation:.0f}"


def score_table(explanations: Sequence[Explanation]) -> Table:
    """One row per image: the decision, and the largest scores. The box is shown if it is not the whole image."""
    several = explanations and len(explanations[0].scores) > 1
    boxed = any(one.box != (0, 0, one.width, one.height) for one in explanations)
    rows = []
    for one in explanations:
        ranked = sorted(one.scores.items(), key=lambda pair: -pair[1].logit)[:MOST_SCORES]
        words = [
            f"{f'{name} ' if several else ''}{100 * score.probability:.1f} % ({score.logit:+.2f})"
            for name, score in ranked
        ]
        box = [_box_words(one.box)] if boxed else []
        rows.append([one.image, *box, decision_label(one.decision), "  ".join(words), str(len(one.filters))])
    columns = ("image", *(["box"] if boxed else []), "decision", "probability (logit)", "filters that fire")
    return Table(columns, rows, ("filters that fire",))


def _box_words(box: Edges) -> str:
    return ", ".join(f"{edge:g}" for edge in box)


def picture(image_hw3: NDArray[np.uint8], explanation: Explanation, filters: Sequence[FiringFilter]) -> Figure:
    """A photograph with the peaks of some filters, their round receptive fields, and where they say landmarks are.

    image_hw3: the photograph, possibly shrunk.
    """
    height, width = explanation.height, explanation.width
    across = 7.0 if width >= height else max(3.2, 7.0 * width / height)
    down = across * height / width
    landmarks = list(dict.fromkeys(fired.landmark for fired in filters if fired.landmark))
    legend = 0.32 if filters else 0.0
    figure = new_figure(across, down + legend, layout=None)
    axis = figure.add_axes((0, legend / (down + legend), 1, down / (down + legend)))
    axis.imshow(image_hw3, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear", aspect="auto")
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axis.set_axis_off()
    xmin, ymin, xmax, ymax = explanation.box
    if explanation.box != (0, 0, width, height):
        for color, line in (("black", "-"), ("white", "--")):
            frame = Rectangle((xmin - 0.5, ymin - 0.5), xmax - xmin, ymax - ymin, fill=False, ec=color, ls=line, lw=1.5)
            axis.add_patch(frame)
    numbers: dict[tuple[float, float], list[str]] = {}
    for number, fired in enumerate(filters, 1):
        numbers.setdefault((fired.x, fired.y), []).append(str(number))
    for fired in reversed(filters):  # the strongest on top
        color = COLORS[landmarks.index(fired.landmark) % len(COLORS)] if fired.landmark else GREY
        _draw_filter(axis, fired, color, DISC_DIAMETER * (xmax - xmin), DISC_DIAMETER * (ymax - ymin))
    for (x, y), of_peak in numbers.items():
        box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": "black", "lw": 0.8}
        axis.text(x, y, " ".join(of_peak), fontsize=7.5, ha="center", va="center", color="black", bbox=box)
    if filters:
        _draw_legend(figure, filters, landmarks)
    return figure


def _draw_filter(axis: Axes, fired: FiringFilter, color: str, width: float, height: float) -> None:
    for edge, line in (("black", 2.2), (color, 1.1)):
        axis.add_patch(Ellipse((fired.x, fired.y), width, height, fill=False, ec=edge, lw=line))
    if fired.landmark_x is not None and fired.landmark_y is not None:
        for edge, line in (("black", 2.6), (color, 1.3)):
            axis.plot([fired.x, fired.landmark_x], [fired.y, fired.landmark_y], color=edge, lw=line)
        axis.plot(fired.landmark_x, fired.landmark_y, "P", color=color, mec="black", ms=9)


def _draw_legend(figure: Figure, filters: Sequence[FiringFilter], landmarks: Sequence[str]) -> None:
    handles = [Line2D([], [], ls="", marker="o", color="white", mec="black", ms=9, label="peaks, their round fields")]
    if any(fired.landmark_x is not None for fired in filters):
        handles.append(Line2D([], [], ls="", marker="P", color=GREY, mec="black", ms=8, label="says: landmark"))
    for k, name in enumerate(landmarks):
        handles.append(Line2D([], [], color=COLORS[k % len(COLORS)], lw=4, label=f"follows {name}"))
    if any(not fired.landmark for fired in filters):
        handles.append(Line2D([], [], color=GREY, lw=4, label="follows none"))
    figure.legend(handles=handles[:6], loc="lower center", ncols=6, fontsize=7.5, frameon=False, handlelength=1.2)


def to_jpeg(figure: Figure) -> bytes:
    """Return a figure as JPEG."""
    out = io.BytesIO()
    figure.savefig(out, format="jpeg", dpi=DPI, pil_kwargs={"quality": JPEG_QUALITY})
    return out.getvalue()


def prediction_page(
    run: PredictedRun,
    explanations: Sequence[Explanation],
    failed: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, Explanation, bytes]],
    filters: int,
) -> Page:
    """The page: scores of all images up to `MOST_ROWS`, and the images that have pictures.

    failed: name and reason of each image that could not be read. pictures: name of the file, prediction, and JPEG.
    filters: rows of each layer in the table of an image.
    """
    chapters = [_summary(run, explanations, failed)]
    if pictures:
        chapters.append(_pictures(pictures, len(explanations), filters))
    turned = "are turned" if run.upright else "are not turned"
    exif = f"Images {turned} by their EXIF orientation: as those of the training."
    chapters.append(Chapter("How to read this", [Paragraphs((*HOW_TO_READ, exif))]))
    return Page(f"Predictions of {run.run}", chapters, ([], []))


def _summary(run: PredictedRun, explanations: Sequence[Explanation], failed: Sequence[tuple[str, str]]) -> Chapter:
    lines = [f"Run {run.run}: {run.template}, trained on {run.data}."]
    if run.error is not None:
        lines[0] += f" Its validation error there: {100 * run.error:.1f} % of images."
    for layer, (count, total) in run.following.items():
        lines.append(f"{count} of the {total} filters of {layer} followed a landmark in training.")
    if not run.following:
        lines.append("The training had no landmarks, so nothing tells what filters follow.")
    decisions = Counter(decision_label(one.decision) for one in explanations)
    words = ", ".join(f"{name}: {count}" for name, count in decisions.most_common())
    lines.append(f"{counted(len(explanations), 'image')} predicted" + (f" ({words})." if words else "."))
    if failed:
        lines.append(f"Note: {counted(len(failed), 'image')} could not be read.")
    blocks: list[Block] = [Paragraphs(tuple(lines))]
    if explanations:
        more = len(explanations) - MOST_ROWS
        caption = f"The first {MOST_ROWS} images; {more} more are in predictions.csv." if more > 0 else ""
        blocks.append(TableBlock("scores", "Scores", caption, score_table(explanations[:MOST_ROWS])))
    if failed:
        rows = [list(pair) for pair in failed[:MOST_ROWS]]
        caption = f"The first {MOST_ROWS} of {len(failed)}." if len(failed) > MOST_ROWS else ""
        blocks.append(TableBlock("failed", "Not read", caption, Table(("image", "why"), rows, ())))
    return Chapter("Scores", blocks)


def _pictures(pictures: Sequence[tuple[str, Explanation, bytes]], total: int, filters: int) -> Chapter:
    blocks: list[Block] = []
    if total > len(pictures):
        line = f"The first {len(pictures)} of {total} images; predictions.json has all, with every filter that fires."
        blocks.append(Paragraphs((line,)))
    for number, (name, explanation, jpeg) in enumerate(pictures, 1):
        shown = shown_filters(explanation, filters)
        table = filter_table([*shown, *(fired for fired in explanation.strongest(filters) if fired not in shown)])
        numbers = [str(row) if row <= len(shown) else "" for row in range(1, len(table.rows) + 1)]
        rows = [[number_, *row] for number_, row in zip(numbers, table.rows, strict=True)]
        best = max(explanation.scores.items(), key=lambda pair: pair[1].logit)
        caption = (
            f"Decision: {decision_label(explanation.decision)}; {best[0]} {100 * best[1].probability:.1f} %, logit "
            f"{best[1].logit:+.2f}. {counted(len(explanation.filters), 'filter')} fire. " + _caption(shown)
        )
        title = explanation.image
        blocks.append(PictureBlock(name, title, caption, jpeg))
        if rows:
            of_row = Table(("no.", *table.columns), rows, ("no.", *table.numbers))
            blocks.append(TableBlock(f"filters_{number:04}", "Strongest filters of each layer", "", of_row))
    return Chapter("Images", blocks)


def _caption(shown: Sequence[FiringFilter]) -> str:
    if not shown:
        return ""
    which = "that followed a landmark" if shown[0].landmark else "(none of those that fire followed a landmark)"
    text = f"Drawn: the {counted(len(shown), 'strongest filter')} of {shown[0].layer} {which}."
    places: dict[str, list[tuple[float, float]]] = {}
    for fired in shown:
        if fired.landmark and fired.landmark_x is not None and fired.landmark_y is not None:
            places.setdefault(fired.landmark, []).append((fired.landmark_x, fired.landmark_y))
    for name, at in places.items():
        x, y = (math.fsum(pair[axis] for pair in at) / len(at) for axis in (0, 1))
        text += f" Mean of their places of the {name}: {x:.0f}, {y:.0f}."
    return text
