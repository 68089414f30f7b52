"""What the filters of a finished run do on its object images: the numbers that pictures are drawn from.

N object images, C filters of one layer, K landmarks; positions are (row, col) in pixels of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ipcnn_ray.core.activation_threshold import cells_above, top_values
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.metrics.location_instability import (
    InstabilityResult,
    LandmarkDistances,
    landmark_distances,
    location_instability_of_categories,
)
from ipcnn_ray.core.receptive_field import DISC_DIAMETER, Field, activation_region
from ipcnn_ray.data.batches import Batch
from ipcnn_ray.data.crop_store import CropStore, open_store, rows_reader
from ipcnn_ray.data.datasets.dataset import Progress
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError, IpcnnError, Issue, TrainingError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.train.distributed_inference import EvaluationPlan, infer
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.final_model import final_model
from ipcnn_ray.train.metric_inputs import masked_maps, peak_positions
from ipcnn_ray.train.run_request import RunRequest
from ipcnn_ray.train.runtime import InProcess


@dataclass(frozen=True)
class FilterActivations:
    """A finished run and what its layer does with the object images that its instability was taken over."""

    request: RunRequest
    inputs: InputPipeline
    layer: str
    field: Field
    image_N: NDArray[np.int64]
    """Indices of the object images in the store."""
    instability: InstabilityResult
    """Measured again, as in the run's evaluation."""
    peaks_NC2: Tensor
    """Centres of the receptive fields of the peaks."""
    activation_NC: Tensor
    """Value at the peak, before ReLU."""
    strongest_NC: Tensor
    """Largest value after ReLU and mask."""
    threshold_C: Tensor
    """T_f: what the strongest 0.5 % of a filter's cells after ReLU and mask are above."""

    @property
    def store(self) -> CropStore:
        return self.inputs.store

    @property
    def fires_NC(self) -> Tensor:
        """Whether a filter has a cell above its threshold in an image."""
        return self.strongest_NC > self.threshold_C

    def order(self) -> list[int]:
        """The filters from stable to unstable; those that could not be measured come last, by number."""
        order: list[int] = self.instability.per_filter_C.nan_to_num(torch.inf).argsort(stable=True).tolist()
        return order

    def crops(self, positions: Sequence[int]) -> NDArray[np.uint8]:
        """Some of the object images, [I, S, S, 3] RGB."""
        images_I3SS = rows_reader(self.store.images_N3SS)(self.image_N[list(positions)])
        return images_I3SS.transpose(0, 2, 3, 1)

    def own_images(self, c: int) -> Tensor:
        """Positions among the object images of those of the filter's own category."""
        label_N = torch.from_numpy(self.store.labels_N[self.image_N])
        return (label_N == self.instability.category_C[c]).nonzero()[:, 0]

    def distances(self, c: int) -> LandmarkDistances:
        """The distances of filter c on its `own_images`."""
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
        """The receptive fields of some filters in some of the object images, [images, filters, S, S]."""
        items = np.stack([self.image_N[list(positions)], np.zeros(len(positions), np.int64)], 1)

        def look(batch: Batch, number_b: NDArray[np.int64]) -> dict[str, Tensor]:
            output = self.inputs.net(self.inputs.rows(batch), from_features=True, full=True)
            return {"maps": masked_maps(output, self.layer)[:, list(filters)]}

        maps = infer(self.inputs, items, _here(), look, epoch=_epochs(self.request), batch_size=32)["maps"]
        size = self.store.size
        return np.stack(
            [
                np.stack(
                    [
                        activation_region(
                            x_nn, float(self.threshold_C[c]), self.field, size, DISC_DIAMETER * size
                        ).numpy()
                        for c, x_nn in zip(filters, x_Cnn, strict=True)
                    ]
                )
                for x_Cnn in maps
            ]
        )


def sight(
    request: RunRequest,
    data_digest: str,
    *,
    workers: int = 1,
    preparing: Progress | None = None,
    looking: Callable[[int, int], None] | None = None,
) -> FilterActivations:
    """Load a finished run's network and data, and look at the object images once more; nothing is trained.

    data_digest, workers: as recorded. The images pass in the batches of the run's last evaluation, in float32 and with
    its number of threads, so that the same machine finds the same numbers. preparing, looking: progress, called with
    (done, in all).
    Raises IpcnnError for a run whose files are missing or damaged, DataError where the data are not there or are others
    than it was trained on.
    """
    spec = request.spec
    torch.set_num_threads(spec.compute.cpus_per_worker)
    store = _store(request, data_digest, preparing)
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
    inputs = InputPipeline(store, net.to(device), spec.model.table.input_scale, device)
    return _look(request, inputs, max(1, spec.train.batch_size // workers), looking)


def _store(request: RunRequest, recorded: str, preparing: Progress | None) -> CropStore:
    """The crops that the run was trained on, from the cache, or made again."""
    spec, paths = request.spec, request.paths
    if recorded and (known := open_store(paths.cache, recorded)):
        return known
    store = prepare(spec.data, spec.model.table.image_size, paths, preparing)
    if recorded and store.digest != recorded:
        what = f"the data are not those it was trained on: digest {store.digest}, recorded {recorded}"
        advice = "Set IPCNN_DATA to the folder of then, or submit the experiment again on these data."
        raise DataError([Issue(request.run_id, what, advice)])
    return store


def _here() -> InProcess:
    return InProcess("cuda" if torch.cuda.is_available() else "cpu")


def _epochs(request: RunRequest) -> int:
    return request.spec.train.epochs


@torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
def _look(
    request: RunRequest, inputs: InputPipeline, batch_size: int, looking: Callable[[int, int], None] | None
) -> FilterActivations:
    spec, net, store = request.spec, inputs.net, inputs.store
    layer = spec.eval.layer or net.interpretable[-1]
    C, n, _ = net.shape(layer)
    plan = EvaluationPlan.of(store, spec.eval.images)
    count, objects = len(plan.items), plan.object_positions.numpy()
    if not count or not len(objects):
        what = "no object image is among those that location instability is taken over"
        raise DataError([Issue(request.run_id, what, "Look at the data with `ipcnn data check`.")])
    mine = np.isin(np.arange(count), objects)
    above: int | None = None
    top_CM = torch.empty(0)

    def look(batch: Batch, number_b: NDArray[np.int64]) -> dict[str, Tensor]:
        nonlocal above, top_CM
        output = net(inputs.rows(batch), from_features=True, full=True)
        score_NCHW, passed_NCHW = output.scores[layer], masked_maps(output, layer)
        if above is None:
            above = cells_above(len(objects), passed_NCHW.shape[-1])
            top_CM = torch.full((C, above + 1), -torch.inf, device=inputs.device)
        top_CM = top_values(passed_NCHW[torch.from_numpy(mine[number_b]).to(inputs.device)], top_CM)
        if looking:
            looking(int(number_b.max()) + 1, count)
        return {
            "peak": peak_NC(score_NCHW),
            "activation": score_NCHW.amax((2, 3)),
            "strongest": passed_NCHW.amax((2, 3)),
        }

    found = infer(inputs, plan.items, _here(), look, epoch=_epochs(request), batch_size=batch_size)
    found = {name: rows[plan.object_positions] for name, rows in found.items()}
    image_N = plan.items[objects, 0]
    seen_from = layer_receptive_field(spec.model, layer)
    peaks_NC2 = peak_positions(found["peak"], seen_from, n)
    instability = location_instability_of_categories(
        peaks_NC2,
        found["activation"],
        torch.from_numpy(store.landmarks_NK2[image_N]),
        torch.from_numpy(store.labels_N[image_N]),
        store.size * math.sqrt(2),
        variant=spec.eval.instability,
        top_images=spec.eval.top_images,
    )
    return FilterActivations(
        request,
        inputs,
        layer,
        seen_from,
        image_N,
        instability,
        peaks_NC2,
        found["activation"],
        found["strongest"],
        top_CM[:, -1].cpu(),
    )
