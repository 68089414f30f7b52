"""Evaluation after an epoch: validation error and the metrics of interpretability.

The inputs of the metrics have the names of `core/metrics/filter_metric.py`. Peaks, activations and pooled maps come
from the evaluation's own forward pass; the inputs that take further passes are computed when a metric needs them, once
for all metrics and layers. Only landmark tracking, which several metrics share, is named here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import isnan, nan
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.core.classification import ClassificationCounts, classification_loss
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext, MetricResult, filter_category
from ipcnn_ray.core.metrics.landmark_tracking import Tracking, best_tracking, followed_landmark, tracking_of_categories
from ipcnn_ray.core.metrics.part_positions import part_boxes
from ipcnn_ray.core.metrics.stability import pixel_noise
from ipcnn_ray.core.receptive_field import cells_above, peak_positions, top_values
from ipcnn_ray.data.batches import Batch, to_device
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import DataError, Issue, TrainingError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.models.net import InterpretableNet, NetOutput
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.extensions import EVERY_RUN, INSTABILITY, METRICS
from ipcnn_ray.train.distributed_inference import EvaluationPlan, infer
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.runtime import Runtime

LATE_INPUTS = frozenset({"threshold_C", "part_masks_NKSS"})
"""Inputs of `update` that are not there in the evaluation's own forward pass."""


def metric_classes(spec: ExperimentSpec) -> dict[str, type[FilterMetric]]:
    """Return the metrics of a spec by name: those that every run records, and those of `eval.measures`.

    Without landmarks, of those that every run records only the ones that need none.
    """
    every_run = {name: METRICS.load(name) for name in EVERY_RUN}
    measured = {
        name: metric for name, metric in every_run.items() if spec.data.landmarks or not metric.needs_landmarks()
    }
    return {**measured, **{name: METRICS.load(name) for name in spec.eval.measures}}


def check_metrics(spec: ExperimentSpec, store: CropStore) -> None:
    """Raise DataError when the data lack what a metric needs, or have less than one batch."""
    issues, count = [], len(store.train_items)
    if count < spec.train.batch_size and spec.train.epochs:
        what = f"train.batch_size = {spec.train.batch_size} is more than the {count} training items"
        issues.append(Issue("train.batch_size", what, "No batch would ever be full: take a smaller one, or more data."))
    if spec.data.landmarks and bool(np.isnan(store.landmarks_NK2).all()):
        what = f"no image shows {' or '.join(spec.data.landmarks)}"
        issues.append(Issue("data.landmarks", what, "Take landmarks that the data have."))
    for name, metric in metric_classes(spec).items():
        if metric.needs_part_sizes() and bool(np.isnan(store.part_sizes_NK2).all()):
            what = f"{name} needs the size of every part, and these data tell only where parts are"
            advice = f"Take data with part sizes, or leave {name} out of eval.measures."
            issues.append(Issue("eval.measures", what, advice))
        if metric.images == "validation" and len(np.unique(store.labels_N[store.val_items[:, 0]])) < 2:
            what = f"{name} compares categories, and the validation items are all of one"
            advice = f"Take data with negatives or several categories, or leave {name} out of eval.measures."
            issues.append(Issue("eval.measures", what, advice))
    if issues:
        raise DataError(issues)


@dataclass(frozen=True)
class FilterSummary:
    """What a filter follows. Of data without landmarks only the category is known."""

    filter: int
    """Index, from 0."""
    category: str
    """The category whose images activate it the most; tracking is measured on these images."""
    landmark: str | None
    """The landmark that it follows the most; None when it follows none."""
    tracking: float
    """Its `landmark_tracking`; NaN when no landmark could be measured."""
    instability: float
    """Its location instability, share of the image diagonal; NaN when it could not be measured."""
    offset: tuple[float, float] | None = None
    """Mean of landmark - peak over the images that tracking is measured on, (row, col), shares of the crop's side; None
    when it follows no landmark."""
    offset_deviation: tuple[float, float] | None = None
    """Standard deviation of landmark - peak by axis, over the same images; share of the crop's side."""


@dataclass(frozen=True)
class Evaluation:
    counts: ClassificationCounts
    """Over the validation items, repeats counted."""
    metrics: Mapping[str, Mapping[str, MetricResult]]
    """By metric and interpretable layer."""
    filters: Mapping[str, Sequence[FilterSummary]]
    """By interpretable layer, in the order of the filters."""
    landmark_names: tuple[str, ...]

    def following(self, layer: str) -> dict[str, int]:
        """Return the number of filters that follow each landmark; a filter counts for the one that it follows most."""
        counts = Counter(summary.landmark for summary in self.filters[layer])
        return {name: counts[name] for name in self.landmark_names}

    def filters_json(self, epoch: int) -> str:
        """Return the filters of all layers as JSON; `null` stands for what could not be measured."""
        layers = {layer: [_finite(asdict(row)) for row in rows] for layer, rows in self.filters.items()}
        return json.dumps({"epoch": epoch, "layers": layers}, indent=1)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and isnan(value) else value for key, value in row.items()}


def evaluate(
    inputs: InputPipeline, plan: EvaluationPlan, spec: ExperimentSpec, runtime: Runtime, *, epoch: int
) -> Evaluation:
    """Evaluate the network of `inputs` in float32; every rank gets the same numbers.

    Raises TrainingError when the network's outputs are not finite, or when a metric does not give one number per
    filter.
    """
    batch_size = max(1, spec.train.batch_size // runtime.world_size)
    run = partial(infer, inputs, runtime=runtime, epoch=epoch, batch_size=batch_size)
    metrics = Metrics(spec, inputs, plan, runtime, run)

    def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
        output = inputs.output(batch)
        return {"logits": output.logits_NL, **metrics.rows(output)}

    rows = run(plan.items, forward=forward)
    label_I = torch.from_numpy(inputs.store.labels_N[plan.items[:, 0]])
    validation = plan.validation_positions
    counts = ClassificationCounts.of(
        rows["logits"][validation], label_I[validation], plan.weight_I[validation], spec.loss.classification
    )
    results = metrics.compute(rows)
    return Evaluation(counts, results, metrics.filters(results), inputs.store.landmark_names)


@dataclass(frozen=True, eq=False)
class Images:
    """The images that a metric is computed on: the object images, or the validation items."""

    positions: Tensor
    """In the items of the evaluation."""
    items: Items
    label_N: Tensor


class Metrics:
    """The metrics of all interpretable layers in one evaluation.

    Call `rows` for every batch of the evaluation's forward pass, merge the results over the workers, then call
    `compute`. infer: `distributed_inference.infer` of these inputs.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        inputs: InputPipeline,
        plan: EvaluationPlan,
        runtime: Runtime,
        infer: Callable[..., dict[str, Tensor]],
    ) -> None:
        self._spec, self._inputs, self._net, self._store = spec, inputs, inputs.net, inputs.store
        self._runtime, self._infer = runtime, infer
        self._objects = self._images(plan, plan.object_positions)
        self._validation = self._images(plan, plan.validation_positions)
        self._fields = {layer: layer_receptive_field(spec.model, layer) for layer in self._net.interpretable}
        size, top_images, rule = self._store.size, spec.eval.top_images, spec.eval.instability
        contexts = {
            layer: LayerContext(size, self._net.shape(layer)[1], field, top_images, rule)
            for layer, field in self._fields.items()
        }
        self._metrics = {
            name: {layer: metric(context) for layer, context in contexts.items()}
            for name, metric in metric_classes(spec).items()
        }
        self._rows: Mapping[str, Tensor] = {}
        # Each pass runs once. A cached method would keep the object alive.
        self._noisy_peaks = cache(self._noisy_pass)
        self._loss_changes = cache(self._ablation_passes)
        self._tracking = cache(self._tracking_of_layer)
        self._thresholds = cache(self._threshold_pass)
        self._late_states = cache(self._late_update_pass)

    def _images(self, plan: EvaluationPlan, positions: Tensor) -> Images:
        items = plan.items[positions.numpy()]
        return Images(positions, items, torch.from_numpy(self._store.labels_N[items[:, 0]]))

    def _images_of(self, metric: FilterMetric) -> Images:
        return self._validation if metric.images == "validation" else self._objects

    def rows(self, output: NetOutput) -> dict[str, Tensor]:
        """Return what the metrics need of each image of a batch, by name and layer."""
        rows = {}
        for layer, score_NCHW in output.scores.items():
            rows[f"peak {layer}"] = peak_NC(score_NCHW)
            rows[f"activation {layer}"] = score_NCHW.amax((2, 3))
            rows[f"pooled {layer}"] = output.maps[layer].mean((2, 3))
            for name, by_layer in self._metrics.items():
                metric = by_layer[layer]
                if metric.update_inputs() and not _is_late(metric):
                    rows[f"state {name} {layer}"] = _update(metric, output, layer)
        return rows

    def compute(self, rows: Mapping[str, Tensor]) -> dict[str, dict[str, MetricResult]]:
        """Metric -> interpretable layer -> result, the same on every rank.

        rows: what `rows` gave, of all items of the plan.
        Raises TrainingError when a metric does not give one number per filter.
        """
        self._rows = rows
        return {
            name: {layer: self._measure(metric, layer) for layer, metric in by_layer.items()}
            for name, by_layer in self._metrics.items()
        }

    def filters(self, results: Mapping[str, Mapping[str, MetricResult]]) -> dict[str, tuple[FilterSummary, ...]]:
        """Return what the filters of each interpretable layer follow. results: what `compute` returned."""
        if INSTABILITY not in results:
            return {layer: self._categories_of(layer) for layer in self._fields}
        instability = results[INSTABILITY]
        return {layer: self._filters_of(layer, instability[layer].per_filter_C) for layer in self._fields}

    def _categories_of(self, layer: str) -> tuple[FilterSummary, ...]:
        categories = [self._store.categories[label] for label in self._category(layer).tolist()]
        return tuple(FilterSummary(c, category, None, nan, nan) for c, category in enumerate(categories))

    def _filters_of(self, layer: str, instability_C: Tensor) -> tuple[FilterSummary, ...]:
        tracked = self._tracking(layer)
        tracking_CK, landmark_C = tracked.strongest_CK, followed_landmark(tracked.strongest_CK)
        columns_C = (self._category(layer), landmark_C, best_tracking(tracking_CK), instability_C)
        rows = list(zip(*(column_C.tolist() for column_C in columns_C), strict=True))
        categories, names = self._store.categories, self._store.landmark_names

        def summary(c: int, category: int, k: int, tracking: float, instability: float) -> FilterSummary:
            if k < 0:
                return FilterSummary(c, categories[category], None, tracking, instability)
            offset, deviation = (
                (float(of_CK2[c, k, 0]) / self._store.size, float(of_CK2[c, k, 1]) / self._store.size)
                for of_CK2 in (tracked.offset_CK2, tracked.offset_deviation_CK2)
            )
            return FilterSummary(c, categories[category], names[k], tracking, instability, offset, deviation)

        return tuple(summary(c, *row) for c, row in enumerate(rows))

    def _measure(self, metric: FilterMetric, layer: str) -> MetricResult:
        images = self._images_of(metric)
        values = {name: self._input(name, metric, layer, images) for name in metric.compute_inputs()}
        category_C = self._category(layer) if metric.images == "own_category" else torch.empty(0)
        filters = len(self._ablated(layer)) if metric.ablates() else self._net.shape(layer)[0]
        with _naming_package(metric):
            return metric.measure(values, filters, label_N=images.label_N, category_C=category_C)

    def _input(self, name: str, metric: FilterMetric, layer: str, images: Images) -> Tensor:
        match name:
            case "state" if _is_late(metric):
                return self._late_states(images)[f"state {metric.name} {layer}"]
            case "state":
                return self._rows[f"state {metric.name} {layer}"][images.positions]
            case "peaks_NC2":
                return self._peaks(self._rows[f"peak {layer}"][images.positions], layer)
            case "activation_NC":
                return self._rows[f"activation {layer}"][images.positions]
            case "pooled_NC":
                return self._rows[f"pooled {layer}"][images.positions]
            case "label_N":
                return images.label_N
            case "landmarks_NK2":
                return torch.from_numpy(self._store.landmarks_of(images.items))
            case "parts_shown_NK":
                return ~torch.stack(_boxes(self._store, images.items)).isnan().any(3).any(0)
            case "noisy_peaks_NC2":
                return self._peaks(self._noisy_peaks(images)[layer], layer)
            case "loss_change_NC":
                return self._loss_changes(images)[layer]
            case "own_NC":
                filters = self._ablated(layer) if metric.ablates() else slice(None)
                return images.label_N[:, None] == self._category(layer)[filters]
            case "in_training_N":
                return torch.from_numpy(np.isin(images.items[:, 0], self._store.train_items[:, 0]))
            case "tracking_CK":
                return self._tracking(layer).strongest_CK
            case "tracking_few_CK":
                return self._tracking(layer).few_CK
            case "tracking_shuffled_CRK":
                return self._tracking(layer).shuffled_CRK
        raise AssertionError(name)

    def _tracking_of_layer(self, layer: str) -> Tracking:
        objects = self._objects
        return tracking_of_categories(
            self._peaks(self._rows[f"peak {layer}"][objects.positions], layer),
            self._rows[f"activation {layer}"][objects.positions],
            torch.from_numpy(self._store.landmarks_of(objects.items)),
            objects.label_N,
            self._category(layer),
            top_images=self._spec.eval.top_images,
            few_images=self._spec.eval.few_images,
        )

    def _peaks(self, peak_NC: Tensor, layer: str) -> Tensor:
        return peak_positions(peak_NC, self._fields[layer], self._net.shape(layer)[1])

    def _category(self, layer: str) -> Tensor:
        """Return the category of each filter, [C]."""
        pooled_NC, label_N = self._rows[f"pooled {layer}"][self._objects.positions], self._objects.label_N
        return filter_category(pooled_NC, label_N, torch.unique(label_N))

    def _ablated(self, layer: str) -> Tensor:
        return ablated_filters(self._net.shape(layer)[0], self._spec.eval.ablation_filters)

    def _noisy_pass(self, images: Images) -> dict[str, Tensor]:
        """By layer the cell of each map's peak in images with noise, [N, C]."""
        items = images.items

        def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
            indices = items[position_b % len(items), 0].tolist()
            noise_b3SS = torch.stack([pixel_noise(self._spec.seed, index, self._store.size) for index in indices])
            output = self._inputs.output(batch, noise_b3SS)
            return {layer: peak_NC(score_NCHW) for layer, score_NCHW in output.scores.items()}

        return self._infer(items, forward=forward, crops=True)

    def _ablation_passes(self, images: Images) -> dict[str, Tensor]:
        """By layer the change of the classification loss without one filter each, [N, F] float64."""

        def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
            output = self._inputs.output(batch)
            logits = {"intact": output.logits_NL}
            for layer, x_NCHW in output.passed.items():
                filters = self._ablated(layer).tolist()
                without = [_logits_without(self._net, layer, x_NCHW, c, output.logits_NL) for c in filters]
                logits[layer] = torch.stack(without, 1)
            return logits

        form, label_N = self._spec.loss.classification, images.label_N
        logits = self._infer(images.items, forward=forward)
        loss_N = classification_loss(logits.pop("intact").double(), label_N, form)
        changes = {}
        for layer, ablated_NFL in logits.items():
            N, F, _ = ablated_NFL.shape
            label_X = label_N.repeat_interleave(F)
            ablated_loss_X = classification_loss(ablated_NFL.double().flatten(0, 1), label_X, form)
            changes[layer] = ablated_loss_X.view(N, F) - loss_N[:, None]
        return changes

    def _threshold_pass(self, images: Images) -> dict[str, Tensor]:
        """By layer T_f of each filter over all images of all workers, [C]."""
        count, top_by_layer = len(images.items), {}
        for layer in self._net.interpretable:
            C, n, _ = self._net.shape(layer)
            top_by_layer[layer] = torch.full((C, cells_above(count, n) + 1), -torch.inf, device=self._inputs.device)

        def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
            real = to_device(torch.from_numpy(position_b < count), self._inputs.device)
            output = self._inputs.output(batch)
            for layer, top_CM in top_by_layer.items():
                top_by_layer[layer] = top_values(masked_maps(output, layer)[real], top_CM)
            return {}

        self._infer(images.items, forward=forward)
        thresholds = {}
        for layer, top_CM in top_by_layer.items():
            all_CM = self._runtime.gather(top_CM).transpose(0, 1).flatten(1)
            thresholds[layer] = all_CM.topk(top_CM.shape[1], dim=1).values[:, -1]
        return thresholds

    def _late_update_pass(self, images: Images) -> dict[str, Tensor]:
        """The states of the metrics whose `update` needs some of `LATE_INPUTS`, by metric and layer."""
        items = images.items
        late = {
            name: by_layer
            for name, by_layer in self._metrics.items()
            if _is_late(metric := next(iter(by_layer.values()))) and self._images_of(metric) is images
        }
        needs = {need for by_layer in late.values() for metric in by_layer.values() for need in metric.update_inputs()}
        thresholds = self._thresholds(images) if "threshold_C" in needs else {}
        boxes = _boxes(self._store, items) if "part_masks_NKSS" in needs else None

        def forward(batch: Batch, position_b: NDArray[np.int64]) -> dict[str, Tensor]:
            output = self._inputs.output(batch)
            extra = {}
            if boxes is not None:
                rows = (position_b % len(items)).tolist()
                masks = [part_boxes(boxes[0][row], boxes[1][row], self._store.size) for row in rows]
                extra["part_masks_NKSS"] = to_device(torch.stack(masks), self._inputs.device)
            states = {}
            for name, by_layer in late.items():
                for layer, metric in by_layer.items():
                    if layer in thresholds:
                        extra["threshold_C"] = thresholds[layer]
                    states[f"state {name} {layer}"] = _update(metric, output, layer, extra)
            return states

        return self._infer(items, forward=forward)


def _is_late(metric: FilterMetric) -> bool:
    return bool(LATE_INPUTS & set(metric.update_inputs()))


def _update(metric: FilterMetric, output: NetOutput, layer: str, extra: Mapping[str, Tensor] | None = None) -> Tensor:
    """Call `update` with the inputs that it takes. extra: those of `LATE_INPUTS`."""
    names, inputs = metric.update_inputs(), dict(extra or {})
    if "maps_NCHW" in names:
        inputs["maps_NCHW"] = output.maps[layer]
    if "masked_maps_NCHW" in names:
        inputs["masked_maps_NCHW"] = masked_maps(output, layer)
    with _naming_package(metric):
        return metric.update(**{name: inputs[name] for name in names})


@contextmanager
def _naming_package(metric: FilterMetric) -> Iterator[None]:
    """Raise an error in a metric of another package as a TrainingError that names the package."""
    try:
        yield
    except Exception as error:
        package = METRICS.provider(metric.name)
        if not package:
            raise
        text = f"{type(error).__name__}: {error}"
        raise TrainingError(f"metric {metric.name!r} of {package}: {text}\nUpdate that package.") from error


def masked_maps(output: NetOutput, layer: str) -> Tensor:
    """The maps that a layer passes on. Where it is pooled before the mask, its maps after ReLU, whose cells have the
    layer's receptive fields."""
    passed, scores = output.passed[layer], output.scores[layer]
    return passed if passed.shape == scores.shape else torch.relu(scores)


def ablated_filters(C: int, count: int | None) -> Tensor:
    """Indices of the filters to ablate: all C, or `count` of them at equal distances, the first among them."""
    if count is None or count >= C:
        return torch.arange(C)
    return torch.arange(count) * C // count


def _logits_without(net: InterpretableNet, layer: str, x_NCHW: Tensor, c: int, intact_NL: Tensor) -> Tensor:
    """Logits with the map of filter c set to zero. Those of images in which it is zero already are not recomputed."""
    live_N = x_NCHW[:, c].flatten(1).any(1)
    ablated_NL = intact_NL.clone()
    if bool(live_N.any()):
        changed = x_NCHW[live_N]
        changed[:, c] = 0
        ablated_NL[live_N] = cast(NetOutput, net(changed, above=layer, full=True)).logits_NL
    return ablated_NL


def _boxes(store: CropStore, items: Items) -> tuple[Tensor, Tensor]:
    """Centres and (height, width) in pixels of the boxes around the parts, each [N, K, 2]; NaN where unknown."""
    return torch.from_numpy(store.landmarks_of(items)), torch.from_numpy(store.part_sizes_NK2[items[:, 0]] * store.size)
