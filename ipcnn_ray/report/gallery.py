"""Gallery of filters: the strongest images of each filter of a run, with its peak, its landmark and its numbers.

A photograph is in the page once, whatever the number of filters and runs that show it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ipcnn_ray.report.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY

SIDE, QUALITY = 160, 80
"""Pixels and JPEG quality of an image: about 6 kB."""
LANDMARK_COLOURS = (ORANGE, SKY, GREEN, "#F0E442", BLUE, RED, PURPLE)
ON_CARD = 4
"""Images of a filter that are shown before it is enlarged."""
ORDERS = {
    "tracking": "tracking, high to low",
    "instability": "instability, low to high",
    "fires": "fires in most images",
    "filter": "filter number",
}
"""What the cards can be sorted by -> its description. Values that are high come first but for `instability` and
`filter`."""


@dataclass(frozen=True)
class Photograph:
    """A crop that the network saw."""

    name: str
    jpeg: bytes

    @classmethod
    def of(cls, name: str, image_SS3: NDArray[np.uint8]) -> Photograph:
        """A small JPEG of an RGB image."""
        image, out = Image.fromarray(image_SS3), io.BytesIO()
        image.thumbnail((SIDE, SIDE))
        image.save(out, "JPEG", quality=QUALITY, optimize=True)
        return cls(name, out.getvalue())


@dataclass(frozen=True)
class StrongImage:
    """An image that activates a filter strongly. Positions are (row, col), shares of the image's side."""

    photograph: Photograph
    activation: float
    peak: tuple[float, float]
    landmarks: tuple[tuple[float, float] | None, ...]
    """None where the image does not show the landmark."""
    distances: tuple[float | None, ...]
    """From the peak to each landmark, shares of the image diagonal."""


@dataclass(frozen=True)
class ShownFilter:
    """A filter with its numbers; None for what is not known."""

    number: int
    category: str
    landmark: str | None
    """The landmark that it follows."""
    tracking: float | None
    instability: float | None
    fires: float | None = None
    """Share of the object images in which a cell is above its threshold."""
    images: tuple[StrongImage, ...] = ()
    """Strongest first; none if the run has no pictures."""

    @property
    def words(self) -> str:
        """`filter 3 follows head, tracking 0.81, instability 0.0882, fires in 31 % of the images`"""
        parts = [f"filter {self.number}" + (f" follows {self.landmark}" if self.landmark else " follows nothing")]
        if self.tracking is None:
            parts = [f"filter {self.number}"]
        parts += [] if self.tracking is None else [f"tracking {self.tracking:.2f}"]
        parts += [] if self.instability is None else [f"instability {self.instability:.4f}"]
        parts += [] if self.fires is None else [f"fires in {100 * self.fires:.0f} % of the images"]
        return ", ".join(parts)


@dataclass(frozen=True)
class RunGallery:
    """The filters of the measured layer of a run."""

    label: str
    title: str
    """Label and template."""
    layer: str
    filters: tuple[ShownFilter, ...]
    landmark_names: tuple[str, ...] = ()
    total: int = 0
    """Filters of the layer; `filters` are all or an even sample of them."""
    note: str = ""
    """Why it has no pictures."""

    @property
    def summary(self) -> str:
        """`narrow: L2 β10: 32 filters of conv4, 14 follow a landmark`"""
        shown = f"{len(self.filters)} of {self.total}" if self.total > len(self.filters) else str(len(self.filters))
        following = sum(shown.landmark is not None for shown in self.filters)
        follow = f", {following} follow a landmark" if any(f.tracking is not None for f in self.filters) else ""
        return f"{self.title}: {shown} filters of {self.layer}{follow}"


HEAD = ("run", "layer", "filter", "category", "landmark", "tracking", "instability", "fires")


def filter_rows(runs: Iterable[RunGallery]) -> list[list[str]]:
    """Rows below HEAD: the numbers of the shown filters in full precision, empty where unknown."""
    return [
        [run.label, run.layer, str(shown.number), shown.category, shown.landmark or "", *map(_cell, _numbers(shown))]
        for run in runs
        for shown in run.filters
    ]


def _numbers(shown: ShownFilter) -> tuple[float | None, float | None, float | None]:
    return shown.tracking, shown.instability, shown.fires


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)


def gallery_html(name: str, runs: Sequence[RunGallery]) -> str:
    """The runs as a list of which one is open, each with its filters as cards. Works without a script."""
    photographs: dict[Photograph, str] = {}
    for run in runs:
        for shown in run.filters:
            for image in shown.images:
                photographs.setdefault(image.photograph, f"{name}-i{len(photographs)}")
    defined = "".join(
        f'<image id="{key}" width="1" height="1" preserveAspectRatio="none" '
        f'href="data:image/jpeg;base64,{base64.b64encode(photograph.jpeg).decode()}"/>'
        for photograph, key in photographs.items()
    )
    pool = f'<svg class="pool" aria-hidden="true" width="0" height="0"><defs>{defined}</defs></svg>' if defined else ""
    return pool + "\n".join(_run(name, run, photographs, is_open=not i) for i, run in enumerate(runs))


def _run(name: str, run: RunGallery, photographs: dict[Photograph, str], *, is_open: bool) -> str:
    orders = "".join(f'<option value="{key}">{escape(words)}</option>' for key, words in ORDERS.items())
    legend = "".join(
        f'<span><i style="background:{_colour(k)}"></i>{escape(landmark)}</span>'
        for k, landmark in enumerate(run.landmark_names)
    )
    note = f'<p class="note">No pictures: {escape(run.note)}</p>' if run.note else ""
    key = f'<p class="key"><span>✕ peak</span>{legend}</p>' if any(shown.images for shown in run.filters) else ""
    ordered = sorted(run.filters, key=lambda shown: (-_or(shown.tracking, -math.inf), shown.number))
    cards = "\n".join(_card(shown, run, photographs) for shown in ordered)
    return (
        f'<details class="gallery" name="{escape(name)}"{" open" if is_open else ""}>'
        f"<summary>{escape(run.summary)}</summary>\n{note}"
        f'<label class="sort">Sort by <select>{orders}</select></label>{key}\n<ul class="cards">{cards}</ul></details>'
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _card(shown: ShownFilter, run: RunGallery, photographs: dict[Photograph, str]) -> str:
    values = {
        "filter": float(shown.number),
        **dict(zip(("tracking", "instability", "fires"), _numbers(shown), strict=True)),
    }
    data = "".join(f' data-{key}="{value!r}"' for key, value in values.items() if value is not None)
    tiles = "".join(_tile(image, shown, run, photographs[image.photograph]) for image in shown.images)
    follows = f"follows <b>{escape(shown.landmark)}</b>" if shown.landmark else "follows nothing"
    lines = [f"<b>{shown.number}</b> " + (follows if shown.tracking is not None else "")]
    lines += [] if shown.tracking is None else [f"tracking {shown.tracking:.2f}"]
    lines += [] if shown.instability is None else [f"instability {shown.instability:.4f}"]
    lines += [] if shown.fires is None else [f"fires in {100 * shown.fires:.0f} %"]
    button = (
        f'<button class="enlarge" aria-label="{escape(shown.words)}: enlarge">{tiles}</button>' if shown.images else ""
    )
    return f'<li class="card"{data}>{button}<p>{"<br>".join(lines)}</p></li>'


def _tile(image: StrongImage, shown: ShownFilter, run: RunGallery, key: str) -> str:
    """The photograph with its landmarks, a line to the one that the filter follows, and a cross at the peak."""
    row, col = image.peak
    marks = []
    for k, (landmark, place) in enumerate(zip(run.landmark_names, image.landmarks, strict=True)):
        if place is None:
            continue
        y, x = place
        if landmark == shown.landmark:
            ends = f'x1="{col:.3f}" y1="{row:.3f}" x2="{x:.3f}" y2="{y:.3f}"'
            marks.append(f'<line class="under" {ends}/><line stroke="{_colour(k)}" {ends}/>')
        marks.append(f'<circle cx="{x:.3f}" cy="{y:.3f}" r=".035" fill="{_colour(k)}"/>')
    arms = "".join(
        f"M{col - d:.3f} {row - e:.3f}L{col + d:.3f} {row + e:.3f}" for d, e in ((0.05, 0.05), (0.05, -0.05))
    )
    marks.append(f'<path class="under" d="{arms}"/><path class="peak" d="{arms}"/>')
    words = [f"{image.photograph.name}: activation {image.activation:.3g}"]
    words += [
        f"{landmark} {distance:.3f}"
        for landmark, distance in zip(run.landmark_names, image.distances, strict=True)
        if distance is not None
    ]
    text = escape(", ".join(words))
    return (
        f'<svg class="tile" viewBox="0 0 1 1" role="img" aria-label="{text}"><title>{text}</title>'
        f'<use href="#{key}"/>{"".join(marks)}</svg>'
    )


def _colour(k: int) -> str:
    return LANDMARK_COLOURS[k % len(LANDMARK_COLOURS)]


GALLERY_CSS = f"""
details.gallery{{border:1px solid #ccc;border-radius:6px;margin:.5rem 0;padding:.3rem .8rem}}
details.gallery summary{{cursor:pointer;padding:.3rem 0}}.sort{{display:none}}.scripted .sort{{display:inline-block}}
.key{{font-size:.85rem}}.key span{{margin-right:1.2em;white-space:nowrap}}
.key i{{display:inline-block;width:.7em;height:.7em;border-radius:50%;border:1px solid #000;margin-right:.35em}}
.cards{{list-style:none;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(min(13.5rem,45%),1fr));gap:.7rem}}
.card{{border:1px solid #e2e2e2;border-radius:6px;padding:.5rem;font-size:.85rem;line-height:1.35}}
.card p{{margin:.4rem 0 0;font-variant-numeric:tabular-nums}}
.enlarge{{display:grid;grid-template-columns:1fr 1fr;gap:3px;width:100%;padding:0;border:0;background:none}}
.scripted .enlarge{{cursor:zoom-in}}.enlarge:focus-visible{{outline:3px solid {BLUE};outline-offset:2px}}
.tile{{display:block;width:100%;aspect-ratio:1;overflow:hidden}}.card .tile:nth-child(n+{ON_CARD + 1}){{display:none}}
.tile line,.tile path{{stroke-width:.018;fill:none}}.tile .under{{stroke:#000;stroke-width:.034}}
.tile .peak{{stroke:#fff}}
.tile circle{{stroke:#000;stroke-width:.008}}.pool{{position:absolute}}
dialog{{border:0;border-radius:8px;padding:1rem 1.2rem;width:min(60rem,94vw);max-height:92vh}}
dialog::backdrop{{background:#000a}}
dialog .tiles{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(13rem,45%),1fr));gap:.8rem}}
dialog figure{{margin:0}}dialog figcaption{{font-size:.8rem}}
dialog button{{float:right;font:inherit;padding:.2rem .8rem}}
@media print{{.sort,dialog{{display:none!important}}}}
""".strip()

DIALOG = """
<dialog id="enlarged" aria-labelledby="enlarged-title">
<button autofocus>Close</button><h3 id="enlarged-title"></h3><div class="tiles"></div></dialog>
""".strip()

GALLERY_SCRIPT = """
document.documentElement.classList.add("scripted");
const enlarged = document.getElementById("enlarged");
for (const select of document.querySelectorAll(".sort select"))
  select.addEventListener("change", () => {
    const cards = select.closest("details").querySelector(".cards"), by = select.value;
    const sign = by === "instability" || by === "filter" ? 1 : -1;
    const cost = card => by in card.dataset ? sign * Number(card.dataset[by]) : Infinity;
    const number = card => Number(card.dataset.filter);
    cards.append(...[...cards.children].sort((a, b) => cost(a) - cost(b) || number(a) - number(b)));
  });
for (const button of document.querySelectorAll(".enlarge"))
  button.addEventListener("click", () => {
    document.getElementById("enlarged-title").textContent = button.getAttribute("aria-label").replace(": enlarge", "");
    enlarged.querySelector(".tiles").replaceChildren(...[...button.children].map(tile => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      caption.textContent = tile.getAttribute("aria-label");
      figure.append(tile.cloneNode(true), caption);
      return figure;
    }));
    enlarged.showModal();
  });
enlarged.querySelector("button").addEventListener("click", () => enlarged.close());
enlarged.addEventListener("click", event => event.target === enlarged && enlarged.close());
""".strip()
"""Sorts the cards, and shows all images of a filter large; Escape closes a dialog by itself."""
