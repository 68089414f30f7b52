"""`ipcnn pictures`: figures of the filters of finished runs, which explain their location instability."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import experiment_argument
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.tracker import RecordedRun, Tracker
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean

if TYPE_CHECKING:
    from ipcnn_ray.report.filter_figures import FilterView, RankedFilter
    from ipcnn_ray.train.filter_activations import FilterActivations
    from ipcnn_ray.train.run_metadata import RunRequest

FOLDER = "pictures"
"""Artifact folder of the figures, in the run and in its experiment."""
MOST_RUNS = 8
"""Runs that get figures unless --run names some."""
INSTABILITY_TOLERANCE = 1e-6
"""A larger difference from the recorded instability gets a note."""
ROWS = 6
"""Images in a figure of receptive fields."""
REPRESENTATIVES = {"stable": "its most stable filter that fires", "median": "the median of its filters that fire"}
"""Which filter of each run a figure of receptive fields shows -> its description."""
BY_FIRING = {"often": "its filter that fires in the most images", "median": REPRESENTATIVES["median"]}
"""The same for data without landmarks."""

ExperimentArgument = Annotated[str, experiment_argument("EXPERIMENT", "Name or id of an experiment, or id of a run.")]
RunsOption = Annotated[
    list[str] | None,
    typer.Option("--run", metavar="LABEL", help="Only this run, such as l1. May be repeated."),
]
FiltersOption = Annotated[
    int,
    typer.Option("--filters", min=1, max=1000, help="Filters of each run that get a picture, from stable to unstable."),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Where to write. Default: $IPCNN_HOME/pictures/<experiment>."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the files written as JSON.")]


def pictures(
    experiment: ExperimentArgument,
    run: RunsOption = None,
    filters: FiltersOption = 6,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Draw the filters of finished runs on their images.

    The figures are written to a folder and stored with the runs in the record. Nothing is trained.
    """
    from ipcnn_ray.report.experiment_record import find_runs
    from ipcnn_ray.spec.runs import named_runs
    from ipcnn_ray.train.data_sync import local_paths
    from ipcnn_ray.train.run_metadata import experiment_spec_of, recorded_request, run_spec_of

    paths = local_paths(Paths.from_environment())
    tracker = open_tracker(paths)
    (parent, runs), *older = find_runs(tracker, experiment)
    if older:
        output.print_note(f"{experiment} was submitted several times; of {parent.run_id}, the newest")
    spec = experiment_spec_of(tracker, parent)
    named = [named_run.label for named_run in named_runs(spec)]
    by_label = {recorded.label if recorded.parent else named[0]: recorded for recorded in runs}
    labels = run or _default_labels(parent, by_label, named)
    _check_finished(parent, by_label, labels)
    specs = {label: run_spec_of(spec, label, by_label[label]).spec for label in labels}
    _check_weights(paths, parent, labels)
    folder = _PictureFolder(tracker, parent, Path(out or paths.home / FOLDER / parent.run_id))
    drawn = []
    for label in labels:
        recorded = by_label[label]
        activations = _run_activations(recorded_request(spec, paths, parent, recorded), recorded, label)
        template = specs[label].template.label()
        title = label if label == template else f"{label}: {template}"
        drawn.append(_DrawnRun(label, title, recorded, activations))
        _draw_run(folder, drawn[-1], filters, quiet=json)
    _draw_receptive_fields(folder, drawn)
    if json:
        output.print_json(
            {
                "experiment": parent.run_id,
                "folder": str(folder.path),
                "runs": [each.as_json() for each in drawn],
                "files": [str(path) for path in folder.files],
            }
        )
        return
    output.print_line(f"{len(folder.files)} files in {folder.path}")
    output.print_line(f"the same in the record, under {FOLDER}/ of the experiment and of each run")


def run_activations(tracker: Tracker, paths: Paths, parent: RecordedRun, recorded: RecordedRun) -> FilterActivations:
    """The activations of a finished run of an experiment. Raises IpcnnError where its model or data cannot be read."""
    from ipcnn_ray.train.data_sync import local_paths
    from ipcnn_ray.train.run_metadata import experiment_spec_of, recorded_request

    request = recorded_request(experiment_spec_of(tracker, parent), local_paths(paths), parent, recorded)
    label = request.folder.rpartition("/")[2]
    _check_weights(request.paths, parent, [label])
    return _run_activations(request, recorded, label)


def _run_activations(request: RunRequest, recorded: RecordedRun, label: str) -> FilterActivations:
    from ipcnn_ray.train.filter_activations import load_filter_activations

    return load_filter_activations(
        request,
        recorded.tags.get("data.digest", ""),
        workers=int(recorded.tags.get("ipcnn.workers", "1")),
        data_progress=output.CountedProgress(f"{label}: data,", "images"),
        progress=output.CountedProgress(f"{label}: looking,", "images"),
    )


@dataclass
class _PictureFolder:
    """Writes files to a local folder and to the record."""

    tracker: Tracker
    parent: RecordedRun
    path: Path
    files: list[Path] = field(default_factory=list)

    @contextmanager
    def file(self, run: RecordedRun, *parts: str) -> Iterator[Path]:
        """Path of a file to write in the `with` block; afterwards it is stored with the run."""
        path = self.path.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            advice = "Give another folder with --out."
            raise IpcnnError(f"{path.parent} cannot be made: {error.strerror}\n{advice}") from error
        yield path
        self.tracker.attach(run.handle).log_file(path, FOLDER)
        self.files.append(path)


@dataclass
class _DrawnRun:
    """A run with figures."""

    label: str
    title: str
    recorded: RecordedRun
    activations: FilterActivations
    filters: list[RankedFilter] = field(default_factory=list)

    @property
    def recorded_instability(self) -> float | None:
        """Location instability of the layer as recorded."""
        return self.recorded.metrics.get(f"instability_{self.activations.layer}")

    @property
    def data(self) -> tuple[str, int]:
        """Digest of the crops and number of object images. Runs with equal data share a figure."""
        return self.activations.store.digest, len(self.activations.image_N)

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.recorded.run_id,
            "layer": self.activations.layer,
            "instability": self.activations.instability.mean,
            "recorded": self.recorded_instability,
            "filters": len(self.filters),
            "dropped": self.activations.instability.dropped,
        }


def _default_labels(parent: RecordedRun, by_label: dict[str, RecordedRun], named: Sequence[str]) -> list[str]:
    """Labels of the succeeded named runs and the winners of the search, one per setting; without any, of all succeeded.

    Raises IpcnnError if no run has succeeded.
    """
    succeeded = [label for label, run in by_label.items() if run.state == "succeeded"]
    winners = [label for tag in ("ipcnn.best", "ipcnn.front") for label in parent.tags.get(tag, "").split(", ")]
    candidates = [label for label in (*named, *winners) if label in succeeded] or succeeded
    first_of_group = {by_label[label].group: label for label in reversed(candidates)}
    labels = list(first_of_group.values())[::-1][:MOST_RUNS]
    if not labels:
        states = ", ".join(f"{label} {run.state}" for label, run in list(by_label.items())[:MOST_RUNS])
        raise IpcnnError(
            f"no run of {parent.run_id} has succeeded: {states}\n"
            "Pictures are made of finished runs. Wait for one, or submit the experiment again: it goes on."
        )
    if others := [label for label in by_label if label not in labels]:
        names = f"{', '.join(others[:3])} and {len(others) - 3} more" if len(others) > 4 else ", ".join(others)
        output.print_note(f"not pictured: {names} (--run LABEL pictures a run)")
    return labels


def _check_finished(parent: RecordedRun, by_label: dict[str, RecordedRun], labels: Sequence[str]) -> None:
    """Raise IpcnnError for unknown and repeated labels, and for runs that have not finished."""
    errors = []
    for label in labels:
        if label not in by_label:
            guess = did_you_mean(label, list(by_label)).strip()
            errors.append(f"no run {label!r} in {parent.run_id}\n{guess or 'It has ' + ', '.join(by_label) + '.'}")
        elif by_label[label].state not in ("succeeded", "pruned", "stopped"):
            run = by_label[label]
            cause = f": {run.cause}" if run.cause else ""
            errors.append(
                f"run {label} of {parent.run_id} is {run.state}{cause}\n"
                "Pictures are made of finished runs. Wait for it, or submit the experiment again: it goes on."
            )
        elif list(labels).count(label) > 1:
            errors.append(f"--run {label} is given more than once\nGive it once.")
    if errors:
        raise IpcnnError("\n".join(dict.fromkeys(errors)))


def _check_weights(paths: Paths, parent: RecordedRun, labels: Sequence[str]) -> None:
    """Raise IpcnnError for runs without weights in a local storage. For buckets, loading the weights raises it."""
    from ipcnn_ray.train.run_dir import WEIGHTS_FILE
    from ipcnn_ray.train.run_metadata import recorded_folder

    folders = [recorded_folder(paths, parent, label) for label in labels]
    missing = [folder for folder in folders if "://" not in folder and not Path(folder, WEIGHTS_FILE).is_file()]
    if missing:
        raise IpcnnError(
            f"{WEIGHTS_FILE} is missing in {', '.join(missing)}\n"
            "The runs were trained on another storage, or their files were deleted: set IPCNN_STORAGE to that storage, "
            "or submit the experiment again with --fresh."
        )


def _draw_run(folder: _PictureFolder, drawn: _DrawnRun, count: int, *, quiet: bool) -> None:
    """Tables of all filters of a run, the figure of their ranking, and figures of `count` filters."""
    from ipcnn_ray.report import filter_figures as figures

    activations, run, label = drawn.activations, drawn.recorded, drawn.label
    landmarks = activations.store.landmark_names
    drawn.filters = rank_filters(activations)
    if not landmarks:
        output.print_note(f"{label}: the data have no landmarks, so there are no figures of distances from them")
        return
    measured = [ranked for ranked in drawn.filters if ranked.rank is not None]
    shown = evenly_spaced(measured, count)
    _print_instability_notes(drawn)
    if not measured:
        raise IpcnnError(
            f"no filter of {activations.layer} of run {label} can be measured: every one has a landmark seen on fewer "
            f"than 2 images\nLook at the landmarks with `ipcnn data check`."
        )
    output.print_progress(f"{label}: {len(shown)} pictures of filters")
    with folder.file(run, label, "filters.csv") as path:
        figures.filters_csv(drawn.filters, landmarks, path)
    with folder.file(run, label, "distances.csv") as path:
        figures.distances_csv(distance_rows(activations, shown), path)
    with folder.file(run, label, "filters_ranked.png") as path:
        title = f"{drawn.title}, {activations.layer}: {len(measured)} filters from stable to unstable"
        figures.save_ranking_figure(measured, landmarks, shown, title, path)
    for ranked in shown:
        with folder.file(run, label, f"rank_{ranked.rank:04}_filter_{ranked.number:04}.png") as path:
            figures.save_filter_figure(filter_view(activations, ranked, len(measured), drawn.title), path)
    if not quiet:
        mean = f"instability {activations.instability.mean:.4f}"
        output.print_line(f"{drawn.title}, {activations.layer}: {len(measured)} filters, {mean}", style="bold")
        table = figures.terminal_table(shown, landmarks)
        output.print_table(table.columns, table.rows, right=table.numbers)
        output.print_line()


def _print_instability_notes(drawn: _DrawnRun) -> None:
    """Notes on filters that could not be measured, and on a difference from the recorded instability."""
    instability, recorded = drawn.activations.instability, drawn.recorded_instability
    if instability.dropped:
        count = f"{instability.dropped} filters"
        output.print_note(f"{drawn.label}: {count} could not be measured; filters.csv lists them last")
    if recorded is None or not abs(recorded - instability.mean) <= INSTABILITY_TOLERANCE:
        expected = "not recorded" if recorded is None else f"recorded as {recorded:.6f}"
        device = drawn.recorded.tags.get("ipcnn.device", "another machine")
        output.print_note(
            f"{drawn.label}: instability {instability.mean:.6f} here, {expected} (trained on {device}): rounding on "
            "another machine moves a few peaks; the pictures show what is measured here"
        )


def _draw_receptive_fields(folder: _PictureFolder, drawn: Sequence[_DrawnRun]) -> None:
    """Receptive fields of one filter per run, in one figure for all runs on the same data."""
    from ipcnn_ray.report.filter_figures import RunColumn, save_receptive_fields_figure

    all_data = list(dict.fromkeys(run.data for run in drawn))
    for data in all_data:
        runs = [run for run in drawn if run.data == data]
        blind = not runs[0].activations.store.landmark_names
        for which, description in (BY_FIRING if blind else REPRESENTATIVES).items():
            activations = [run.activations for run in runs]
            filters = [representative_filter(run.filters, which) for run in runs]
            positions = common_images(activations, filters)
            output.print_progress(f"receptive fields of {len(runs)} runs, {which}")
            columns = [
                RunColumn(
                    run.title.replace(": ", "\n"),
                    ranked,
                    run.activations.regions([ranked.number], positions)[:, 0],
                )
                for run, ranked in zip(runs, filters, strict=True)
            ]
            suffix = f"_{runs[0].label}" if len(all_data) > 1 else ""
            with folder.file(folder.parent, f"receptive_fields_{which}{suffix}.png") as path:
                crops = activations[0].crops(positions)
                save_receptive_fields_figure(crops, columns, data[1], description, path)


def rank_filters(activations: FilterActivations) -> list[RankedFilter]:
    """All filters of the layer from stable to unstable; those that could not be measured come last, by number.

    Without landmarks from those that fire in many images to those that fire in few.
    """
    from ipcnn_ray.report.filter_figures import RankedFilter

    if not activations.store.landmark_names:
        return _by_firing(activations)
    instability_C = activations.instability.per_filter_C.tolist()
    fires_C = activations.fires_NC.sum(0).tolist()
    filters = []
    for rank, c in enumerate(activations.order(), 1):
        distances = activations.distances(c)
        filters.append(
            RankedFilter(
                rank=rank if math.isfinite(instability_C[c]) else None,
                number=c,
                category=activations.store.categories[int(activations.instability.category_C[c])],
                instability=instability_C[c],
                mean_K=distances.mean_K.numpy(),
                deviation_K=distances.deviation_K.numpy(),
                images_K=distances.counted_NK.sum(0).numpy(),
                fires=fires_C[c],
            )
        )
    return filters


def _by_firing(activations: FilterActivations) -> list[RankedFilter]:
    from ipcnn_ray.report.filter_figures import RankedFilter

    fires_C, none_K = activations.fires_NC.sum(0), activations.instability.deviation_CK[0].numpy()
    category_C = activations.instability.category_C.tolist()
    return [
        RankedFilter(
            rank=rank,
            number=c,
            category=activations.store.categories[category_C[c]],
            instability=math.nan,
            mean_K=none_K,
            deviation_K=none_K,
            images_K=none_K.astype(int),
            fires=int(fires_C[c]),
        )
        for rank, c in enumerate(fires_C.argsort(descending=True, stable=True).tolist(), 1)
    ]


def evenly_spaced(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` values at even intervals, including the first and the last."""
    last, gaps = len(values) - 1, max(1, min(count, len(values)) - 1)
    return [values[i] for i in sorted({round(last * gap / gaps) for gap in range(min(count, len(values)))})]


def filter_view(activations: FilterActivations, ranked: RankedFilter, measured: int, title: str) -> FilterView:
    """A filter and its strongest images among those that enter its instability."""
    from ipcnn_ray.report.filter_figures import TILES, FilterView

    c, store = ranked.number, activations.store
    distances, own = activations.distances(c), activations.own_images(c)
    activation_N = activations.activation_NC[own, c]
    order = [i for i in activation_N.argsort(descending=True, stable=True).tolist() if distances.counted_NK[i].any()]
    shown = order[:TILES]
    positions = own[shown].tolist()
    numbers = activations.image_N[positions]
    return FilterView(
        ranked=ranked,
        title=f"{title}, {activations.layer}, filter {c}",
        measured=measured,
        objects=len(activations.image_N),
        landmark_names=store.landmark_names,
        image_names=tuple(store.names[number] for number in numbers),
        images_ISS3=activations.crops(positions),
        activation_I=activation_N[shown].numpy(),
        peak_I2=activations.peaks_NC2[positions, c].numpy(),
        landmarks_IK2=store.landmarks_NK2[numbers],
        distance_IK=distances.distance_NK[shown].numpy(),
        counted_K=tuple(
            distances.distance_NK[[i for i in order if distances.counted_NK[i, k]], k].numpy()
            for k in range(len(store.landmark_names))
        ),
    )


def distance_rows(
    activations: FilterActivations, filters: Sequence[RankedFilter]
) -> list[tuple[int, str, float, float, float, str, float, bool]]:
    """Rows of `distances_csv`: every known distance of the filters, by image in the order of the store."""
    rows = []
    for c in (ranked.number for ranked in filters):
        distances = activations.distances(c)
        for i, position in enumerate(activations.own_images(c).tolist()):
            image = activations.store.names[int(activations.image_N[position])]
            activation = float(activations.activation_NC[position, c])
            row, col = activations.peaks_NC2[position, c].tolist()
            for k, landmark in enumerate(activations.store.landmark_names):
                distance, counted = float(distances.distance_NK[i, k]), bool(distances.counted_NK[i, k])
                if not math.isnan(distance):
                    rows.append((c, image, activation, row, col, landmark, distance, counted))
    return rows


def representative_filter(filters: Sequence[RankedFilter], which: str) -> RankedFilter:
    """The median (`which` is "median") or the first of the ranked filters that fire in more than ROWS images.

    If none does, all measured filters count.
    """
    measured = [ranked for ranked in filters if ranked.rank is not None]
    firing = [ranked for ranked in measured if ranked.fires > ROWS] or measured
    return firing[len(firing) // 2] if which == "median" else firing[0]


def common_images(runs: Sequence[FilterActivations], filters: Sequence[RankedFilter]) -> list[int]:
    """Positions of the images of a figure, the same for all runs, given one filter per run.

    Images in which more of the filters fire are preferred; among equals they are evenly spaced.
    """
    fires = [run.fires_NC[:, ranked.number].tolist() for run, ranked in zip(runs, filters, strict=True)]
    count_N = [sum(fires_R) for fires_R in zip(*fires, strict=True)]
    positions: list[int] = []
    for count in sorted(set(count_N), reverse=True):
        equal = [position for position, other in enumerate(count_N) if other == count]
        positions += evenly_spaced(equal, ROWS - len(positions))
    return sorted(positions)
