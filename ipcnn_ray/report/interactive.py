"""Interactive figures: what a matplotlib figure shows, as Bokeh plots with a text for the point under the mouse.

The plots are made from the lines and points of the static figure, so both show the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Transform
from numpy.typing import NDArray

from ipcnn_ray.report.document import FigureBlock

MARKERS = {
    **{"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "*": "star", "v": "inverted_triangle"},
    **{"P": "plus", "x": "x", "X": "square_x", "p": "hex", "d": "square_pin", "h": "hex_dot", "8": "circle_cross"},
    **{"<": "triangle_dot", ">": "triangle_pin", ".": "dot"},
}
"""Marker of matplotlib -> marker of Bokeh, distinct ones for distinct ones."""
DASHES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dashdot"}
PIXELS = 96 / 72
"""Pixels of a point."""
HEIGHT, LEGEND_ROW = 400, 24
"""Pixels of a plot without its legend, and of a row of the legend."""
LONG_LABEL = 24
"""Characters. A legend with a longer label has one column."""
TOOLTIP = '<div style="white-space:pre-line;max-width:22rem">@text</div>'


def script() -> str:
    """Bokeh's script, as an HTML element."""
    from bokeh.resources import Resources

    return str(Resources(mode="inline", components=["bokeh"]).render_js())


def plots(block: FigureBlock, target: str) -> list[dict[str, Any]]:
    """One plot for each panel of a figure, as JSON for `Bokeh.embed.embed_item`.

    Equal figures give equal JSON. target: id of the HTML elements that they are for, with the number of the panel:
    `target-0`.
    """
    from bokeh.embed import json_item

    items = [json_item(_plot(block, axis), f"{target}-{i}") for i, axis in enumerate(panels(block.figure))]
    return [_renumbered(item) for item in items]


def panels(figure: Figure) -> list[Axes]:
    """The axes of a figure that have a plot."""
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def as_script(items: Sequence[dict[str, Any]]) -> str:
    """JSON of plots that can stand in an HTML element."""
    return json.dumps(items, separators=(",", ":")).replace("<", "\\u003c")


def _renumbered(item: Any) -> Any:
    """The same JSON with ids of its own: Bokeh numbers through all plots of the process, in any order of figures."""
    numbers, counter = {}, count(1)

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        own = value.get("id")
        if isinstance(own, str) and own not in numbers:
            numbers[own] = f"{item['target_id']}-{next(counter)}"
        return {key: numbers[own] if key == "id" and own in numbers else walk(entry) for key, entry in value.items()}

    walked = walk(item)
    return {**walked, "root_id": numbers[item["root_id"]]}


def _plot(block: FigureBlock, axis: Axes) -> Any:
    from bokeh.models import HoverTool, Legend
    from bokeh.plotting import figure

    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        title=axis.get_title() or None,
        x_axis_type=axis.get_xscale(),
        y_axis_type=axis.get_yscale(),
        x_range=axis.get_xlim(),
        y_range=axis.get_ylim(),
        tools="pan,box_zoom,wheel_zoom,reset",
        active_drag=None,  # a finger on the plot scrolls the page
        background_fill_color=_hex(axis.get_facecolor()),
    )
    plot.toolbar.logo = None
    _style_axis(plot.xaxis, axis.xaxis, along_x=True)
    _style_axis(plot.yaxis, axis.yaxis, along_x=False)
    if not any(line.get_visible() for line in axis.get_xgridlines()):
        plot.grid.visible = False
    labelled, hovered = [], []
    drawn = [*axis.collections, *axis.patches, *axis.lines]
    for artist in sorted(drawn, key=lambda artist: artist.get_zorder()):
        texts = block.texts.get(artist)
        if isinstance(artist, PathCollection):
            renderer = _points(plot, axis, artist, texts)
        elif isinstance(artist, LineCollection):
            renderer = _lines(plot, artist, texts)
        elif isinstance(artist, QuadMesh):
            renderer = _cells(plot, artist, texts)
        elif isinstance(artist, Rectangle):
            renderer = _bar(plot, artist, texts)
        elif isinstance(artist, Line2D):
            renderer = _line(plot, axis, artist, texts)
        else:
            raise TypeError(f"{block.name}: {type(artist).__name__} has no interactive form")
        label = str(artist.get_label())
        if label and not label.startswith("_"):
            labelled.append((label, [renderer]))
        if texts or isinstance(artist, Line2D):
            hovered.append(renderer)
    for text in axis.texts:
        _text(plot, text)
    plot.add_tools(HoverTool(renderers=hovered, tooltips=TOOLTIP, point_policy="snap_to_data", line_policy="nearest"))
    if labelled:
        columns = 1 if max(len(label) for label, _ in labelled) > LONG_LABEL else 2
        style = {"border_line_color": None, "location": "left", "margin": 0}
        legend = Legend(items=labelled, ncols=columns, click_policy="hide", **style)
        plot.add_layout(legend, "below")
        plot.height = HEIGHT + LEGEND_ROW * -(-len(labelled) // columns)
    return plot


def _style_axis(ours: Any, axis: Axis, *, along_x: bool) -> None:
    """Label and ticks of an axis. Named ticks stay where they are, others follow the zoom."""
    from bokeh.models import FixedTicker

    label = axis.get_label_text()
    ours.axis_label = label or None
    ours.axis_label_text_font_style = "normal"
    locator, ticks = axis.get_major_locator(), [float(tick) for tick in axis.get_majorticklocs()]
    named = isinstance(locator, (FixedLocator, NullLocator)) or type(locator).__name__ == "StrCategoryLocator"
    if named:
        texts = [tick.get_text().replace("\n", " ") for tick in axis.get_ticklabels()]
        ours.ticker = FixedTicker(ticks=ticks)
        ours.major_label_overrides = dict(zip(ticks, texts, strict=False))
        ours.visible = bool(ticks)
        if len(ticks) > 2 and max(map(len, texts)) > 12:
            ours.major_label_orientation = 0.5
    elif along_x and ticks and all(tick == round(tick) for tick in ticks):
        ours.ticker.min_interval = 1


def _points(plot: Any, axis: Axes, points: PathCollection, texts: Sequence[str] | None) -> Any:
    xy_N2 = _in_data(axis, np.asarray(points.get_offsets(), float), points.get_offset_transform())
    edge, width = points.get_edgecolor(), points.get_linewidth()
    face = points.get_facecolor()
    return plot.scatter(
        **{"x": "x", "y": "y", "source": _source(xy_N2, texts)},
        marker=_marker(points),
        size=float(np.sqrt(points.get_sizes()[0])) * PIXELS,
        fill_color=_hex(face[0]) if len(face) else None,
        line_color=_hex(edge[0]) if len(edge) else None,
        line_width=float(np.ravel(width)[0]) * PIXELS,
    )


def _marker(points: PathCollection) -> str:
    own = points.get_paths()[0].vertices
    for name, marker in MARKERS.items():
        style = MarkerStyle(name)
        vertices = style.get_path().transformed(style.get_transform()).vertices
        if np.shape(vertices) == np.shape(own) and np.allclose(vertices, own):
            return marker
    raise ValueError(f"points {points.get_label()!r} have a marker that is not in MARKERS")


def _line(plot: Any, axis: Axes, line: Line2D, texts: Sequence[str] | None) -> Any:
    """A line through its points, or markers where it has no line. Without texts, the mouse shows its label."""
    xy_N2 = _in_data(axis, np.column_stack(line.get_data()).astype(float), line.get_transform())
    label = str(line.get_label())
    words = texts or ["" if label.startswith("_") else label] * len(xy_N2)
    source, marker = _source(xy_N2, words), MARKERS.get(str(line.get_marker()))
    colour, size = _hex(line.get_color()), line.get_markersize() * PIXELS
    if line.get_linestyle() == "None" or (len(xy_N2) == 1 and marker):
        face, edge = line.get_markerfacecolor(), line.get_markeredgecolor()
        fill = None if face == "none" else _hex(face)
        return plot.scatter("x", "y", source=source, marker=marker, size=size, fill_color=fill, line_color=_hex(edge))
    dashes = getattr(line, "_unscaled_dash_pattern", (0, None))[1]  # matplotlib names no public one
    style = {
        "line_color": colour,
        "line_width": line.get_linewidth() * PIXELS,
        "line_dash": [max(1, round(3 * length)) for length in dashes] if dashes else DASHES[str(line.get_linestyle())],
    }
    if line.get_drawstyle() == "steps-post":
        return plot.step("x", "y", source=source, mode="after", **style)
    if marker and line.get_markevery() is None:
        plot.scatter("x", "y", source=source, marker=marker, size=size, color=colour)
    return plot.line("x", "y", source=source, **style)


def _lines(plot: Any, lines: LineCollection, texts: Sequence[str] | None) -> Any:
    from bokeh.models import ColumnDataSource

    segments = [np.asarray(segment, float) for segment in lines.get_segments()]
    colours = [_hex(colour) for colour in lines.get_colors()]
    data = {
        "xs": [segment[:, 0].tolist() for segment in segments],
        "ys": [segment[:, 1].tolist() for segment in segments],
        "colour": colours if len(colours) == len(segments) else colours[:1] * len(segments),
        "text": list(texts or [""] * len(segments)),
    }
    styles: Any = lines.get_linestyle()  # [(offset, dashes)]
    dashed = styles[0][1] is not None
    width, alpha = float(np.ravel(lines.get_linewidth())[0]) * PIXELS, float(lines.get_alpha() or 1)
    style = {"line_color": "colour", "line_alpha": alpha, "line_dash": "dotted" if dashed else "solid"}
    return plot.multi_line("xs", "ys", source=ColumnDataSource(data), line_width=width, **style)


def _cells(plot: Any, mesh: QuadMesh, texts: Sequence[str] | None) -> Any:
    """A heat map; cells without a value are left out."""
    from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper

    corners = np.asarray(mesh.get_coordinates(), float)
    value_RC: NDArray[np.floating] = np.ma.masked_array(mesh.get_array(), dtype=float).filled(np.nan)
    known = np.argwhere(~np.isnan(value_RC))
    data = {
        "left": [float(corners[r, c, 0]) for r, c in known],
        "right": [float(corners[r, c + 1, 0]) for r, c in known],
        "bottom": [float(corners[r, c, 1]) for r, c in known],
        "top": [float(corners[r + 1, c, 1]) for r, c in known],
        "value": [float(value_RC[r, c]) for r, c in known],
        "text": [(texts or [""] * value_RC.size)[r * value_RC.shape[1] + c] for r, c in known],
    }
    palette = [_hex(mesh.get_cmap()(share)) for share in np.linspace(0, 1, 64)]
    colours = LinearColorMapper(palette=palette, low=np.nanmin(value_RC), high=np.nanmax(value_RC))
    plot.add_layout(
        ColorBar(color_mapper=colours, title=mesh.colorbar.ax.get_ylabel() if mesh.colorbar else ""), "right"
    )
    fill = {"field": "value", "transform": colours}
    edges = {side: side for side in ("left", "right", "bottom", "top")}
    return plot.quad(**edges, source=ColumnDataSource(data), fill_color=fill, line_color="white")


def _bar(plot: Any, bar: Rectangle, texts: Sequence[str] | None) -> Any:
    from bokeh.models import ColumnDataSource

    sides = {"left": bar.get_x(), "bottom": bar.get_y()}
    sides |= {"right": bar.get_x() + bar.get_width(), "top": bar.get_y() + bar.get_height()}
    data = {**{side: [float(value)] for side, value in sides.items()}, "text": list(texts or [""])}
    fill, edge = _hex(bar.get_facecolor()), _hex(bar.get_edgecolor())
    columns = {side: side for side in sides}
    return plot.quad(**columns, source=ColumnDataSource(data), fill_color=fill, line_color=edge)


def _hex(colour: Any) -> str:
    return str(to_hex(colour))


def _text(plot: Any, text: Any) -> None:
    from bokeh.models import Label

    x, y = text.get_position()
    align = {"ha": text.get_ha(), "va": {"center": "middle"}.get(text.get_va(), text.get_va())}
    white = text.get_bbox_patch() is not None
    plot.add_layout(
        Label(
            **{"x": float(x), "y": float(y), "text": text.get_text(), "text_font_size": "11px"},
            text_align=align["ha"],
            text_baseline=align["va"],
            background_fill_color="white" if white else None,
            padding=2 if white else 0,
        )
    )


def _in_data(axis: Axes, xy_N2: NDArray[np.floating], transform: Transform) -> NDArray[np.floating]:
    """Points that are placed in shares of the axes, along one or both of them, in the numbers of the axes."""
    if transform == axis.transData:
        return xy_N2
    pixels_N2 = transform.transform(xy_N2)
    return np.asarray(axis.transData.inverted().transform(pixels_N2))


def _source(xy_N2: NDArray[np.floating], texts: Sequence[str] | None) -> Any:
    from bokeh.models import ColumnDataSource

    x, y = xy_N2.T.tolist()
    return ColumnDataSource({"x": x, "y": y, "text": list(texts or [""] * len(x))})
