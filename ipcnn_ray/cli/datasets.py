"""`ipcnn data`: which datasets there are, fetching and preparing them, and looking at what a run will see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import JsonOption, OverridesOption, SpecArgument
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.spec.loader import load
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean

data = typer.Typer(name="data", help="Datasets: list, fetch, prepare, check.", no_args_is_help=True)
Kind = Annotated[
    str, typer.Argument(metavar="KIND", help="A kind of the data section, such as cub200.", show_default=False)
]
Sheet = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="FILE", help="Where to write the contact sheet. Default: beside the crops."),
]
DRAWN = ("drawn_animals", "Drawn animals: made on the spot, nothing to fetch")
UNIT = 1 << 20
"""Bytes in a MiB, in which downloads are told."""


@data.command("list")
def list_(json: JsonOption = False) -> None:
    """Show the datasets and which of them are there."""
    from ipcnn_ray.data.fetch import DATASETS, missing

    paths = Paths.from_environment()
    if paths.data_url:
        raise DataError([_in_a_bucket(paths.data_url, "`ipcnn doctor` says what it holds.")])
    root = paths.data
    rows = [(DRAWN[0], True, DRAWN[1], [])]
    for kind, dataset in DATASETS.items():
        lacking = list(missing(dataset, root))
        rows.append((kind, not lacking, dataset.title, lacking))
    if json:
        named = [{"kind": k, "there": there, "title": title, "missing": lacking} for k, there, title, lacking in rows]
        output.print_json({"folder": str(root) if root else None, "datasets": named})
        return
    output.print_line(f"IPCNN_DATA = {root}" if root else "IPCNN_DATA is not set")
    for kind, there, title, lacking in rows:
        output.print_line(f"{kind:<20}{'there' if there else 'missing'}", style="bold")
        output.print_line(f"  {title}")
        if lacking and root:
            output.print_line(f"  not in IPCNN_DATA: {', '.join(lacking)}")


@data.command()
def fetch(kind: Kind) -> None:
    """Download a dataset from its official addresses into IPCNN_DATA. Stopped, the same command goes on."""
    from ipcnn_ray.data.fetch import DATASETS, DOWNLOADS, missing
    from ipcnn_ray.data.fetch import fetch as fetch_all

    if kind not in DATASETS:
        near = did_you_mean(kind, list(DATASETS))
        what, advice = "there is no such dataset to fetch", f"There are {', '.join(DATASETS)}.{near}"
        raise DataError([Issue(kind, what, advice)])
    paths = Paths.from_environment()
    root = paths.data
    if paths.data_url:
        advice = "Set it to a folder, fetch, and copy the folder to the bucket."
        raise DataError([_in_a_bucket(paths.data_url, advice)])
    if root is None:
        advice = "Set it to the folder that the dataset shall be put into."
        raise DataError([Issue("IPCNN_DATA", "is not set", advice)])
    unchecked = [archive.url for archive in DATASETS[kind].archives if not archive.md5]
    placed = fetch_all(DATASETS[kind], root, _Megabytes())
    for path in placed:
        output.print_line(f"put    {path}")
    if not placed:
        output.print_line(f"{kind} has been fetched already; to fetch it again, delete {root / DOWNLOADS}/*.done")
    for url in unchecked if placed else []:
        output.print_note(f"no checksum is published for {url}")
    for folder in missing(DATASETS[kind], root):
        output.print_note(f"{root / folder} is not there: what was fetched does not hold it")


def _in_a_bucket(url: str, advice: str) -> Issue:
    return Issue("IPCNN_DATA", f"is {url}, not a folder", advice)


class _Megabytes:
    """Progress of downloads, one line per tenth or, where the length is unknown, per 100 MiB."""

    def __init__(self) -> None:
        self.told: tuple[str, int] = ("", 0)

    def __call__(self, url: str, have: int, total: int | None) -> None:
        step = have * 10 // total if total else have // (100 * UNIT)
        if (url, step) != self.told:
            self.told = (url, step)
            of = f" of {total / UNIT:.0f}" if total else ""
            output.print_progress(f"  {url}  {have / UNIT:.0f}{of} MiB")


def _store(spec: str, set_: list[str] | None) -> tuple[Any, Paths]:
    from ipcnn_ray.data.prepare import prepare as make
    from ipcnn_ray.train.data_sync import local_paths

    experiment, paths = load(spec, set_ or ()).spec, local_paths(Paths.from_environment())
    return make(
        experiment.data, experiment.model.table.image_size, paths, output.CountedProgress("data:", "images")
    ), paths


@data.command()
def prepare(spec: SpecArgument, set_: OverridesOption = None) -> None:
    """Decode or draw the crops of a spec, once; runs of it then begin at once."""
    store, paths = _store(spec, set_)
    output.print_line(f"{len(store.labels_N)} crops of {store.size} x {store.size} pixels, data digest {store.digest}")
    output.print_line(f"in {paths.cache / 'crops' / store.digest}")


@data.command()
def check(spec: SpecArgument, set_: OverridesOption = None, sheet: Sheet = None, json: JsonOption = False) -> None:
    """Count what a run of this spec will see, and draw its crops with their landmarks on a contact sheet.

    Every file that cannot be read is told, all at once.
    """
    from ipcnn_ray.data.inspection import contact_sheet, summary

    store, paths = _store(spec, set_)
    found = summary(store)
    page = sheet or paths.cache / "sheets" / f"{store.digest}.png"
    contact_sheet(store, page)
    if json:
        output.print_json({**found, "contact_sheet": str(page)})
        return
    output.print_line(
        f"data {found['digest']}, crops of {found['image_size']} x {found['image_size']} pixels", style="bold"
    )
    for name, count in found["objects_of"].items():
        output.print_line(f"{name:<16}{output.format_count(count)} objects")
    output.print_line(f"{'negatives':<16}{output.format_count(found['negatives'])}")
    for why, count in found["left_out"].items():
        output.print_line(f"{'left out':<16}{output.format_count(count)}: {why}")
    for split, one in found["splits"].items():
        words = f"{output.format_count(one['items'])} items: {one['positive_items']} of {one['objects']} objects"
        output.print_line(f"{split:<16}{words}, {one['negative_items']} of negatives")
    rows = [[name, *_spread(one)] for name, one in found["landmarks"].items()]
    output.print_table(("landmark", "seen", "share", "mean row, col", "deviation"), rows, right=("seen", "share"))
    output.print_line(f"contact sheet   {page}")


def _spread(one: dict[str, Any]) -> list[str]:
    def pair(values: list[float] | None) -> str:
        return "" if values is None else f"{values[0]:.2f}, {values[1]:.2f}"

    return [str(one["seen"]), f"{one['share']:.2f}", pair(one["mean"]), pair(one["deviation"])]
