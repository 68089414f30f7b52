"""`ipcnn data`: which datasets there are, fetching and preparing them, and looking at what a run will see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import JsonOption, OverridesOption, SpecArgument
from ipcnn_ray.errors import DataError, Issue
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


@data.command("list")
def list_(json: JsonOption = False) -> None:
    """List the datasets and what of them is in IPCNN_DATA."""
    from ipcnn_ray.data.datasets.dataset import Listing, registered

    paths = Paths.from_environment()
    if paths.data_url:
        raise DataError([_in_a_bucket(paths.data_url, "`ipcnn doctor` says what it holds.")])
    listing = Listing(paths.data)
    rows: list[dict[str, Any]] = [
        {"kind": kind, "there": not missing, "title": dataset.title, "missing": missing}
        for kind, dataset in registered().items()
        for missing in [dataset.missing(listing)]
    ]
    if json:
        output.print_json({"folder": str(paths.data) if paths.data else None, "datasets": rows})
        return
    output.print_line(f"IPCNN_DATA = {paths.data}" if paths.data else "IPCNN_DATA is not set")
    for row in rows:
        output.print_line(f"{row['kind']:<20}{'there' if row['there'] else 'missing'}", style="bold")
        output.print_line(f"  {row['title']}")
        if row["missing"] and paths.data:
            output.print_line(f"  not in IPCNN_DATA: {', '.join(row['missing'])}")


@data.command()
def fetch(kind: Kind) -> None:
    """Download a dataset from its official addresses into IPCNN_DATA. The same command resumes a stopped download."""
    from ipcnn_ray.data.datasets.dataset import Listing, registered
    from ipcnn_ray.data.fetch import DOWNLOADS, progress_lines
    from ipcnn_ray.data.fetch import fetch as fetch_archives

    datasets = {name: dataset for name, dataset in registered().items() if dataset.archives}
    if kind not in datasets:
        advice = f"There are {', '.join(datasets)}.{did_you_mean(kind, list(datasets))}"
        raise DataError([Issue(kind, "there is no such dataset to fetch", advice)])
    paths, dataset = Paths.from_environment(), datasets[kind]
    root = paths.data
    if paths.data_url:
        advice = "Set it to a folder, fetch, and copy the folder to the bucket."
        raise DataError([_in_a_bucket(paths.data_url, advice)])
    if root is None:
        raise DataError([Issue("IPCNN_DATA", "is not set", "Set it to the folder to put the dataset into.")])
    placed = fetch_archives(dataset.archives, root, progress_lines(lambda line: output.print_progress(f"  {line}")))
    for path in placed:
        output.print_line(f"put    {path}")
    if not placed:
        output.print_line(f"{kind} has been fetched already; to fetch it again, delete {root / DOWNLOADS}/*.done")
    for archive in dataset.archives if placed else ():
        if not archive.md5:
            output.print_note(f"no checksum is published for {archive.url}")
    for folder in dataset.missing(Listing(root)):
        output.print_note(f"{root / folder} is not there: what was fetched does not hold it")


def _in_a_bucket(url: str, advice: str) -> Issue:
    return Issue("IPCNN_DATA", f"is {url}, not a folder", advice)


def _store(spec: str, set_: list[str] | None) -> tuple[Any, Paths]:
    from ipcnn_ray.data.prepare import prepare as make
    from ipcnn_ray.spec.loader import load
    from ipcnn_ray.train.data_sync import local_paths

    experiment, paths = load(spec, set_ or ()).spec, local_paths(Paths.from_environment())
    progress = output.CountedProgress("data:", "images")
    return make(experiment.data, experiment.model.table.image_size, paths, progress), paths


@data.command()
def prepare(spec: SpecArgument, set_: OverridesOption = None) -> None:
    """Decode or draw the crops of a spec once, before its runs need them."""
    store, paths = _store(spec, set_)
    output.print_line(f"{len(store.labels_N)} crops of {store.size} x {store.size} pixels, data digest {store.digest}")
    output.print_line(f"in {paths.cache / 'crops' / store.digest}")


@data.command()
def check(spec: SpecArgument, set_: OverridesOption = None, sheet: Sheet = None, json: JsonOption = False) -> None:
    """Count what a run of this spec will see, and draw its crops with their landmarks on a contact sheet.

    Every file that cannot be read is reported, all at once.
    """
    from ipcnn_ray.data.inspection import contact_sheet, summary

    store, paths = _store(spec, set_)
    counted = summary(store)
    page = sheet or paths.cache / "sheets" / f"{store.digest}.png"
    contact_sheet(store, page)
    if json:
        output.print_json({**counted, "contact_sheet": str(page)})
        return
    size, count = counted["image_size"], output.format_count
    output.print_line(f"data {counted['digest']}, crops of {size} x {size} pixels", style="bold")
    for name, objects in counted["objects_of"].items():
        output.print_line(f"{name:<16}{count(objects)} objects")
    output.print_line(f"{'negatives':<16}{count(counted['negatives'])}")
    for reason, objects in counted["left_out"].items():
        output.print_line(f"{'left out':<16}{count(objects)}: {reason}")
    for name, split in counted["splits"].items():
        words = f"{count(split['items'])} items: {split['positive_items']} of {split['objects']} objects"
        output.print_line(f"{name:<16}{words}, {split['negative_items']} of negatives")
    rows = [
        [name, str(mark["seen"]), f"{mark['share']:.2f}", _pair(mark["mean"]), _pair(mark["deviation"])]
        for name, mark in counted["landmarks"].items()
    ]
    if rows:
        output.print_table(("landmark", "seen", "share", "mean row, col", "deviation"), rows, right=("seen", "share"))
    else:
        output.print_line(f"{'landmarks':<16}none: what needs them is not measured")
    output.print_line(f"contact sheet   {page}")


def _pair(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f}, {values[1]:.2f}"
