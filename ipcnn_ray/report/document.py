"""What a report consists of: chapters of tables, figures, paragraphs and source texts, independent of the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from ipcnn_ray.report.gallery import RunGallery
from ipcnn_ray.report.ranking_table import Table


@dataclass(frozen=True)
class Captioned:
    """A table or figure with its caption. `name` is that of its CSV or PNG file, without the suffix."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True)
class TableBlock(Captioned):
    table: Table


@dataclass(frozen=True)
class FigureBlock(Captioned):
    figure: Figure
    texts: Mapping[Artist, Sequence[str]] = field(default_factory=dict)
    """Points or lines of the figure -> for each of them the text that is shown where the mouse is on it."""


@dataclass(frozen=True)
class GalleryBlock(Captioned):
    """Filters of some runs with their strongest images."""

    runs: tuple[RunGallery, ...]


@dataclass(frozen=True)
class PictureBlock(Captioned):
    """A photograph with what is drawn on it."""

    jpeg: bytes


@dataclass(frozen=True)
class Paragraphs:
    """Plain text, one paragraph per line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class SourceBlock:
    """A text shown unchanged, such as a spec; collapsed in HTML."""

    title: str
    text: str


Block = TableBlock | FigureBlock | GalleryBlock | PictureBlock | Paragraphs | SourceBlock


@dataclass(frozen=True)
class Chapter:
    """A titled sequence of blocks."""

    title: str
    blocks: Sequence[Block]
    starts_line: bool = False
    """Whether its link starts a line of the contents: the first of an experiment, and the papers' tables."""

    def of_experiment(self, name: str) -> Chapter:
        """The chapter with the name of its experiment in its title."""
        return self if name in self.title else replace(self, title=f"{self.title}: {name}")

    def with_prefix(self, prefix: str) -> Chapter:
        """The chapter with a prefix before the file names of its tables and figures."""
        blocks = [replace(b, name=prefix + b.name) if isinstance(b, Captioned) else b for b in self.blocks]
        return replace(self, blocks=blocks)

    @property
    def tables(self) -> list[TableBlock]:
        return [block for block in self.blocks if isinstance(block, TableBlock)]

    @property
    def galleries(self) -> list[GalleryBlock]:
        return [block for block in self.blocks if isinstance(block, GalleryBlock)]

    @property
    def figures(self) -> list[FigureBlock]:
        return [block for block in self.blocks if isinstance(block, FigureBlock)]
