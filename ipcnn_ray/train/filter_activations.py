"""Activations of the filters of a finished run on its object images, from which pictures are drawn.

N object images, C filters of one layer, K landmarks; positions are (row, col) in pixels of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.metrics.filter_metric import filter_category
from ipcnn_ray.core.metrics.location_instability import (
    InstabilityResult,
    LandmarkDistances,
    landmark_distances,
    location_instability_of_categories,
)
from ipcnn_ray.core.receptive_field import (
    DISC_DIAMETER,
    Field,
    activation_region,
    cells_above,
    peak_positions,
    top_values,
)
from ipcnn_ray.data.batches import Batch
from ipcnn_ray.data.crop_store import CropStore, open_store, rows_reader
from ipcnn_ray.data.datasets.dataset import Progress
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError, IpcnnError, Issue, TrainingError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.models.named_weights import input_mean
from ipcnn_ray.train.distributed_inference import EvaluationPlan, infer
from ipcnn_ray.train.evaluate import masked_maps
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.final_model import final_model
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.speed import kernels, laid_out


@dataclass(frozen=True)
class FilterActivations:
    """Activations of one layer of a finished run on the object images that its location instability was taken over."""

    request: RunRequest
    inputs: InputPipeline
    layer: str
    field: Field
    image_N: NDArray[np.int64]
    """Indices of the object images in the store."""
    instability: InstabilityResult
    """Computed again, as in the run's evaluation; without landmarks NaN, with the category that activates a filter the
    most."""
    peaks_NC2: Tensor
    """Centres of the receptive fields of the peaks."""
    activation_NC: Tensor
    """Value at the peak, before ReLU."""
    strongest_NC: Tensor
    """Largest value after ReLU and mask."""
    threshold_C: Tensor
    """T_f of the cells after ReLU and mask: see `receptive_field`."""

    @property
    def store(self) -> CropStore:
        return self.inputs.store

    @property
    def fires_NC(self) -> Tensor:
        """Whether a filter has a cell above its threshold in an image."""
        return self.strongest_NC > self.threshold_C

    def order(self) -> list[int]:
        """Return the filters from stable to unstable; those that could not be measured come last, by number."""
        order: list[int] = self.instability.per_filter_C.nan_to_num(torch.inf).argsort(stable=True).tolist()
        return order

    def crops(self, positions: Sequence[int]) -> NDArray[np.uint8]:
        """Return the object images at these positions, [I, S, S, 3] RGB."""
        images_I3SS = rows_reader(self.store.images_N3SS)(self.image_N[list(positions)])
        return images_I3SS.transpose(0, 2, 3, 1)

    def own_images(self, c: int) -> Tensor:
        """Return the positions of the object images of the category that filter c was measured on."""
        label_N = torch.from_numpy(self.store.labels_N[self.image_N])
        return (label_N == self.instability.category_C[c]).nonzero()[:, 0]

    def distances(self, c: int) -> LandmarkDistances:
        """Return the distances of filter c on its `own_images`."""
        own = self.own_images(c)
        landmarks_NK2 = torch.from_numpy(self.store.landmarks_NK2[self.image_N[own.numpy()]])
        return landmark_distances(
            self.peaks_NC2[own, c],
            self.activation_NC[own, c],
            landmarks_NK2,
            self.store.size * math.sqrt(2),
            top_images=self.request.spec.eval.top_images,
        )

    def regions(self, filters: Sequence[int], positions: Sequence[int]) -> NDArray[np.bool_]:
        """Return the activation regions of some filters in the object images at these positions, [I, filters, S, S]."""
        items = np.stack([self.image_N[list(positions)], np.zeros(len(positions), np.int64)], 1)

        def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
            return {"maps": masked_maps(self.inputs.output(batch), self.layer)[:, list(filters)]}

        runtime, epoch, size = Runtime(self.inputs.device), self.request.spec.train.epochs, self.store.size
        maps = infer(self.inputs, items, runtime, forward, epoch=epoch, batch_size=32)["maps"]

        def region(c: int, x_nn: Tensor) -> NDArray[np.bool_]:
            return activation_region(x_nn, float(self.threshold_C[c]), self.field, size, DISC_DIAMETER * size).numpy()

        return np.array([[region(c, x_nn) for c, x_nn in zip(filters, x_Cnn, strict=True)] for x_Cnn in maps])


def load_filter_activations(
    request: RunRequest,
    data_digest: str,
    *,
    workers: int = 1,
    data_progress: Progress | None = None,
    progress: Progress | None = None,
) -> FilterActivations:
    """Load a finished run's network and data, and run the network on the object images.

    data_digest, workers: as recorded. The images pass in the batches of the run's last evaluation, in float32 and with
    its number of threads, so that the same machine computes the same numbers. data_progress, progress: called with
    (done, total) while the data are prepared and while the images pass.
    Raises IpcnnError for a run whose files are missing or damaged, DataError where the data are missing or differ from
    those it was trained on.
    """
    spec = request.spec
    torch.set_num_threads(spec.compute.cpus_per_worker)
    store = _load_store(request, data_digest, data_progress)
    try:
        net = final_model(request)[0].net
    except TrainingError as error:
        raise IpcnnError(
            f"{str(error).partition(':')[0]}\nIt has ended, but not on this storage: set IPCNN_STORAGE to the place "
            "where it was trained, or submit it again with --fresh."
        ) from error
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise IpcnnError(
            f"the weights of run {request.run_id} in {request.folder} cannot be read: {' '.join(str(error).split())}\n"
            "The file is damaged or of another version of ipcnn; submit the experiment again with --fresh."
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, scale = laid_out(net.to(device), spec), spec.model.table.input_scale
    fast = spec.compute.speed == "fast"
    inputs = InputPipeline(store, net, scale, device, fast=fast, mean=input_mean(spec.model))
    batch_size = max(1, spec.train.batch_size // workers)
    with kernels(spec):
        return _filter_activations(request, inputs, batch_size, progress)


def _load_store(request: RunRequest, recorded: str, progress: Progress | None) -> CropStore:
    """Open the crops that the run was trained on in the cache, or prepare them again."""
    spec, paths = request.spec, request.paths
    if recorded and (cached := open_store(paths.cache, recorded)):
        return cached
    store = prepare(spec.data, spec.model.table.image_size, paths, progress)
    if recorded and store.digest != recorded:
        what = f"the data are not those it was trained on: digest {store.digest}, recorded {recorded}"
        advice = "Set IPCNN_DATA to the folder of then, or submit the experiment again on these data."
        raise DataError([Issue(request.run_id, what, advice)])
    return store


def _filter_activations(
    request: RunRequest, inputs: InputPipeline, batch_size: int, progress: Progress | None
) -> FilterActivations:
    spec, net, store = request.spec, inputs.net, inputs.store
    layer = spec.eval.layer or net.interpretable[-1]
    C, n, _ = net.shape(layer)
    plan = EvaluationPlan.of(store, spec.eval.images)
    count, objects = len(plan.items), plan.object_positions.numpy()
    if not count or not len(objects):
        what = "no object image is among those that location instability is taken over"
        raise DataError([Issue(request.run_id, what, "Look at the data with `ipcnn data check`.")])
    is_object = np.isin(np.arange(count), objects)
    top_CM: Tensor | None = None

    def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
        nonlocal top_CM
        output = inputs.output(batch)
        score_NCHW, passed_NCHW = output.scores[layer], masked_maps(output, layer)
        if top_CM is None:
            cells = cells_above(len(objects), passed_NCHW.shape[-1])
            top_CM = torch.full((C, cells + 1), -torch.inf, device=inputs.device)
        top_CM = top_values(passed_NCHW[torch.from_numpy(is_object[position_b]).to(inputs.device)], top_CM)
        if progress:
            progress(int(position_b.max()) + 1, count)
        return {
            "peak": peak_NC(score_NCHW),
            "activation": score_NCHW.amax((2, 3)),
            "strongest": passed_NCHW.amax((2, 3)),
            "pooled": output.maps[layer].mean((2, 3)),
        }

    rows = infer(inputs, plan.items, Runtime(inputs.device), forward, epoch=spec.train.epochs, batch_size=batch_size)
    assert top_CM is not None  # there is at least one batch
    rows = {name: rows_I[plan.object_positions] for name, rows_I in rows.items()}
    image_N = plan.items[objects, 0]
    field = layer_receptive_field(spec.model, layer)
    peaks_NC2 = peak_positions(rows["peak"], field, n)
    label_N = torch.from_numpy(store.labels_N[image_N])
    if store.landmark_names:
        instability = location_instability_of_categories(
            peaks_NC2,
            rows["activation"],
            torch.from_numpy(store.landmarks_NK2[image_N]),
            label_N,
            store.size * math.sqrt(2),
            variant=spec.eval.instability,
            top_images=spec.eval.top_images,
        )
    else:
        unknown_C = torch.full((C,), torch.nan, dtype=torch.float64)
        category_C = filter_category(rows["pooled"], label_N, torch.unique(label_N))
        instability = InstabilityResult(unknown_C, torch.empty(C, 0, dtype=torch.float64), category_C)
    activation_NC, strongest_NC, threshold_C = rows["activation"], rows["strongest"], top_CM[:, -1].cpu()
    return FilterActivations(
        request, inputs, layer, field, image_N, instability, peaks_NC2, activation_NC, strongest_NC, threshold_C
    )
