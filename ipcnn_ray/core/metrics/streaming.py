"""Metrics of interpretability for networks of others: fed with maps batch by batch, exact over several processes.

    instability, tracking = LocationInstability(image_size=224), LandmarkTracking(image_size=224)
    for images, landmarks in loader:
        maps = features(images)                      # [N, C, 14, 14]
        instability.update(maps, landmarks)          # [N, K, 2], (row, col) in pixels, NaN where not shown
        tracking.update(maps, landmarks)
    print(instability.compute().mean, tracking.compute().mean)

Each class measures what the metric of a submitted run with the same name does, with the same code; `FilterMetrics`
measures several at once.

Symbols: N images, C filters, K landmarks, n x n cells, S x S pixels; positions are (row, col) in pixels, 0-based.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.metrics import (
    ablation,
    activation_entropy,
    consistency,
    instability_baselines,
    keypoint_error,
    landmark_tracking,
    location_instability,
    mutual_information_score,
    part_interpretability,
    peak_distance,
    purity,
    stability,
)
from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext, MetricResult, filter_category
from ipcnn_ray.core.metrics.landmark_tracking import Tracking, followed_landmark, tracking_of_categories
from ipcnn_ray.core.metrics.part_positions import part_boxes
from ipcnn_ray.core.receptive_field import Field, cells_above, peak_positions, top_values
from ipcnn_ray.core.workers import Workers, current_workers, gather_objects

CHUNK = 32
"""Images whose part masks are held at once."""
TRACKING = {"tracking_CK": "strongest_CK", "tracking_few_CK": "few_CK", "tracking_shuffled_CRK": "shuffled_CRK"}
"""Input of `FilterMetric.compute` -> the field of `Tracking` that it is."""
PEAKS, MAPS = ("peaks_NC2", "activation_NC"), "maps_NCHW"
ARGUMENTS = {
    **{"landmarks_NK2": "landmarks_NK2", "tracking": "landmarks_NK2", "part_masks_NKSS": "landmarks_NK2"},
    **{"parts_shown_NK": "part_sizes_NK2"},
    **{"in_training_N": "in_training", "noisy_peaks_NC2": "noisy_maps_NCHW", "loss_change_NC": "loss_change_NC"},
    **{"masked_maps_NCHW": "masked_maps_NCHW"},
}
"""What a metric needs -> the argument of `update` without which it is not there."""


@dataclass(frozen=True)
class _Layer:
    """The images of all ranks, in order, and the layer that they were measured on."""

    rows: Mapping[str, Tensor]
    """Argument of `update`, or `state` and the name of a metric -> one row for each image."""
    context: LayerContext
    few_images: int

    def of(self, images_N: Tensor) -> _Layer:
        """Return the same layer on some of the images."""
        return _Layer({name: value[images_N] for name, value in self.rows.items()}, self.context, self.few_images)

    @property
    def label_N(self) -> Tensor:
        return self.rows["labels"]


class _Images:
    """The images that were given so far, and the metrics that are measured on them."""

    def __init__(
        self,
        metrics: Sequence[type[FilterMetric] | type[StreamingMetric]],
        image_size: int,
        map_side: int | None,
        field: Field | None,
        top_images: int,
        few_images: int,
        instability: Literal["paper", "released"],
    ) -> None:
        for name, number, least in (("image_size", image_size, 1), ("map_side", map_side, 1)):
            _check_whole(name, number, least)
        for name, number, least in (("top_images", top_images, 2), ("few_images", few_images, 2)):
            _check_whole(name, number, least)
        if instability not in ("paper", "released"):
            raise ValueError(f"instability = {instability!r}: expected 'paper' or 'released'")
        self._classes: dict[str, type[FilterMetric]] = {}
        for metric in metrics:
            measured = metric.measured if issubclass(metric, StreamingMetric) else metric
            if measured.name in self._classes:
                raise ValueError(f"metrics has {measured.name} twice: expected each once")
            self._classes[measured.name] = measured
        if not self._classes:
            raise ValueError("metrics is empty: expected at least one class")
        self.image_size, self.field = image_size, field
        self.top_images, self.few_images, self.instability = top_images, few_images, instability
        self._map_side = self._given_side = map_side
        self._metrics: dict[str, FilterMetric] = {}
        self._batches: list[dict[str, Tensor]] = []
        self._needs = _all_needs(self._classes.values())

    def update(
        self,
        maps_NCHW: Tensor | None = None,
        landmarks_NK2: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        index: Tensor | None = None,
        in_training: Tensor | None = None,
        masked_maps_NCHW: Tensor | None = None,
        noisy_maps_NCHW: Tensor | None = None,
        part_sizes_NK2: Tensor | None = None,
        loss_change_NC: Tensor | None = None,
        peaks_NC2: Tensor | None = None,
        activation_NC: Tensor | None = None,
        pooled_NC: Tensor | None = None,
    ) -> None:
        """Add a batch of images. What no metric needs may be left out, and is not kept.

        Args:
            maps_NCHW: Maps of the layer, before the mask; best before ReLU, as submitted runs take them: the peak of a
                map that is 0 everywhere is its first cell.
            landmarks_NK2: Position of each landmark, pixels; NaN where the image does not show it.
            labels: Category of each image, [N] whole numbers, -1 for an image without object; or bool, whether it shows
                the object. Default: all 0. A filter is measured on the images of the category that activates it the
                most (location instability: see `instability`).
            index: Number of each image in the dataset, [N] whole numbers.
            in_training: Whether the image is one of the training split, [N] bool; for `KeypointError`.
            masked_maps_NCHW: Maps after ReLU and mask; for `PartInterpretability`, which keeps them all in memory.
            noisy_maps_NCHW: `maps_NCHW` of the same images with noise; for `Stability` and `PeakStability`.
            part_sizes_NK2: (height, width) in pixels of the box around each landmark, NaN where unknown; for
                `PartInterpretability`.
            loss_change_NC: Classification loss with each filter's map set to zero minus the loss as it is, nats; for
                `AblationOwn` and `AblationOthers`.
            peaks_NC2: In place of maps: the centre of the receptive field of each map's peak, pixels.
            activation_NC: With `peaks_NC2`: the value at each peak.
            pooled_NC: With `peaks_NC2`: the mean over the cells of each map after ReLU, which tells a filter's
                category. Not needed where all images are of one category.

        Raises:
            ValueError: Something that a metric needs is missing, or shapes do not fit.
        """
        given = {
            "landmarks_NK2": landmarks_NK2,
            "in_training": in_training,
            "masked_maps_NCHW": masked_maps_NCHW,
            "part_sizes_NK2": part_sizes_NK2,
            "loss_change_NC": loss_change_NC,
            "labels": labels,
            "index": index,
        }
        of_peaks = {"peaks_NC2": peaks_NC2, "activation_NC": activation_NC, "pooled_NC": pooled_NC}
        _check_lengths({**given, MAPS: maps_NCHW, "noisy_maps_NCHW": noisy_maps_NCHW, **of_peaks})
        rows = {name: value.detach().cpu() for name, value in given.items() if value is not None and self._kept(name)}
        if maps_NCHW is not None:
            rows |= self._map_rows(maps_NCHW.detach())
        elif peaks_NC2 is not None and activation_NC is not None:
            rows |= {"peaks_NC2": peaks_NC2.detach().cpu().double(), "activation_NC": activation_NC.detach().cpu()}
            if pooled_NC is not None:
                rows["pooled_NC"] = pooled_NC.detach().cpu()
        if noisy_maps_NCHW is not None:
            rows["noisy_peaks_NC2"] = self._peaks(noisy_maps_NCHW.detach())
        if masked_maps_NCHW is not None:
            self._side_of(masked_maps_NCHW)
        if not rows:
            raise ValueError(f"update has no input: expected {', '.join(_required(self._needs))}")
        rows.setdefault("labels", torch.zeros(len(next(iter(rows.values()))), dtype=torch.int64))
        self._check(rows)
        shows_N = rows["labels"]
        rows["labels"] = shows_N.long() - 1 if shows_N.dtype == torch.bool else shows_N.long()
        self._batches.append({name: value for name, value in rows.items() if self._kept(name)})

    def reset(self) -> None:
        """Forget all images."""
        self._batches, self._metrics, self._map_side = [], {}, self._given_side

    def _results(self, sync: bool) -> dict[str, MetricResult]:
        layer = self._merged(sync)
        objects = layer.of(layer.label_N >= 0)
        if not len(objects.label_N):
            raise ValueError("no image shows an object: expected labels of at least 0 for some")
        category_C = self._category(objects)
        tracking = self._tracking(objects, category_C) if "tracking" in self._needs else None
        return {
            name: self._measure(metric, layer if metric.images == "validation" else objects, category_C, tracking)
            for name, metric in self._instances(layer.context).items()
        }

    def _followed(self, sync: bool) -> Tracking:
        layer = self._merged(sync)
        objects = layer.of(layer.label_N >= 0)
        return self._tracking(objects, self._category(objects))

    def _map_rows(self, maps_NCHW: Tensor) -> dict[str, Tensor]:
        """What is kept of the maps of a batch."""
        maps_NCHW = maps_NCHW if maps_NCHW.dtype == torch.float64 else maps_NCHW.float()
        peaks_NC2 = self._peaks(maps_NCHW)
        after_relu_NCHW = torch.relu(maps_NCHW)
        rows = {
            "peaks_NC2": peaks_NC2,
            "activation_NC": maps_NCHW.amax((2, 3)).cpu(),
            "pooled_NC": after_relu_NCHW.mean((2, 3)).cpu(),
        }
        if self._kept(MAPS):
            rows[MAPS] = after_relu_NCHW.cpu()
        for name, metric in self._instances(self._context(self._map_side)).items():
            if metric.update_inputs() == (MAPS,):
                rows[f"state {name}"] = metric.update(after_relu_NCHW).cpu()
        return rows

    def _peaks(self, maps_NCHW: Tensor) -> Tensor:
        n = self._side_of(maps_NCHW)
        return peak_positions(peak_NC(maps_NCHW).cpu(), self._context(n).field, n)

    def _side_of(self, maps_NCHW: Tensor) -> int:
        """Side of the maps, which is that of all others."""
        n = "n" if self._map_side is None else self._map_side
        if maps_NCHW.ndim != 4 or maps_NCHW.shape[2] != maps_NCHW.shape[3] or n not in ("n", maps_NCHW.shape[2]):
            raise ValueError(f"maps have shape {tuple(maps_NCHW.shape)}: expected [N, C, {n}, {n}]")
        self._map_side = maps_NCHW.shape[2]
        return maps_NCHW.shape[2]

    def _context(self, n: int | None) -> LayerContext:
        if n is None:
            raise ValueError("map_side = None: expected the side of a map in cells, where no maps are given")
        field = self.field
        if field is None:
            if self.image_size % n:
                raise ValueError(
                    f"field = None: images of {self.image_size} pixels do not divide into {n} cells; expected the "
                    "receptive fields of the layer, as ipcnn_ray.receptive_field(module)"
                )
            stride = self.image_size // n
            field = Field(stride, stride, (stride - 1) / 2)
        return LayerContext(self.image_size, n, field, self.top_images, self.instability)

    def _instances(self, context: LayerContext) -> dict[str, FilterMetric]:
        if not self._metrics:
            self._metrics = {name: metric(context) for name, metric in self._classes.items()}
        return self._metrics

    def _check(self, rows: Mapping[str, Tensor]) -> None:
        """Raise ValueError for inputs that are missing or do not fit."""
        missing = {
            MAPS: (self._needs & set(PEAKS) and "peaks_NC2" not in rows)
            or ("pooled_NC" in self._needs and "pooled_NC" not in rows)
            or any(f"state {name}" not in rows for name, m in self._classes.items() if m.update_inputs() == (MAPS,)),
            "noisy_maps_NCHW": "noisy_peaks_NC2" not in rows,
        }
        for name in _required(self._needs):
            if missing.get(name, name not in rows):
                names = ", ".join(self._classes)
                also = " (or peaks_NC2 and activation_NC)" if name == MAPS and "peaks_NC2" not in rows else ""
                raise ValueError(f"{name} = None: expected it for {names}{also}")
        for name, value in rows.items():
            if self._batches and name in self._batches[0] and value.shape[1:] != self._batches[0][name].shape[1:]:
                before, shape = tuple(self._batches[0][name].shape[1:]), tuple(value.shape[1:])
                raise ValueError(f"{name} has rows of shape {shape}: expected {before}, as in the first batch")
        for name in ("labels", "index"):
            if name in rows and (rows[name].ndim != 1 or rows[name].dtype.is_floating_point):
                shape, dtype = tuple(rows[name].shape), rows[name].dtype
                raise ValueError(f"{name} is {dtype} {shape}: expected whole numbers [N]")
        if "in_training" in rows and rows["in_training"].dtype != torch.bool:
            raise ValueError(f"in_training is {rows['in_training'].dtype}: expected bool")
        if self._batches and ("index" in rows) != ("index" in self._batches[0]):
            raise ValueError("index: expected it in every batch, or in none")

    def _kept(self, name: str) -> bool:
        """Whether a row is needed by `compute`."""
        by_need = {"pooled_NC": {"pooled_NC", "category"}, "in_training": {"in_training_N"}}
        if name in ("labels", "index") or name.startswith("state "):
            return True
        if name == "landmarks_NK2":
            return bool(self._needs & {"landmarks_NK2", "tracking", "part_masks_NKSS"})
        if name == "part_sizes_NK2":
            return "part_masks_NKSS" in self._needs
        if name == MAPS:
            updates = [metric.update_inputs() for metric in self._classes.values()]
            return any(MAPS in needs and needs != (MAPS,) for needs in updates)
        return not self._needs.isdisjoint(by_need.get(name, {name}))

    def _merged(self, sync: bool) -> _Layer:
        """All images of all ranks, in their order."""
        workers = current_workers() if sync else Workers()
        everything = gather_objects((self._batches, self._map_side), workers)
        batches = [batch for rank_batches, _ in everything for batch in rank_batches]
        if not batches:
            raise ValueError("no images: expected a call of update before compute")
        rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        if "index" in rows:
            order_N = rows["index"].argsort(stable=True)
            sorted_N = rows["index"][order_N]
            first_N = torch.cat([sorted_N.new_ones(1, dtype=torch.bool), sorted_N[1:] != sorted_N[:-1]])
            rows = {name: value[order_N[first_N]] for name, value in rows.items()}
        side = next((side for _, side in everything if side is not None), None)
        return _Layer(rows, self._context(side), self.few_images)

    def _category(self, objects: _Layer) -> Tensor:
        """Category of each filter, [C]; empty where no metric needs it."""
        if "category" not in self._needs:
            return torch.empty(0)
        categories: Tensor = torch.unique(objects.label_N)
        if len(categories) == 1:
            return categories.expand(_filters(objects))
        if "pooled_NC" not in objects.rows:
            raise ValueError("pooled_NC = None: expected it, or maps_NCHW, where images are of several categories")
        return filter_category(objects.rows["pooled_NC"], objects.label_N, categories)

    def _tracking(self, objects: _Layer, category_C: Tensor) -> Tracking:
        return tracking_of_categories(
            objects.rows["peaks_NC2"],
            objects.rows["activation_NC"],
            objects.rows["landmarks_NK2"].double(),
            objects.label_N,
            category_C,
            top_images=self.top_images,
            few_images=self.few_images,
        )

    def _measure(
        self, metric: FilterMetric, layer: _Layer, category_C: Tensor, tracking: Tracking | None
    ) -> MetricResult:
        inputs = {name: self._input(name, metric, layer, category_C, tracking) for name in metric.compute_inputs()}
        return metric.measure(inputs, _filters(layer), label_N=layer.label_N, category_C=category_C)

    def _input(
        self, name: str, metric: FilterMetric, layer: _Layer, category_C: Tensor, tracking: Tracking | None
    ) -> Tensor:
        rows = layer.rows
        if name in TRACKING:
            value: Tensor = getattr(tracking, TRACKING[name])
            return value
        match name:
            case "label_N":
                return layer.label_N
            case "landmarks_NK2":
                return rows["landmarks_NK2"].double()
            case "in_training_N":
                return rows["in_training"]
            case "own_NC":
                return layer.label_N[:, None] == category_C
            case "parts_shown_NK":
                return ~(rows["landmarks_NK2"].isnan() | rows["part_sizes_NK2"].isnan()).any(2)
            case "state" if metric.update_inputs() != (MAPS,):
                return _late_states(metric, layer)
            case "state":
                return rows[f"state {metric.name}"]
        return rows[name]


def _all_needs(metrics: Iterable[type[FilterMetric]]) -> frozenset[str]:
    """Inputs of the metrics, with those that landmark tracking and a filter's category are computed from."""
    classes = list(metrics)
    needs = {need for metric in classes for need in metric.needs()}
    if "own_NC" in needs or any(metric.images == "own_category" for metric in classes):
        needs.add("category")
    return frozenset(needs | {"tracking", "category", *PEAKS} if needs & set(TRACKING) else needs)


def _required(needs: frozenset[str]) -> list[str]:
    """Arguments of `update` that are needed."""
    names = [MAPS] if needs & {*PEAKS, "pooled_NC", MAPS} else []
    names += [argument for need, argument in ARGUMENTS.items() if need in needs]
    return list(dict.fromkeys(names))


def _filters(layer: _Layer) -> int:
    """Number C of filters; 0 where only landmarks were given."""
    names = ("peaks_NC2", "activation_NC", "pooled_NC", "loss_change_NC", "masked_maps_NCHW")
    return next((layer.rows[name].shape[1] for name in names if name in layer.rows), 0)


def _late_states(metric: FilterMetric, layer: _Layer) -> Tensor:
    """What `update` of a metric returns that needs the threshold over all images, or part masks."""
    x_NCHW, size = layer.rows["masked_maps_NCHW"], layer.context.image_size
    N, C, n, _ = x_NCHW.shape
    above = torch.full((C, cells_above(N, n) + 1), -torch.inf, dtype=x_NCHW.dtype)
    threshold_C = top_values(x_NCHW, above)[:, -1]
    states = []
    for part in [torch.arange(start, min(start + CHUNK, N)) for start in range(0, N, CHUNK)]:
        inputs = {"masked_maps_NCHW": x_NCHW[part], "threshold_C": threshold_C}
        if MAPS in metric.update_inputs():
            inputs[MAPS] = layer.rows[MAPS][part]
        if "part_masks_NKSS" in metric.update_inputs():
            centers_NK2, sizes_NK2 = layer.rows["landmarks_NK2"][part], layer.rows["part_sizes_NK2"][part]
            masks = [part_boxes(*boxes, size) for boxes in zip(centers_NK2, sizes_NK2, strict=True)]
            inputs["part_masks_NKSS"] = torch.stack(masks)
        states.append(metric.update(**{name: inputs[name] for name in metric.update_inputs()}))
    return torch.cat(states)


def _check_lengths(given: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError unless all inputs of `update` have one row for each image."""
    counts = {name: len(value) for name, value in given.items() if value is not None}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"numbers of rows are {listed}: expected one row for each image in all")


def _check_whole(name: str, value: object, least: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ValueError(f"{name} = {value!r}: expected a whole number of at least {least}")


ARGS = """
    Args:
        image_size: Side S of the square images that landmarks are positions in, pixels.
        map_side: Side n of a map, cells. Default: that of the maps; needed if only peaks or landmarks are given.
        field: Receptive fields of the cells, as `ipcnn_ray.receptive_field(module)` returns them. Default: n x n equal
            squares that cover the image, for S a multiple of n.
        top_images: Number of strongest images, for each filter and landmark, that location instability and landmark
            tracking are measured on; at least 2.
        few_images: The same for the metrics whose names end in `few`.
        instability: Category that location instability measures a filter on: the one where it is the most stable
            (`paper`), or the one that activates it the most (`released`).

    Where torch.distributed is initialised, `compute` merges the images of all ranks, and every rank gets the result of
    one process that saw them all in the same order. Give `update` the `index` of each image in the dataset: images are
    then taken in that order, and those that a sampler repeated on several ranks count once.

    Raises:
        ValueError: An argument is not allowed; the message names it.
"""


class FilterMetrics(_Images):
    """Several metrics of the filters of one layer, from the maps of all images::

        metrics = FilterMetrics([LocationInstability, InstabilityBestConstant, LandmarkTracking], image_size=224)
        for images, landmarks in loader:
            metrics.update(features(images), landmarks)  # [N, C, n, n]; [N, K, 2], (row, col) in pixels
        results = metrics.compute()                      # results["landmark_tracking"].mean, .per_filter_C

    metrics: classes of the module, or subclasses of `FilterMetric`, each once.
    """

    def __init__(
        self,
        metrics: Sequence[type[FilterMetric] | type[StreamingMetric]],
        image_size: int,
        *,
        map_side: int | None = None,
        field: Field | None = None,
        top_images: int = 100,
        few_images: int = 30,
        instability: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__(metrics, image_size, map_side, field, top_images, few_images, instability)

    def compute(self, *, sync: bool = True) -> dict[str, MetricResult]:
        """Return the result of each metric by name, over the images of all ranks.

        sync: False takes the images of this rank alone; otherwise every rank must call it.
        Raises ValueError if there are no images, or none that shows an object.
        """
        return self._results(sync)


class StreamingMetric(_Images):
    """Base class of the metrics of this module: one metric of the filters of one layer.

    measured: the metric of submitted runs that it is.
    """

    measured: ClassVar[type[FilterMetric]]

    def __init_subclass__(cls, measured: type[FilterMetric] | None = None, **options: Any) -> None:
        """Add the unit, the inputs and the arguments to the documentation of a metric."""
        super().__init_subclass__(**options)
        if measured is not None:
            cls.measured = measured
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\n{_facts(measured)}\n{inspect.cleandoc(ARGS)}\n"

    def __init__(
        self,
        image_size: int,
        *,
        map_side: int | None = None,
        field: Field | None = None,
        top_images: int = 100,
        few_images: int = 30,
        instability: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__([type(self)], image_size, map_side, field, top_images, few_images, instability)

    def compute(self, *, sync: bool = True) -> MetricResult:
        """Return the result over the images of all ranks: its `mean` over filters, and `per_filter_C`, [C] float64.

        sync: False takes the images of this rank alone; otherwise every rank must call it.
        Raises ValueError if there are no images, or none that shows an object.
        """
        return self._results(sync)[self.measured.name]


FilterMetrics.__doc__ = f"{inspect.cleandoc(FilterMetrics.__doc__ or '')}\n\n{inspect.cleandoc(ARGS)}\n"


def _facts(measured: type[FilterMetric]) -> str:
    """Unit, direction and inputs of a metric, for its documentation."""
    number = "One number for the layer" if measured.one_per_layer else "One number per filter"
    best = "" if measured.best is None else f" The best value is {measured.best:g}."
    inputs = ", ".join(_required(frozenset(_all_needs([measured])))) or "none"
    return f"{number}, {measured.unit}; {measured.better} is better.{best} Inputs of `update`: {inputs}.\n"


class LocationInstability(StreamingMetric, measured=location_instability.LocationInstability):
    """Standard deviation of the distance from a filter's peak to a landmark over its strongest images, mean over
    landmarks, as a share of the image diagonal. Source: Zhang et al., CVPR 2018, section 5."""


class InstabilityCenter(StreamingMetric, measured=instability_baselines.InstabilityCenter):
    """Location instability of a filter whose peak is always at the centre of the image: a baseline."""


class InstabilityBestConstant(StreamingMetric, measured=instability_baselines.InstabilityBestConstant):
    """Location instability of a filter whose peak is always in the same cell, the best one: a baseline."""


class InstabilityRandom(StreamingMetric, measured=instability_baselines.InstabilityRandom):
    """Location instability of a filter whose peak is in a random cell of each image, in expectation: a baseline."""


class _Tracking(StreamingMetric):
    """A metric of landmark tracking, which also tells what each filter follows."""

    def followed_landmarks(self, *, sync: bool = True) -> Tensor:
        """Return the index of the landmark that each filter follows the most, [C] int64; -1 for a filter that follows
        none.

        A filter follows a landmark when its landmark tracking is above 0.3. sync: as in `compute`.
        Raises ValueError if there are no images, or none that shows an object.
        """
        return followed_landmark(self._followed(sync).strongest_CK)

    def by_landmark(self, *, sync: bool = True) -> Tensor:
        """Return the tracking of each filter and landmark, [C, K] float64, as a share of the landmark's variance.

        NaN where fewer than two images show the landmark, and where it never moves. sync: as in `compute`.
        Raises ValueError if there are no images, or none that shows an object.
        """
        return self._followed(sync).strongest_CK


class LandmarkTracking(_Tracking, measured=landmark_tracking.LandmarkTracking):
    """1 - the variance of the offset from peak to landmark / the variance of the landmark, over a filter's strongest
    images, for its best landmark. 1: the peak is at a fixed offset from the landmark. 0: no better than a constant."""


class LandmarkTrackingFew(_Tracking, measured=landmark_tracking.LandmarkTrackingFew):
    """`LandmarkTracking` over the `few_images` strongest images."""


class LandmarkTrackingShuffled(_Tracking, measured=landmark_tracking.LandmarkTrackingShuffled):
    """`LandmarkTracking` with the landmarks of other images of the same category: what chance gives."""


class FollowingShare(_Tracking, measured=landmark_tracking.FollowingShare):
    """1 for a filter that follows a landmark, with `LandmarkTracking` above 0.3, else 0; the mean is their share."""


class FollowingShareFew(_Tracking, measured=landmark_tracking.FollowingShareFew):
    """`FollowingShare` over the `few_images` strongest images."""


class FollowingShareShuffled(_Tracking, measured=landmark_tracking.FollowingShareShuffled):
    """`FollowingShare` with the landmarks of other images of the same category: what chance gives."""


class LandmarksFollowed(_Tracking, measured=landmark_tracking.LandmarksFollowed):
    """Number of landmarks that at least one filter follows more than any other landmark."""


class LandmarkCoverage(_Tracking, measured=landmark_tracking.LandmarkCoverage):
    """Effective number of landmarks that the filters follow: 1 if all follow one, K if evenly K."""


class PeakDistance(StreamingMetric, measured=peak_distance.PeakDistance):
    """Mean distance from a filter's peak to the peaks of the other filters in the same image."""


class PeakSpread(StreamingMetric, measured=peak_distance.PeakSpread):
    """Root mean square distance of a filter's peak from its mean position over its strongest images."""


class KeypointError(StreamingMetric, measured=keypoint_error.KeypointError):
    """Mean distance from a landmark to its position predicted from the peaks of all filters by ridge regression, fitted
    on the images with `in_training`, measured on the others."""


class KeypointErrorMean(StreamingMetric, measured=keypoint_error.KeypointErrorMean):
    """`KeypointError` where each landmark is predicted at its mean position in the training images: a baseline."""


class PartInterpretability(StreamingMetric, measured=part_interpretability.PartInterpretability):
    """Share of the images in which the region of a filter's strongest activations covers its best part, with an
    intersection over union above 0.2. Source: Zhang et al., CVPR 2018, section 5.2.1."""


class Consistency(StreamingMetric, measured=consistency.Consistency):
    """1 for a filter whose peak lies at the same part in at least 80 % of the images, else 0; the mean is their share.
    Source: Huang et al., ICCV 2023."""


class Stability(StreamingMetric, measured=stability.Stability):
    """Share of the images in which a little noise does not move the peak to other parts. Source: Huang et al., ICCV
    2023; there the noise of a pixel is normal with a deviation of 0.2 of ImageNet's, cut off at 0.25."""


class PeakStability(StreamingMetric, measured=stability.PeakStability):
    """Share of the images in which a little noise leaves the peak in its cell, without landmarks; the noise is that of
    `Stability`."""


class Purity(StreamingMetric, measured=purity.Purity):
    """Largest share of a filter's 10 strongest images whose peak lies at one and the same part. Source: Nauta et al.,
    CVPR 2023."""


class MutualInformationScore(StreamingMetric, measured=mutual_information_score.MutualInformationScore):
    """Mutual information of a filter's mean activation and the category of the image, the largest over categories, over
    all images, also those without object. Source: Liang et al., ECCV 2020."""


class AblationOwn(StreamingMetric, measured=ablation.AblationOwn):
    """Mean rise of the classification loss on images of a filter's category when the filter's map is set to zero."""


class AblationOthers(StreamingMetric, measured=ablation.AblationOthers):
    """Mean absolute change of the classification loss on all other images when a filter's map is set to zero."""


class ActivationEntropy(StreamingMetric, measured=activation_entropy.ActivationEntropy):
    """Mean over images of the entropy of a filter's map over its cells; 0 is a single cell, 1 is flat."""
