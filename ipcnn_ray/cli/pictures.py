"""`ipcnn pictures`: what the filters of finished runs look at, and why their location instability is what it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.report.experiment_record import find_runs
from ipcnn_ray.spec.runs import named_runs
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.tracker import RecordedRun, Tracker
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean

if TYPE_CHECKING:
    from ipcnn_ray.report.filter_figures import RankedFilter
    from ipcnn_ray.train.filter_activations import FilterActivations

FOLDER = "pictures"
"""Of the artifacts, in the record of a run and of its experiment."""
MOST = 8
"""Runs that are pictured where none is named."""
SAME = 1e-6
"""How far the instability may be from the recorded one without a remark."""
WHICH = {"stable": "its most stable filter that fires", "median": "the median of its filters that fire"}

Experiment = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="Name or id of an experiment, or id of a run.", show_default=False)
]
Runs = Annotated[
    list[str] | None,
    typer.Option("--run", metavar="LABEL", help="Only this run, such as l1. May be repeated."),
]
Filters = Annotated[
    int,
    typer.Option("--filters", min=1, max=1000, help="Filters of each run that get a picture, from stable to unstable."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Where to write. Default: $IPCNN_HOME/pictures/<experiment>."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the files written as JSON.")]


def pictures(
    experiment: Experiment, run: Runs = None, filters: Filters = 6, out: Out = None, json: Json = False
) -> None:
    """Draw the filters of finished runs on their images, in a folder and in the record. Nothing is trained."""
    from ipcnn_ray.train.data_sync import local_paths
    from ipcnn_ray.train.run_metadata import experiment_spec_of, run_spec_of

    paths = local_paths(Paths.from_environment())
    tracker = open_tracker(paths)
    (parent, found), *older = find_runs(tracker, experiment)
    if older:
        output.print_note(f"{experiment} was submitted several times; of {parent.run_id}, the newest")
    spec = experiment_spec_of(tracker, parent)
    by_label = {one.label if one.parent else named_runs(spec)[0].label: one for one in found}
    labels = run or _worth_a_picture(parent, by_label, [one.label for one in named_runs(spec)])
    _check_finished(parent, by_label, labels)
    trained = {label: run_spec_of(spec, label, by_label[label]).spec for label in labels}
    _check_weights(paths, parent, labels)
    album = _Album(tracker, parent, Path(out or paths.home / FOLDER / parent.run_id))
    drawn = []
    for label in labels:
        from ipcnn_ray.train.filter_activations import load_filter_activations
        from ipcnn_ray.train.run_request import RunRequest

        recorded = by_label[label]
        home = _home(paths, parent, label)
        seen = load_filter_activations(
            RunRequest(recorded, trained[label], paths, recorded.handle, home),
            recorded.tags.get("data.digest", ""),
            workers=int(recorded.tags.get("ipcnn.workers", "1")),
            data_progress=output.CountedProgress(f"{label}: data,", "images"),
            progress=output.CountedProgress(f"{label}: looking,", "images"),
        )
        words = trained[label].template.label()
        title = label if label == words else f"{label}: {words}"
        drawn.append(_draw_run(album, _Drawn(label, title, recorded, seen), filters, quiet=json))
    _draw_fields(album, drawn)
    if json:
        output.print_json(
            {
                "experiment": parent.run_id,
                "folder": str(album.folder),
                "runs": [one.as_json() for one in drawn],
                "files": [str(path) for path in album.files],
            }
        )
        return
    output.print_line(f"{len(album.files)} files in {album.folder}")
    output.print_line(f"the same in the record, under {FOLDER}/ of the experiment and of each run")


@dataclass
class _Album:
    """The folder of the pictures, and the record."""

    tracker: Tracker
    parent: RecordedRun
    folder: Path
    files: list[Path] = field(default_factory=list)

    def path(self, *parts: str) -> Path:
        """Where a file is to be written."""
        path = self.folder.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IpcnnError(
                f"{path.parent} cannot be made: {error.strerror}\nGive another folder with --out."
            ) from error
        return path

    def keep(self, path: Path, run: RecordedRun) -> None:
        """A file that has been written goes into the record, too."""
        self.tracker.attach(run.handle).log_file(path, FOLDER)
        self.files.append(path)


@dataclass
class _Drawn:
    """A run that is pictured."""

    label: str
    title: str
    recorded: RecordedRun
    sight: FilterActivations
    filters: list[RankedFilter] = field(default_factory=list)

    @property
    def number(self) -> float | None:
        """The recorded location instability of the layer."""
        return self.recorded.metrics.get(f"instability_{self.sight.layer}")

    def as_json(self) -> dict[str, Any]:
        mean = self.sight.instability.mean
        return {
            "run": self.recorded.run_id,
            "layer": self.sight.layer,
            "instability": mean if math.isfinite(mean) else None,
            "recorded": self.number,
            "filters": len(self.filters),
            "dropped": self.sight.instability.dropped,
        }


def _worth_a_picture(parent: RecordedRun, by_label: dict[str, RecordedRun], named: Sequence[str]) -> list[str]:
    """The named runs that have succeeded and the best of the search, of repeats the first; else the first that have."""
    ended = [label for label, run in by_label.items() if run.state == "succeeded"]
    best = [label for tag in ("ipcnn.best", "ipcnn.front") for label in parent.tags.get(tag, "").split(", ")]
    wanted = [label for label in (*named, *best) if label in ended] or ended
    firsts = list({by_label[label].group: label for label in reversed(wanted)}.values())[::-1]
    if not firsts:
        states = ", ".join(f"{label} {run.state}" for label, run in list(by_label.items())[:MOST])
        raise IpcnnError(
            f"no run of {parent.run_id} has succeeded: {states}\n"
            "Pictures are made of finished runs. Wait for one, or submit the experiment again: it goes on."
        )
    left = [label for label in by_label if label not in firsts[:MOST]]
    if left:
        words = f"{', '.join(left[:3])} and {len(left) - 3} more" if len(left) > 4 else ", ".join(left)
        output.print_note(f"not pictured: {words} (--run LABEL pictures a run)")
    return firsts[:MOST]


def _check_finished(parent: RecordedRun, by_label: dict[str, RecordedRun], labels: Sequence[str]) -> None:
    """Raises IpcnnError for labels that are unknown, given twice, or of runs that have not finished."""
    wrong = []
    for label in labels:
        if label not in by_label:
            guess = did_you_mean(label, list(by_label)).strip()
            wrong.append(f"no run {label!r} in {parent.run_id}\n{guess or 'It has ' + ', '.join(by_label) + '.'}")
        elif by_label[label].state not in ("succeeded", "pruned", "stopped"):
            run = by_label[label]
            why = f": {run.cause}" if run.cause else ""
            wrong.append(
                f"run {label} of {parent.run_id} is {run.state}{why}\n"
                "Pictures are made of finished runs. Wait for it, or submit the experiment again: it goes on."
            )
        elif list(labels).count(label) > 1:
            wrong.append(f"--run {label} is given more than once\nGive it once.")
    if wrong:
        raise IpcnnError("\n".join(dict.fromkeys(wrong)))


def _home(paths: Paths, parent: RecordedRun, label: str) -> str:
    """Where the run keeps its weights."""
    return f"{paths.storage.rstrip('/')}/{parent.run_id}/{label}"


def _check_weights(paths: Paths, parent: RecordedRun, labels: Sequence[str]) -> None:
    """Raises IpcnnError for runs whose weights are not in the storage's folder; in a bucket, loading them tells."""
    from ipcnn_ray.train.run_dir import WEIGHTS_FILE

    homes = [_home(paths, parent, label) for label in labels]
    missing = [home for home in homes if "://" not in home and not Path(home, WEIGHTS_FILE).is_file()]
    if missing:
        raise IpcnnError(
            f"{WEIGHTS_FILE} is missing in {', '.join(missing)}\n"
            "The runs were trained on another storage, or their files were deleted: set IPCNN_STORAGE to that storage, "
            "or submit the experiment again with --fresh."
        )


def _draw_run(album: _Album, drawn: _Drawn, count: int, *, quiet: bool) -> _Drawn:
    """The filters of one run: tables, the ranking, and a picture for some of them."""
    from ipcnn_ray.cli import filter_views as views
    from ipcnn_ray.report import filter_figures as tables
    from ipcnn_ray.report.filter_figures import save_filter_figure, save_ranking_figure

    sight, run = drawn.sight, drawn.recorded
    names = sight.store.landmark_names
    drawn.filters = views.rank_filters(sight)
    able = views.measured_filters(drawn.filters)
    shown = views.evenly_spaced(able, count)
    _tell_instability(drawn)
    if not able:
        raise IpcnnError(
            f"no filter of {sight.layer} of run {drawn.label} can be measured: every one has a landmark seen on fewer "
            f"than 2 images\nLook at the landmarks with `ipcnn data check`."
        )
    output.print_progress(f"{drawn.label}: {len(shown)} pictures of filters")
    path = album.path(drawn.label, "filters.csv")
    tables.filters_csv(drawn.filters, names, path)
    album.keep(path, run)
    path = album.path(drawn.label, "distances.csv")
    tables.distances_csv(views.distance_rows(sight, shown), path)
    album.keep(path, run)
    path = album.path(drawn.label, "filters_ranked.png")
    save_ranking_figure(
        [one.instability for one in able],
        [one.deviation_K for one in able],
        names,
        [one.rank or 0 for one in shown],
        f"{drawn.title}, {sight.layer}: {len(able)} filters from stable to unstable",
        path,
    )
    album.keep(path, run)
    for one in shown:
        path = album.path(drawn.label, f"rank_{one.rank:04}_filter_{one.number:04}.png")
        save_filter_figure(views.filter_view(sight, one, drawn.filters, drawn.title), path)
        album.keep(path, run)
    if not quiet:
        again = f"instability {sight.instability.mean:.4f}"
        output.print_line(f"{drawn.title}, {sight.layer}: {len(able)} filters, {again}", style="bold")
        table = tables.terminal_table(shown, names)
        output.print_table(table.columns, table.rows, right=table.numbers)
        output.print_line()
    return drawn


def _tell_instability(drawn: _Drawn) -> None:
    """Whether the instability that is pictured is the recorded one, and what was left out."""
    dropped, again = drawn.sight.instability.dropped, drawn.sight.instability.mean
    if dropped:
        output.print_note(f"{drawn.label}: {dropped} filters could not be measured; filters.csv lists them last")
    if drawn.number is None or not abs(drawn.number - again) <= SAME:
        recorded = "not recorded" if drawn.number is None else f"recorded as {drawn.number:.6f}"
        trained = drawn.recorded.tags.get("ipcnn.device", "another machine")
        output.print_note(
            f"{drawn.label}: instability {again:.6f} here, {recorded} (trained on {trained}): rounding on another "
            "machine moves a few peaks; the pictures show what is measured here"
        )


def _draw_fields(album: _Album, drawn: Sequence[_Drawn]) -> None:
    """Receptive fields of a filter of each run, one picture for the runs on the same data."""
    from ipcnn_ray.cli import filter_views as views
    from ipcnn_ray.report.receptive_field_figure import save_receptive_fields_figure

    digests = list(dict.fromkeys((one.sight.store.digest, len(one.sight.image_N)) for one in drawn))
    for which, words in WHICH.items():
        for key in digests:
            those = [one for one in drawn if (one.sight.store.digest, len(one.sight.image_N)) == key]
            sights = [one.sight for one in those]
            chosen = [views.representative_filter(one.filters, which) for one in those]
            positions = views.common_images(sights, chosen)
            output.print_progress(f"receptive fields of {len(those)} runs, {which}")
            columns = [
                views.run_column(one.sight, filter_, positions, one.title.replace(": ", "\n"))
                for one, filter_ in zip(those, chosen, strict=True)
            ]
            name = f"receptive_fields_{which}" + (f"_{those[0].label}" if len(digests) > 1 else "")
            path = album.path(f"{name}.png")
            save_receptive_fields_figure(sights[0].crops(positions), columns, key[1], words, path)
            album.keep(path, album.parent)
