"""Page: writes the chapters of a report as one self-contained HTML file, as Markdown, CSV and PNG.

Its figures are pictures that a script of the page replaces by plots which answer the mouse. Without the script, and in
print, they stay.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path

from ipcnn_ray.report.chapters import Importances, experiment_chapters, runs_csv, warnings
from ipcnn_ray.report.document import (
    Block,
    Chapter,
    FigureBlock,
    GalleryBlock,
    Paragraphs,
    PictureBlock,
    SourceBlock,
    TableBlock,
)
from ipcnn_ray.report.experiment_record import Experiment
from ipcnn_ray.report.gallery import DIALOG, GALLERY_CSS, GALLERY_SCRIPT, RunGallery, filter_rows, gallery_html
from ipcnn_ray.report.gallery import HEAD as FILTER_COLUMNS
from ipcnn_ray.report.interactive import as_script, panels, plots
from ipcnn_ray.report.interactive import script as bokeh_script
from ipcnn_ray.report.paper_tables import MISSING, UNPUBLISHED, paper_chapter
from ipcnn_ray.report.style import to_png, to_svg
from ipcnn_ray.utils.text import csv_cell

CSS = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.3rem;border-bottom:1px solid #ccc;padding-top:1.2rem}h3{font-size:1.05rem}
nav a{margin-right:1em;white-space:nowrap}.wide{overflow-x:auto}.long{overflow:auto;max-height:40rem}
table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.2rem .6rem;border-bottom:1px solid #e2e2e2;text-align:left;
vertical-align:top}th{position:sticky;top:0;background:#f3f3f3}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.published td{border-bottom:0;color:#555}.missing{color:#777;font-style:italic}.note{background:#fff4d6;
border-left:4px solid #E69F00;padding:.4rem .8rem}
figure{margin:1rem 0}.plot{overflow-x:auto}.live{display:flex;flex-wrap:wrap;overflow-x:clip}
.live div{flex:1 1 20rem;min-width:0}
.answers .plot{display:none}
.plot img{max-width:100%;min-width:32rem;height:auto}figcaption,.caption{color:#444;font-size:.9rem;max-width:55rem}
.picture img{max-width:100%;max-height:42rem}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;font-size:.8rem}
@media print{.long{max-height:none}nav,.live{display:none}.answers .plot{display:block}}
""".strip()
LONG = 100
"""A table with more rows scrolls inside the page."""


@dataclass(frozen=True)
class Page:
    """A complete report."""

    title: str
    chapters: Sequence[Chapter]
    runs: tuple[list[str], list[list[str]]]
    """Header and rows of runs.csv."""
    warnings: Sequence[str] = field(default_factory=tuple)

    @classmethod
    def of(
        cls,
        experiments: Sequence[Experiment],
        importances: Sequence[Importances],
        galleries: Sequence[Sequence[RunGallery]] = (),
    ) -> Page:
        """A report of one or more experiments, with the `importances`, and any `galleries`, of each."""
        several = len(experiments) > 1
        chapters: list[Chapter] = []
        notes: list[str] = []
        of_each = zip(experiments, importances, galleries or [()] * len(experiments), strict=True)
        for index, (experiment, importance, gallery) in enumerate(of_each, 1):
            own, caveats = experiment_chapters(experiment, importance, gallery), warnings(experiment)
            if several:
                own = [chapter.of_experiment(experiment.name).with_prefix(f"{index}_") for chapter in own]
                caveats = [f"{experiment.name}: {line}" for line in caveats]
            chapters += own
            notes += caveats
        title = "Report of " + ", ".join(experiment.name for experiment in experiments)
        return cls(title, [*chapters, paper_chapter(experiments)], runs_csv(experiments), notes)

    @cached_property
    def html(self) -> str:
        """The HTML file; it refers to nothing outside itself."""
        links, body = [], []
        for index, chapter in enumerate(self.chapters):
            new_line = "<br>" if index and chapter.starts_line else ""
            links.append(f'{new_line}<a href="#p{index}">{escape(chapter.title.partition(": ")[0])}</a>')
            body.append(f'<h2 id="p{index}">{escape(chapter.title)}</h2>')
            body += [_html(block) for block in chapter.blocks]
        figures = [figure for chapter in self.chapters for figure in chapter.figures]
        body = [f"<h1>{escape(self.title)}</h1>", f"<nav>{' '.join(links)}</nav>", *body, *_scripts(figures)]
        if any(chapter.galleries for chapter in self.chapters):
            body += [DIALOG, f"<script>{GALLERY_SCRIPT}</script>"]
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{CSS}\n{GALLERY_CSS}</style></head>\n<body>\n"
            + "\n".join(body)
            + "\n</body></html>\n"
        )

    def markdown(self, folder: str) -> str:
        """The Markdown file; its figures are links into `folder`."""
        lines = [f"# {self.title}"]
        for chapter in self.chapters:
            lines += ["", f"## {chapter.title}"]
            for block in chapter.blocks:
                lines += ["", *_markdown(block, folder)]
        return "\n".join(lines) + "\n"

    @cached_property
    def files(self) -> dict[str, bytes]:
        """File name -> content: every table as CSV, every figure as PNG, and runs.csv."""
        tables = [table for chapter in self.chapters for table in chapter.tables]
        figures = [figure for chapter in self.chapters for figure in chapter.figures]
        galleries = [gallery for chapter in self.chapters for gallery in chapter.galleries]
        return {
            **{
                f"{gallery.name}.csv": _csv(FILTER_COLUMNS, filter_rows(gallery.runs)).encode() for gallery in galleries
            },
            **{f"{table.name}.csv": _csv(table.table.columns, table.table.rows).encode() for table in tables},
            **{f"{figure.name}.png": to_png(figure.figure) for figure in figures},
            "runs.csv": _csv(*self.runs).encode(),
        }

    def write(self, out: Path) -> list[Path]:
        """Write `out` as HTML, the Markdown beside it, and the CSV and PNG files into a folder of the same name.

        Returns the paths of all files.
        """
        folder = out.with_suffix("")
        if folder == out:
            folder = out.with_name(f"{out.name}_files")
        folder.mkdir(parents=True, exist_ok=True)
        markdown = folder.with_name(f"{folder.name}.md")
        written = {out: self.html.encode(), markdown: self.markdown(f"{folder.name}/").encode()}
        written |= {folder / name: content for name, content in self.files.items()}
        for path, content in written.items():
            path.write_bytes(content)
        return list(written)


def _csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([list(map(csv_cell, row)) for row in (head, *rows)])
    return out.getvalue()


SHOW_PLOTS = """
for (const plot of JSON.parse(document.getElementById("plots").textContent))
  Bokeh.embed.embed_item(plot).then(
    () => document.getElementById(plot.target_id).closest("figure").classList.add("answers"))
""".strip()
"""Puts each plot into its place and hides the picture that it replaces."""


def _scripts(figures: Sequence[FigureBlock]) -> list[str]:
    """The plots of the figures and the script that shows them; nothing without figures."""
    items = [plot for figure in figures for plot in plots(figure, figure.name)]
    if not items:
        return []
    return [
        f'<script type="application/json" id="plots">{as_script(items)}</script>',
        bokeh_script(),
        f"<script>{SHOW_PLOTS}</script>",
    ]


def _html(block: Block) -> str:
    if isinstance(block, TableBlock):
        rows = len(block.table.rows)
        scroll = f" {rows} rows: scroll in the table, or open {block.name}.csv." if rows > LONG else ""
        caption = f'<p class="caption">{escape(block.caption + scroll)}</p>'
        return f"<h3>{escape(block.title)}</h3>\n{_html_table(block)}\n{caption}"
    if isinstance(block, FigureBlock):
        image = base64.b64encode(to_svg(block.figure).encode()).decode()
        places = "".join(f'<div id="{escape(block.name)}-{i}"></div>' for i in range(len(panels(block.figure))))
        return (
            f'<h3>{escape(block.title)}</h3>\n<figure><div class="plot"><img alt="{escape(block.title)}" '
            f'src="data:image/svg+xml;base64,{image}"></div>\n<div class="live">{places}</div>\n'
            f"<figcaption>{escape(block.caption)}</figcaption></figure>"
        )
    if isinstance(block, PictureBlock):
        image = base64.b64encode(block.jpeg).decode()
        return (
            f'<h3>{escape(block.title)}</h3>\n<figure><div class="picture"><img alt="{escape(block.title)}" '
            f'src="data:image/jpeg;base64,{image}"></div>\n<figcaption>{escape(block.caption)}</figcaption></figure>'
        )
    if isinstance(block, GalleryBlock):
        caption = f'<p class="caption">{escape(block.caption)}</p>'
        return f"<h3>{escape(block.title)}</h3>\n{caption}\n{gallery_html(block.name, block.runs)}"
    if isinstance(block, SourceBlock):
        return f"<details><summary>{escape(block.title)}</summary><pre>{escape(block.text)}</pre></details>"
    assert isinstance(block, Paragraphs)
    kinds = [' class="note"' if line.startswith("Note: ") else "" for line in block.lines]
    return "\n".join(f"<p{kind}>{escape(line)}</p>" for kind, line in zip(kinds, block.lines, strict=True))


def _html_table(block: TableBlock) -> str:
    table = block.table
    numbers = [column in table.numbers for column in table.columns]
    head = "".join(_cell("th", column, is_number) for column, is_number in zip(table.columns, numbers, strict=True))
    rows = []
    for row in table.rows:
        kind = ' class="published"' if row[1:2] == ["published"] else ""
        cells = "".join(_cell("td", text, is_number) for text, is_number in zip(row, numbers, strict=True))
        rows.append(f"<tr{kind}>{cells}</tr>")
    body = "\n".join(rows)
    kind = "long" if len(rows) > LONG else "wide"
    return (
        f'<div class="{kind}"><table id="{escape(block.name)}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(tag: str, text: str, is_number: bool) -> str:
    kinds = [*(["n"] if is_number else []), *(["missing"] if text.startswith((MISSING, UNPUBLISHED)) else [])]
    attribute = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def _markdown(block: Block, folder: str) -> list[str]:
    if isinstance(block, TableBlock):
        rows = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in block.table.rows]
        return [f"### {block.title}", "", *replace(block.table, rows=rows).markdown(), "", block.caption]
    if isinstance(block, FigureBlock):
        return [f"### {block.title}", "", f"![{block.title}]({folder}{block.name}.png)", "", block.caption]
    if isinstance(block, PictureBlock):
        return [f"### {block.title}", "", f"![{block.title}]({folder}{block.name}.jpg)", "", block.caption]
    if isinstance(block, GalleryBlock):
        link = f"[{block.name}.csv]({folder}{block.name}.csv)"
        runs = [f"- {run.summary}" + (f" (no pictures: {run.note})" if run.note else "") for run in block.runs]
        return [f"### {block.title}", "", *runs, "", f"The pictures are in the HTML page; the numbers in {link}."]
    if isinstance(block, SourceBlock):
        return [f"### {block.title}", "", "```yaml", *block.text.splitlines(), "```"]
    assert isinstance(block, Paragraphs)
    return [text for line in block.lines for text in (line, "")][:-1]
