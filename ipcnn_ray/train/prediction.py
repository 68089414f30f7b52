"""Predictions for many photographs, in batches that do not depend on where they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ipcnn_ray.core.crop_place import CropPlace
from ipcnn_ray.core.explanation import Explanation
from ipcnn_ray.data.crops import ImageFileError, crop_with_place
from ipcnn_ray.errors import TrackingError, UnreachableError
from ipcnn_ray.train.final_model import Classifier, final_model
from ipcnn_ray.train.image_inputs import ImageInput, read_image
from ipcnn_ray.train.run_metadata import RunRequest

BATCH = 16
"""Images of a forward pass. Fixed, because the rounding of a convolution depends on it."""
PART = 128
"""Images that are decoded at a time, and of a Parquet file."""
THREADS = 4
"""Threads that decode."""


@dataclass(frozen=True)
class Unreadable:
    """An image without a prediction."""

    image: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"image": self.image, "error": self.reason}


Prediction = Explanation | Unreadable


def model_on_device(request: RunRequest) -> Classifier:
    """Return the model of a run on the GPU, if there is one. Raises TrainingError if the run has not ended."""
    return final_model(request)[0].to("cuda" if torch.cuda.is_available() else "cpu")


def parts_of(images: Sequence[ImageInput]) -> list[Sequence[ImageInput]]:
    """Return the inputs in parts of `PART`."""
    return [images[start : start + PART] for start in range(0, len(images), PART)]


def predict(model: Classifier, images: Sequence[ImageInput]) -> Iterator[Prediction]:
    """Yield the prediction for each input, in their order. Those of one part are computed in batches of `BATCH`.

    model: in evaluation mode; its device computes.
    """
    for part in parts_of(images):
        with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
            loaded = pool.map(lambda image: _load(image, model), part)
            for start in range(0, len(part), BATCH):
                yield from _predict_batch(model, list(zip(part[start : start + BATCH], loaded, strict=False)))


def _load(image: ImageInput, model: Classifier) -> tuple[NDArray[np.uint8], CropPlace] | str:
    """Return the crop of an input and its place, or why there is none."""
    try:
        return crop_with_place(read_image(image.path), image.edges, model.image_size, upright=model.upright)
    except UnreachableError:
        raise  # not a matter of this image
    except (ImageFileError, TrackingError) as error:
        return str(error).partition("\n")[0]


def _predict_batch(
    model: Classifier, batch: Sequence[tuple[ImageInput, tuple[NDArray[np.uint8], CropPlace] | str]]
) -> Iterator[Prediction]:
    readable = [(image.path, *loaded) for image, loaded in batch if not isinstance(loaded, str)]
    explained: Iterator[Explanation] = iter(())
    if readable:
        crops_N3SS = torch.from_numpy(np.stack([crop_3SS for _, crop_3SS, _ in readable]))
        explained = iter(model.explain_crops(crops_N3SS, [(path, place) for path, _, place in readable]))
    for image, loaded in batch:
        yield Unreadable(image.path, loaded) if isinstance(loaded, str) else next(explained)
