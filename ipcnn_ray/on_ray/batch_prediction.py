"""Predictions for many photographs by Ray Data: parts of the images, each a Parquet file in the storage.

A folder of predictions, `PATH`, is complete when it has `_predictions.json`. Until then its files are in
`PATH.partial`, and `PATH.request.json` says what they are predictions of:

PATH.partial/part-00012.parquet   the predictions of one part, each file whole or not there
PATH.request.json                 digest of the request; while it is there, the same request goes on
PATH/part-00012.parquet           all parts, moved at the end
PATH/_predictions.json            counts, and the images that could not be read; written last
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import pyarrow
import pyarrow.parquet
import ray.data

from ipcnn_ray.core.explanation import Explanation, decision_label
from ipcnn_ray.errors import IpcnnError, TrainingError
from ipcnn_ray.on_ray.ray_session import session
from ipcnn_ray.tracking.storage import Storage, open_storage
from ipcnn_ray.train.image_inputs import ImageInput, as_rows, with_absolute_paths
from ipcnn_ray.train.prediction import BATCH, PART, Prediction, model_on_device, parts_of, predict
from ipcnn_ray.train.run_dir import STORAGE_TIMEOUT_S, WEIGHTS_FILE, open_run_dir
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.speed import kernels

SUMMARY_FILE = "_predictions.json"
"""Readers of Parquet folders skip names that begin with an underscore."""
FORMAT = 1
"""Version of the files."""

_PIXELS, _MAYBE = pyarrow.list_(pyarrow.float64()), pyarrow.float64()
SCHEMA = pyarrow.schema(
    {
        "image": pyarrow.string(),
        "error": pyarrow.string(),
        "width": pyarrow.int32(),
        "height": pyarrow.int32(),
        "box": _PIXELS,
        "crop_size": pyarrow.int32(),
        "decision": pyarrow.list_(pyarrow.string()),
        "scores": pyarrow.list_(pyarrow.struct({"category": pyarrow.string(), "logit": _MAYBE, "probability": _MAYBE})),
        "filters": pyarrow.list_(
            pyarrow.struct(
                {
                    "layer": pyarrow.string(),
                    "filter": pyarrow.int32(),
                    "activation": _MAYBE,
                    "x": _MAYBE,
                    "y": _MAYBE,
                    "crop_x": _MAYBE,
                    "crop_y": _MAYBE,
                    "field": _PIXELS,
                    "category": pyarrow.string(),
                    "landmark": pyarrow.string(),
                    "tracking": _MAYBE,
                    "landmark_x": _MAYBE,
                    "landmark_y": _MAYBE,
                    "landmark_x_deviation": _MAYBE,
                    "landmark_y_deviation": _MAYBE,
                }
            )
        ),
    }
)
"""A row is an image, or one box of it: `error` says why it has no prediction, and is null otherwise."""


@dataclass(frozen=True)
class PredictionSummary:
    """What a complete folder of predictions holds."""

    run: str
    parquet: str
    """Path or URL of the folder."""
    images: int
    """Predictions and failures."""
    decisions: Mapping[str, int]
    """Number of images by decision, `none` for none of the categories; several categories are joined by commas."""
    failed: Sequence[Mapping[str, str]]
    """`image` and `error` of each image that could not be read."""
    parts: int
    digest: str
    """Of the request."""
    format: int = FORMAT


class PredictionFolder:
    """The files of one request in a storage: see the module."""

    def __init__(self, url: str) -> None:
        """url: a path, or an s3://BUCKET/PREFIX/NAME URL."""
        self.url = url.rstrip("/")
        parent, _, self.name = self.url.rpartition("/")
        if "://" in self.url and not parent.partition("://")[2]:
            raise IpcnnError(f"{self.url} names a whole bucket\nGive a folder in it: {self.url}/NAME.")
        self.storage: Storage = open_storage(parent or "/", STORAGE_TIMEOUT_S)
        self._partial, self._request = f"{self.name}.partial", f"{self.name}.request.json"

    def open(self, digest: str) -> PredictionSummary | None:
        """Begin a request, or go on with it. Returns the summary if it is complete.

        Raises IpcnnError if the folder holds anything else.
        """
        if self.storage.exists(f"{self.name}/{SUMMARY_FILE}"):
            summary = PredictionSummary(**json.loads(self.storage.get(f"{self.name}/{SUMMARY_FILE}")))
            if summary.digest == digest:
                return summary
            what = "holds predictions of other images, or of another model"
        elif self.storage.exists(self._request):
            if json.loads(self.storage.get(self._request))["digest"] == digest:
                return None
            what = "holds unfinished predictions of other images, or of another model"
        elif self.storage.list(self.name) or self.storage.list(self._partial):
            what = "holds other files"
        else:
            self.storage.put_bytes(json.dumps({"digest": digest}).encode(), self._request)
            return None
        raise IpcnnError(f"{self.url} {what}\nGive another --parquet, or delete it, with {self._request}.")

    def part(self, number: int) -> str:
        return f"part-{number:05}.parquet"

    def put(self, number: int, predictions: Sequence[Prediction]) -> None:
        """Store the predictions of a part."""
        self.storage.put_bytes(to_parquet(predictions), f"{self._partial}/{self.part(number)}")

    def done(self) -> set[str]:
        """Return the names of the parts that are stored."""
        keys = [*self.storage.list(self._partial), *self.storage.list(self.name)]
        return {key.rpartition("/")[2] for key in keys}

    def read(self, part: str) -> list[dict[str, Any]]:
        """Return `image`, `error` and `decision` of the rows of a stored part."""
        key = f"{self._partial}/{part}"
        raw = self.storage.get(key if self.storage.exists(key) else f"{self.name}/{part}")
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(
            io.BytesIO(raw), columns=["image", "error", "decision"]
        ).to_pylist()
        return rows

    def complete(self, summary: PredictionSummary) -> None:
        """Move the parts to their place, and store the summary."""
        if self.storage.list(self._partial):  # not if an earlier process died after it moved them
            self.storage.move(self._partial, self.name)
        self.storage.put_bytes(json.dumps(asdict(summary), indent=1).encode(), f"{self.name}/{SUMMARY_FILE}")
        self.storage.delete(self._request)


def to_parquet(predictions: Sequence[Prediction]) -> bytes:
    """Return predictions as a Parquet file of `SCHEMA`."""
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([_row(prediction) for prediction in predictions], schema=SCHEMA)
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _row(prediction: Prediction) -> dict[str, Any]:
    row = prediction.as_json()
    if isinstance(prediction, Explanation):
        row["scores"] = [{"category": name, **score} for name, score in row["scores"].items()]
    return row


def predict_on_ray(
    request: RunRequest,
    images: Sequence[ImageInput],
    target: str,
    *,
    address: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PredictionSummary:
    """Predict images on Ray, and store the predictions as Parquet files.

    Called again with the same run, weights and images, it goes on with the parts that are missing.

    Args:
        request: The run; its folder is read by every worker.
        images: Paths that every node can read, or URLs.
        target: Path or s3:// URL of the folder of predictions.
        address: `auto` for the Ray cluster of this machine; by default an embedded Ray is started.
        workers: Most processes that predict at a time. Default: one for each GPU, or for each core without any.
        progress: Called with (images done, images in all).

    Raises IpcnnError if the target holds anything else, TrainingError if the run has not ended.
    """
    images = with_absolute_paths(images)
    stamp = open_run_dir(request.folder).checksums().get(WEIGHTS_FILE)
    if stamp is None:
        raise TrainingError(f"run {request.run_id} has no {WEIGHTS_FILE} in {request.folder}: it has not ended yet")
    folder = PredictionFolder(target)
    content = json.dumps([FORMAT, PART, BATCH, request.run_id, stamp, as_rows(images)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    if complete := folder.open(digest):
        return complete
    parts = parts_of(images)
    rows: dict[int, list[dict[str, Any]]] = {}
    stored = folder.done()
    for number in range(len(parts)):
        if folder.part(number) in stored:
            rows[number] = folder.read(folder.part(number))
    missing = [number for number in range(len(parts)) if number not in rows]
    done = len(images) - sum(len(parts[number]) for number in missing)
    if missing:
        items = [{"number": number, "images": json.dumps(as_rows(parts[number]))} for number in missing]
        for finished in _on_ray(request, target, items, address, workers):
            rows[int(finished["number"])] = json.loads(finished["rows"])
            done += len(parts[int(finished["number"])])
            if progress:
                progress(done, len(images))
    everything = [row for number in range(len(parts)) for row in rows[number]]
    decisions = Counter(decision_label(row["decision"]) for row in everything if row["error"] is None)
    failed = [{"image": row["image"], "error": row["error"]} for row in everything if row["error"] is not None]
    summary = PredictionSummary(
        request.run_id, folder.url, len(images), dict(decisions.most_common()), failed, len(parts), digest
    )
    folder.complete(summary)
    return summary


def _on_ray(
    request: RunRequest, target: str, items: Sequence[Mapping[str, Any]], address: str | None, workers: int | None
) -> Iterator[dict[str, Any]]:
    """Predict parts by Ray Data; yields what `PartPredictor` returns for each, as it is done. A worker has a GPU, or a
    core where no node has any GPU."""
    with session(address, dashboard=False) as nodes, _quiet():
        gpus, cores = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
        most = min(workers or gpus or max(1, cores), len(items))
        dataset = ray.data.from_items(list(items), override_num_blocks=len(items)).map(
            cast(Any, PartPredictor),
            fn_constructor_args=(request, target),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=None if gpus else 1,
            num_gpus=1 if gpus else None,
        )
        yield from dataset.iter_rows()


class PartPredictor:
    """Actor that loads the model once, and predicts and stores one part after the other."""

    def __init__(self, request: RunRequest, target: str) -> None:
        self.model = model_on_device(request)
        self.spec = request.spec
        self.folder = PredictionFolder(target)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Predict and store a part, and return its number with image, error and decision of its rows, as JSON."""
        rows = json.loads(item["images"])
        images = [ImageInput(row["path"], tuple(row["edges"]) if row["edges"] else None) for row in rows]
        with kernels(self.spec):
            predictions = list(predict(self.model, images))
        self.folder.put(int(item["number"]), predictions)
        told = [
            {
                "image": prediction.image,
                "error": None if isinstance(prediction, Explanation) else prediction.reason,
                "decision": prediction.decision if isinstance(prediction, Explanation) else None,
            }
            for prediction in predictions
        ]
        return {"number": item["number"], "rows": json.dumps(told)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's progress bars and log lines off stdout and stderr: both may be read by a script."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars, context.print_on_execution_start = False, False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        logger.setLevel(before[2])
