"""The measures beside location instability that a run asks for, taken in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.core.classification import Form, classification_loss
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.metrics import FilterMeasure, of_own_category
from ipcnn_ray.core.metrics import consistency as consistent
from ipcnn_ray.core.metrics import part_interpretability as parts
from ipcnn_ray.core.metrics import purity as pure
from ipcnn_ray.core.metrics.ablation import ablation, own_category, spread
from ipcnn_ray.core.metrics.activation_entropy import activation_entropy, map_entropy
from ipcnn_ray.core.metrics.mutual_information_score import mutual_information_score
from ipcnn_ray.core.metrics.stability import pixel_noise, stability
from ipcnn_ray.core.receptive_field import Field, centers
from ipcnn_ray.data.batches import Batch
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.models.net import InterpretableNet, Output
from ipcnn_ray.spec.metric_info import ABLATIONS, MeasureName
from ipcnn_ray.train.distributed_inference import item_rows
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.runtime import Runtime

if TYPE_CHECKING:
    from ipcnn_ray.train.evaluate import EvaluationPlan

Found = dict[MeasureName, dict[str, FilterMeasure]]
"""Measure -> interpretable layer -> what was found."""


@dataclass(frozen=True)
class MetricsConfig:
    """Which measures, and what they depend on."""

    measures: tuple[MeasureName, ...] = ()
    seed: int = 0
    """Of the noise of `stability`."""
    ablation_filters: int | None = None
    """Filters of a layer that are ablated; None for all."""
    form: Form = "logistic"
    """Of the classification loss."""

    def check(self, store: CropStore) -> None:
        """DataError when the data lack what a measure needs."""
        if "part_interpretability" in self.measures and part_sizes(store) is None:
            what = "part_interpretability needs the size of every part, and these data tell only where parts are"
            advice = "Take data with part sizes, or leave it out of eval.measures (purity and consistency need none)."
            raise DataError([Issue("eval.measures", what, advice)])

    def rows(self, output: Output) -> dict[str, Tensor]:
        """What the measures need of every item of a batch, by name and layer."""
        found = {}
        for layer, x_NCHW in output.maps.items():
            if "activation_entropy" in self.measures:
                found[f"entropy {layer}"] = map_entropy(x_NCHW).nan_to_num(-1)  # -1: a map that is zero
            if self.measures:
                found[f"pooled {layer}"] = x_NCHW.mean((2, 3))
        return found


def part_sizes(store: CropStore) -> NDArray[np.float32] | None:
    """Height and width of the box of each landmark's part as shares of the crop, [N, K, 2], where they are known."""
    return None if bool(np.isnan(store.part_sizes_NK2).all()) else store.part_sizes_NK2


def peak_places(peak_NC: Tensor, field: Field, n: int) -> Tensor:
    """(row, col) in pixels, [N, C, 2] float64, of the centres of the receptive fields of cells row * n + col."""
    center_n = centers(field, n)
    return torch.stack([center_n[peak_NC // n], center_n[peak_NC % n]], 2)


def take(
    wanted: MetricsConfig,
    merged: Mapping[str, Tensor],
    inputs: InputPipeline,
    plan: EvaluationPlan,
    fields: Mapping[str, Field],
    runtime: Runtime,
    *,
    epoch: int,
    batch_size: int,
) -> Found:
    """All wanted measures, the same numbers on every rank.

    merged: rows of the plan's items: for each layer `peak`, `activation` and those of `Wanted.rows`.
    Peaks, entropies and part interpretability are of the plan's object images, with several categories of those of the
    filter's own (Zhang et al., CVPR 2018, section 5.2.1); the mutual information score and ablation of its validation
    items, each once, so that there are images of other classes.
    """
    names, net, store = wanted.measures, inputs.net, inputs.store
    found: Found = {name: {} for name in names}
    if not names:
        return found
    seen = plan.weight_I > 0
    objects = plan.items[plan.measured]
    label_V = torch.from_numpy(store.labels_N[plan.items[seen, 0]])
    label_N = torch.from_numpy(store.labels_N[objects[:, 0]])
    landmarks_NK2 = torch.from_numpy(store.landmarks_NK2[objects[:, 0]])
    box_side, patch_side = consistent.HALF_SIDE * store.size, pure.HALF_SIDE * store.size
    look = partial(item_rows, inputs, runtime=runtime, epoch=epoch, batch_size=batch_size)
    noisy: Mapping[str, Tensor] = {}
    if "stability" in names:
        noisy = look(objects, look=_noisy_peaks(inputs, objects, wanted.seed), crops=True)
    hits: Mapping[str, Tensor] = {}
    if "part_interpretability" in names:
        hits = _hits(look, inputs, objects, fields, runtime)
    ablated: Mapping[str, Tensor] = {}
    if set(ABLATIONS) & set(names):
        ablated = look(plan.items[seen], look=_ablated(inputs, wanted.ablation_filters))

    def over_objects(layer: str) -> dict[MeasureName, Callable[[Tensor], FilterMeasure]]:
        """The measures over those of the object images that a mask [N] picks."""
        place = partial(peak_places, field=fields[layer], n=net.shape(layer)[1])
        peaks_NC2 = place(merged[f"peak {layer}"][plan.measured])
        activation_NC = merged[f"activation {layer}"][plan.measured]
        found: dict[MeasureName, Callable[[Tensor], FilterMeasure]] = {
            "consistency": lambda of: consistent.consistency(peaks_NC2[of], landmarks_NK2[of], box_side),
            "purity": lambda of: pure.purity(peaks_NC2[of], activation_NC[of], landmarks_NK2[of], patch_side),
        }
        if "stability" in names:
            noisy_NC2 = place(noisy[layer])
            found["stability"] = lambda of: stability(peaks_NC2[of], noisy_NC2[of], landmarks_NK2[of], box_side)
        if "part_interpretability" in names:
            shown_NK = ~_boxes(store, objects).isnan().any(3).any(0)
            found["part_interpretability"] = lambda of: parts.part_interpretability(hits[layer][of], shown_NK[of])
        if "activation_entropy" in names:
            entropy_NC = merged[f"entropy {layer}"][plan.measured]
            entropy_NC = entropy_NC.where(entropy_NC >= 0, torch.nan)
            found["activation_entropy"] = lambda of: activation_entropy(entropy_NC[of])
        return found

    for layer in net.interpretable:
        own_C = own_category(merged[f"pooled {layer}"][plan.measured], label_N, torch.unique(label_N))
        for name, over in over_objects(layer).items():
            if name in names:
                found[name][layer] = of_own_category(over, label_N, own_C)
        if "mutual_information_score" in names:
            pooled_VC = merged[f"pooled {layer}"][seen]
            found["mutual_information_score"][layer] = mutual_information_score(pooled_VC, label_V)
        if ablated:
            own_F = own_C[spread(len(own_C), wanted.ablation_filters)]
            loss_V = classification_loss(ablated["intact"].double(), label_V, wanted.form)
            ablated_VFL = ablated[layer].double()
            label_of_each = label_V.repeat_interleave(ablated_VFL.shape[1])
            ablated_loss = classification_loss(ablated_VFL.flatten(0, 1), label_of_each, wanted.form)
            ablated_loss_VF = ablated_loss.view(ablated_VFL.shape[:2])
            effects = ablation(loss_V, ablated_loss_VF, label_V[:, None] == own_F)
            for name, effect in zip(ABLATIONS, effects, strict=True):
                if name in names:
                    found[name][layer] = effect
    return found


def _noisy_peaks(inputs: InputPipeline, items: Items, seed: int) -> Any:
    """A look at images with noise: by layer the cell of each map's peak."""

    def look(batch: Batch, number_b: NDArray[np.int64]) -> dict[str, Tensor]:
        indices = items[number_b % len(items), 0].tolist()
        noise_b3SS = torch.stack([pixel_noise(seed, index, inputs.store.size) for index in indices])
        output = inputs.net(inputs.changed_rows(batch, noise_b3SS), from_features=True, full=True)
        return {layer: peak_NC(score_NCHW) for layer, score_NCHW in output.scores.items()}

    return look


def _ablated(inputs: InputPipeline, most: int | None) -> Any:
    """A look at the scores: intact [b, L], and by layer without one filter each, [b, F, L]."""

    def look(batch: Batch, number_b: NDArray[np.int64]) -> dict[str, Tensor]:
        output = inputs.net(inputs.rows(batch), from_features=True, full=True)
        found = {"intact": output.logits_NL}
        for layer, x_NCHW in output.passed.items():
            filters = spread(x_NCHW.shape[1], most).tolist()
            found[layer] = torch.stack([_without(inputs.net, layer, x_NCHW, c, output.logits_NL) for c in filters], 1)
        return found

    return look


def _without(net: InterpretableNet, layer: str, x_NCHW: Tensor, c: int, intact_NL: Tensor) -> Tensor:
    """Scores with the map of filter c set to zero; those of images in which it is zero already stay as they are."""
    live_N = x_NCHW[:, c].flatten(1).any(1)
    ablated_NL = intact_NL.clone()
    if bool(live_N.any()):
        changed = x_NCHW[live_N]
        changed[:, c] = 0
        ablated_NL[live_N] = cast(Output, net(changed, above=layer, full=True)).logits_NL
    return ablated_NL


def passed_maps(output: Output, layer: str) -> Tensor:
    """What a layer passes on; where it is pooled before it is masked, its map after ReLU, whose cells have the layer's
    receptive fields."""
    passed, scores = output.passed[layer], output.scores[layer]
    return passed if passed.shape == scores.shape else torch.relu(scores)


def _boxes(store: CropStore, items: Items) -> Tensor:
    """Centres and sizes in pixels of the parts' boxes in items that are not mirrored, [2, N, K, 2]."""
    sizes = part_sizes(store)
    assert sizes is not None  # Wanted.check
    numbers = (store.landmarks_NK2, sizes * store.size)
    return torch.stack([torch.from_numpy(one[items[:, 0]]) for one in numbers])


def _hits(
    look: Any, inputs: InputPipeline, items: Items, fields: Mapping[str, Field], runtime: Runtime
) -> dict[str, Tensor]:
    """By layer whether each filter's region hits each part in each object image, [N, C, K] bool.

    The threshold is taken over all object images; with several categories, that is not the filter's own alone.

    Two looks: the first finds every filter's threshold over all images of all workers, the second compares.
    """
    net, store, count = inputs.net, inputs.store, len(items)
    tops = {}
    for layer in net.interpretable:
        C, n, _ = net.shape(layer)
        tops[layer] = torch.full((C, parts.values_above(count, n) + 1), -torch.inf, device=inputs.device)

    def first(batch: Batch, number_b: NDArray[np.int64]) -> dict[str, Tensor]:
        real = torch.from_numpy(number_b < count).to(inputs.device)
        output = net(inputs.rows(batch), from_features=True, full=True)
        for layer in tops:
            tops[layer] = parts.top_values(passed_maps(output, layer)[real], tops[layer])
        return {}

    look(items, look=first)
    thresholds = {}
    for layer, top_CM in tops.items():
        all_CM = runtime.gather(top_CM).transpose(0, 1).flatten(1)
        thresholds[layer] = all_CM.topk(top_CM.shape[1], dim=1).values[:, -1]
    rounds = {
        layer: parts.round_fields(fields[layer], net.shape(layer)[1], store.size, parts.DIAMETER * store.size)
        for layer in tops
    }
    rounds = {layer: round_PSS.float().to(inputs.device) for layer, round_PSS in rounds.items()}
    boxes_2NK2 = _boxes(store, items)

    def second(batch: Batch, number_b: NDArray[np.int64]) -> dict[str, Tensor]:
        output = net(inputs.rows(batch), from_features=True, full=True)
        maps = {layer: passed_maps(output, layer) for layer in tops}
        found: dict[str, list[Tensor]] = {layer: [] for layer in tops}
        for row, number in enumerate((number_b % count).tolist()):
            masks_KSS = parts.part_boxes(boxes_2NK2[0, number], boxes_2NK2[1, number], store.size).to(inputs.device)
            for layer, x_NCHW in maps.items():
                found[layer].append(parts.part_hits(x_NCHW[row], thresholds[layer], rounds[layer], masks_KSS))
        return {layer: torch.stack(rows) for layer, rows in found.items()}

    merged: dict[str, Tensor] = look(items, look=second)
    return merged
