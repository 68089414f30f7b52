"""`ipcnn predict`: the model of a recorded run on new photographs, here or on Ray."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import RUN_FAILED, AddressOption, complete_experiment
from ipcnn_ray.errors import DataError, IpcnnError, Issue
from ipcnn_ray.tracking.storage import is_url, join_path
from ipcnn_ray.utils.files import atomic_folder
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import counted

if TYPE_CHECKING:
    from ipcnn_ray.core.explanation import Explanation
    from ipcnn_ray.on_ray.batch_prediction import PredictionSummary
    from ipcnn_ray.report.prediction_page import PredictedRun
    from ipcnn_ray.train.final_model import Classifier
    from ipcnn_ray.train.image_inputs import ImageInput
    from ipcnn_ray.train.prediction import Unreadable
    from ipcnn_ray.train.run_metadata import RunRequest

FOLDER = "predictions"
JSON_FILE, CSV_FILE, PAGE_FILE, PICTURES = "predictions.json", "predictions.csv", "predictions.html", "pictures"
WRITTEN = {JSON_FILE, CSV_FILE, PAGE_FILE, PICTURES}
MOST_HERE = 2000
"""Images that are predicted without Ray: all of their filters are in memory."""
MOST_LINES = 50
"""Images in the table of scores on a terminal."""
MOST_TABLES = 4
"""Images with a table of filters on a terminal."""
MOST_FAILURES = 20
BOXES_FILE = "boxes.csv"

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id of a run, or of an experiment with a single run.",
        show_default=False,
        autocompletion=complete_experiment,
    ),
]
ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGES...",
        help="Photographs: files, folders (with all below), patterns, s3:// URLs. With --boxes: those of the table.",
        show_default=False,
    ),
]
BoxesOption = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        metavar="FILE",
        help="CSV with image, xmin, ymin, xmax, ymax (pixels): predict these boxes. Default: whole images.",
    ),
]
FiltersOption = Annotated[
    int, typer.Option("--filters", min=1, max=1000, help="Strongest filters of each layer in tables and pictures.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Where to write JSON, CSV, page and pictures. Default: $IPCNN_HOME/predictions/<run>.",
    ),
]
ParquetOption = Annotated[
    str | None,
    typer.Option(
        "--parquet",
        metavar="FOLDER",
        help="Predict on Ray, with all cores or GPUs, and write Parquet files here: a folder, or an s3:// URL. "
        "Repeated: resume.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="On Ray: most processes at a time. Default: one for each GPU, or core."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts; files are written with --out only.")]
DetachOption = Annotated[bool, typer.Option("--detach", help="With --address: do not follow the job's log.")]


def predict(
    run: RunArgument,
    images: ImagesArgument = None,
    boxes: BoxesOption = None,
    filters: FiltersOption = 6,
    out: OutOption = None,
    parquet: ParquetOption = None,
    workers: WorkersOption = None,
    json: JsonOption = False,
    address: AddressOption = None,
    detach: DetachOption = False,
    on_cluster: Annotated[bool, typer.Option("--on-cluster", hidden=True)] = False,
) -> None:
    """Predict new photographs: scores, and of each filter where it fires and what it followed in training.

    Thousands of images: --parquet, on this machine or with --address on a cluster.
    """
    if not images and not (boxes and boxes.is_file() and not address):
        raise IpcnnError("no images are given\nGive files, folders, patterns or s3:// URLs behind the run.")
    on_ray = parquet is not None or on_cluster or bool(address)
    if out and on_ray:
        raise IpcnnError("--out writes a page, --parquet and --address files for many images\nGive one of them.")
    if address and not on_cluster:
        _submit(address, run, images or [], boxes, parquet, workers, detach=detach, as_json=json)
        return
    if detach:
        raise IpcnnError("--detach is for a cluster\nGive its --address, or leave --detach out.")
    paths = Paths.from_environment()
    if workers and not on_ray:
        raise IpcnnError("--workers is for predictions on Ray\nGive --parquet FOLDER, too, or leave --workers out.")
    folder = Path(out or paths.home / FOLDER / run).expanduser()
    if not on_ray:
        _check_folder(folder)
    inputs = _inputs(images or [], boxes, None if on_ray else folder)
    if not on_ray and len(inputs) > MOST_HERE:
        raise IpcnnError(
            f"{output.format_count(len(inputs))} images are more than the {output.format_count(MOST_HERE)} that get a "
            "page\nGive --parquet FOLDER: all cores or GPUs predict them, and every filter is in Parquet files."
        )
    digest = _digest(images or [], boxes)
    if on_cluster:
        os.chdir(tempfile.gettempdir())  # Ray may unpack the job's working directory again while its driver runs
    from ipcnn_ray.cli.experiments import request_of

    request = request_of(run)
    if on_ray:
        target = parquet or join_path(paths.storage, FOLDER, f"{request.run_id}-{digest}")
        failed = _predict_on_ray(request, inputs, target, workers, on_cluster, as_json=json)
    else:
        failed = _predict_here(request, inputs, folder if out or not json else None, filters, as_json=json)
    if failed:
        raise typer.Exit(RUN_FAILED)


def _inputs(names: Sequence[str], boxes: Path | None, skip: Path | None) -> list[ImageInput]:
    from ipcnn_ray.train.image_inputs import find_images, images_of_boxes, read_boxes, with_boxes

    if boxes is None:
        return find_images(names, skip)
    rows = read_boxes(boxes)
    images = find_images(names, skip) if names else images_of_boxes(boxes, rows)
    inputs, remark = with_boxes(images, rows, boxes)
    if remark:
        output.print_note(remark)
    return inputs


def _digest(images: Sequence[str], boxes: Path | None) -> str:
    content = "\0".join(images).encode() + (boxes.read_bytes() if boxes else b"")
    return hashlib.sha256(content).hexdigest()[:8]


def _predict_here(
    request: RunRequest, inputs: Sequence[ImageInput], folder: Path | None, filters: int, *, as_json: bool
) -> int:
    """Predict in this process; returns the number of images that could not be read. folder: where to write."""
    from ipcnn_ray.core.explanation import Explanation
    from ipcnn_ray.train.prediction import model_on_device
    from ipcnn_ray.train.prediction import predict as predictions_of
    from ipcnn_ray.train.speed import kernels

    model = model_on_device(request)
    explanations: list[Explanation] = []
    failed: list[Unreadable] = []
    progress = output.CountedProgress("predicting,", "images")
    with kernels(request.spec):
        for number, prediction in enumerate(predictions_of(model, inputs), 1):
            if isinstance(prediction, Explanation):
                explanations.append(prediction)
            else:
                failed.append(prediction)
            progress(number, len(inputs))
    content = {
        "run": request.run_id,
        "categories": list(model.categories),
        "images": [explanation.as_json() for explanation in explanations],
        "failed": [failure.as_json() for failure in failed],
    }
    if folder:
        _write(folder, content, request, model, explanations, failed, inputs, filters)
    if as_json:
        output.print_json(content)
    else:
        _print(explanations, filters)
        if folder:
            output.print_line(f"page, pictures, JSON and CSV: {folder / PAGE_FILE}")
    _print_failures([(failure.image, failure.reason) for failure in failed], len(inputs))
    return len(failed)


def _print(explanations: Sequence[Explanation], filters: int) -> None:
    from ipcnn_ray.report.prediction_page import filter_table, score_table

    if not explanations:
        return
    table = score_table(explanations[:MOST_LINES])
    output.print_table(table.columns, table.rows, right=table.numbers)
    if len(explanations) > MOST_LINES:
        output.print_line(f"and {len(explanations) - MOST_LINES} more")
    output.print_line()
    for explanation in explanations[:MOST_TABLES] if len(explanations) <= MOST_LINES else ():
        output.print_line(explanation.image, style="bold")
        table = filter_table(explanation.strongest(filters))
        output.print_table(table.columns, table.rows, right=table.numbers)
        output.print_line()
    fired = [one for explanation in explanations for one in explanation.filters if one.landmark]
    if fired and all(one.landmark_x is None for one in fired):
        output.print_note(
            "This run did not record how far its filters are from their landmarks: an earlier version trained it, so "
            "the places of landmarks are left out."
        )


def _print_failures(failed: Sequence[tuple[str, str]], total: int) -> None:
    if not failed:
        return
    issues = [Issue(image, reason, "It has no prediction.") for image, reason in failed[:MOST_FAILURES]]
    output.print_error(DataError(issues))
    output.print_note(f"{counted(len(failed), 'image')} of {output.format_count(total)} could not be read")


def _check_folder(folder: Path) -> None:
    """Raise IpcnnError for a folder with files of others, which would be deleted, and for a file."""
    if folder.exists() and not folder.is_dir():
        raise IpcnnError(f"{folder} is a file\nGive another folder with --out.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in WRITTEN) if folder.is_dir() else []
    if others:
        raise IpcnnError(f"{folder} holds other files, such as {others[0]}\nGive another folder with --out.")


def _write(
    folder: Path,
    content: dict[str, Any],
    request: RunRequest,
    model: Classifier,
    explanations: Sequence[Explanation],
    failed: Sequence[Unreadable],
    inputs: Sequence[ImageInput],
    filters: int,
) -> None:
    """Write all files; the folder appears whole, and replaces that of an earlier call."""
    from ipcnn_ray.report.prediction_page import MOST_PICTURES, prediction_page

    try:
        with atomic_folder(folder) as making:
            (making / JSON_FILE).write_text(output.as_json(content), encoding="utf-8")
            _write_csv(making / CSV_FILE, model.categories, explanations, failed)
            (making / PICTURES).mkdir()
            pictures = []
            for number, explanation in enumerate(explanations[:MOST_PICTURES], 1):
                stem = re.sub(r"[^\w.-]+", "_", Path(explanation.image).stem)
                name = f"{number:04}_{stem[:60]}"
                jpeg = _picture(explanation, model, filters)
                (making / PICTURES / f"{name}.jpg").write_bytes(jpeg)
                pictures.append((name, explanation, jpeg))
            reasons = [(failure.image, failure.reason) for failure in failed]
            page = prediction_page(_predicted_run(request, model), explanations, reasons, pictures, filters)
            (making / PAGE_FILE).write_text(page.html, encoding="utf-8")
    except OSError as error:
        advice = "Give another folder with --out."
        raise IpcnnError(f"{folder} cannot be written: {error.strerror or error}\n{advice}") from error


def _picture(explanation: Explanation, model: Classifier, filters: int) -> bytes:
    from ipcnn_ray.data.crops import preview
    from ipcnn_ray.report.prediction_page import PREVIEW, picture, shown_filters, to_jpeg
    from ipcnn_ray.train.image_inputs import read_image

    image_hw3 = preview(read_image(explanation.image), PREVIEW, upright=model.upright)
    return to_jpeg(picture(image_hw3, explanation, shown_filters(explanation, filters)))


def _predicted_run(request: RunRequest, model: Classifier) -> PredictedRun:
    from ipcnn_ray.report.prediction_page import PredictedRun

    spec = request.spec
    drawn = ": drawn images, not photographs" if spec.data.drawn else ""
    following = {
        layer: (sum(one.landmark is not None for one in known), len(known))
        for layer, known in reversed(list(model.context.known.items()))
        if spec.data.landmarks
    }
    return PredictedRun(
        request.run_id,
        spec.template.label(),
        f"{', '.join(model.categories)} ({spec.data.kind}{drawn})",
        request.run.metrics.get("val_error"),
        following,
        model.upright,
    )


def _write_csv(
    path: Path, categories: Sequence[str], explanations: Sequence[Explanation], failed: Sequence[Unreadable]
) -> None:
    """Write a row for each image: box, decision, logits and probabilities."""
    from ipcnn_ray.core.explanation import decision_label

    of_categories = [f"{kind}_{name}" for name in categories for kind in ("logit", "probability")]
    columns = [
        "image",
        "width",
        "height",
        "xmin",
        "ymin",
        "xmax",
        "ymax",
        "decision",
        *of_categories,
        "filters",
        "error",
    ]

    def rows() -> Iterator[list[object]]:
        for one in explanations:
            numbers = [number for name in categories for number in asdict(one.scores[name]).values()]
            label = decision_label(one.decision)
            yield [one.image, one.width, one.height, *one.box, label, *numbers, len(one.filters), ""]
        for failure in failed:
            yield [failure.image, *[""] * (len(columns) - 2), failure.reason]

    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows()])


def _predict_on_ray(
    request: RunRequest,
    inputs: Sequence[ImageInput],
    target: str,
    workers: int | None,
    on_cluster: bool,
    *,
    as_json: bool,
) -> int:
    """Predict on Ray, print a summary, and return the number of images that could not be read."""
    from ipcnn_ray.on_ray.batch_prediction import predict_on_ray

    summary = predict_on_ray(
        request,
        inputs,
        _absolute(target),
        address="auto" if on_cluster else None,
        workers=workers,
        progress=output.CountedProgress("predicting,", "images"),
    )
    if as_json:
        output.print_json(asdict(summary))
    else:
        _print_summary(summary)
    _print_failures([(failure["image"], failure["error"]) for failure in summary.failed], summary.images)
    return len(summary.failed)


def _absolute(name: str) -> str:
    return name if is_url(name) else str(Path(name).expanduser().absolute())


def _print_summary(summary: PredictionSummary) -> None:
    predicted = summary.images - len(summary.failed)
    output.print_line(f"{output.format_count(predicted)} images predicted by {summary.run}", style="bold")
    rows = [[name, output.format_count(count)] for name, count in summary.decisions.items()]
    output.print_table(("decision", "images"), rows, right=("images",))
    output.print_line()
    output.print_line(f"{counted(summary.parts, 'Parquet file')} in {summary.parquet}")


def _submit(
    address: str,
    run: str,
    images: Sequence[str],
    boxes: Path | None,
    parquet: str | None,
    workers: int | None,
    *,
    detach: bool,
    as_json: bool,
) -> None:
    """Predict as a job of a cluster, which the same command follows or resumes."""
    from ipcnn_ray.cli.jobs import follow_job
    from ipcnn_ray.on_ray.job_client import PREDICTION, JobClient, write_working_dir

    arguments = ["predict", run, *map(_absolute, images), "--on-cluster"]
    arguments += ["--parquet", _absolute(parquet)] if parquet else []
    if boxes:
        from ipcnn_ray.train.image_inputs import read_boxes

        read_boxes(boxes)
        arguments += ["--boxes", BOXES_FILE]
    digest = _digest(arguments, boxes)
    arguments += ["--workers", str(workers)] if workers else []
    client = JobClient(address)
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as folder:
        write_working_dir(Path(folder), "")
        if boxes:
            shutil.copyfile(boxes, Path(folder) / BOXES_FILE)
        job, started = client.submit(f"{PREDICTION}{digest}", Path(folder), arguments, os.environ)
    follow_job(client, job, address, started=started, detach=detach, as_json=as_json)
