"""Page: writes the chapters of a report as one self-contained HTML file, as Markdown, CSV and PNG."""

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
from ipcnn_ray.report.document import Block, Chapter, FigureBlock, Paragraphs, PictureBlock, SourceBlock, TableBlock
from ipcnn_ray.report.experiment_record import Experiment
from ipcnn_ray.report.paper_tables import MISSING, UNPUBLISHED, paper_chapter
from ipcnn_ray.report.style import to_png, to_svg

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
figure{margin:1rem 0}.plot{overflow-x:auto}
.plot img{max-width:100%;min-width:32rem;height:auto}figcaption,.caption{color:#444;font-size:.9rem;max-width:55rem}
.picture img{max-width:100%;max-height:42rem}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;font-size:.8rem}
@media print{.long{max-height:none}nav{display:none}}
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
    def of(cls, experiments: Sequence[Experiment], importances: Sequence[Importances]) -> Page:
        """A report of one or more experiments, with the `importances` of each."""
        several = len(experiments) > 1
        chapters: list[Chapter] = []
        notes: list[str] = []
        for index, (experiment, importance) in enumerate(zip(experiments, importances, strict=True), 1):
            own, caveats = experiment_chapters(experiment, importance), warnings(experiment)
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
        body = [f"<h1>{escape(self.title)}</h1>", f"<nav>{' '.join(links)}</nav>", *body]
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{CSS}</style></head>\n<body>\n"
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
        return {
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
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue()


def _html(block: Block) -> str:
    if isinstance(block, TableBlock):
        rows = len(block.table.rows)
        scroll = f" {rows} rows: scroll in the table, or open {block.name}.csv." if rows > LONG else ""
        caption = f'<p class="caption">{escape(block.caption + scroll)}</p>'
        return f"<h3>{escape(block.title)}</h3>\n{_html_table(block)}\n{caption}"
    if isinstance(block, FigureBlock):
        image = base64.b64encode(to_svg(block.figure).encode()).decode()
        return (
            f'<h3>{escape(block.title)}</h3>\n<figure><div class="plot"><img alt="{escape(block.title)}" '
            f'src="data:image/svg+xml;base64,{image}"></div>\n<figcaption>{escape(block.caption)}</figcaption></figure>'
        )
    if isinstance(block, PictureBlock):
        image = base64.b64encode(block.jpeg).decode()
        return (
            f'<h3>{escape(block.title)}</h3>\n<figure><div class="picture"><img alt="{escape(block.title)}" '
            f'src="data:image/jpeg;base64,{image}"></div>\n<figcaption>{escape(block.caption)}</figcaption></figure>'
        )
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
    if isinstance(block, SourceBlock):
        return [f"### {block.title}", "", "```yaml", *block.text.splitlines(), "```"]
    assert isinstance(block, Paragraphs)
    return [text for line in block.lines for text in (line, "")][:-1]
