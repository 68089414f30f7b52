"""What a page is made of: parts with tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ipcnn_ray.report.ranking import Table


@dataclass(frozen=True)
class Titled:
    """A table with what to read in it."""

    name: str
    """Of its CSV file, without the ending."""
    title: str
    caption: str
    table: Table


@dataclass(frozen=True)
class Plot:
    """A figure with what to read in it."""

    name: str
    """Of its file, without the ending."""
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Text:
    """Sentences, one paragraph each."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A document as it is, such as a spec; folded away."""

    title: str
    text: str


Block = Titled | Plot | Text | Source


@dataclass(frozen=True)
class Part:
    """A chapter of the page."""

    title: str
    blocks: Sequence[Block]

    @property
    def tables(self) -> list[Titled]:
        return [block for block in self.blocks if isinstance(block, Titled)]

    @property
    def plots(self) -> list[Plot]:
        return [block for block in self.blocks if isinstance(block, Plot)]
