"""A layer for metrics, and a metric of another package."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext
from ipcnn_ray.core.metrics.landmark_tracking import SHUFFLES
from ipcnn_ray.core.receptive_field import Field
from ipcnn_ray.spec.extensions import METRICS

LAYER = LayerContext(image_size=1, map_side=8, field=Field(4, 9, 1.5))
"""With a side of one pixel, shares of the image's side are pixels."""


class Sparsity(FilterMetric):
    name = "sparsity"
    unit = "share of cells"
    better = "higher"
    description = "cells of the filter's map that are zero"

    def update(self, maps_NCHW: Tensor) -> Tensor:
        return (maps_NCHW == 0).double().mean((2, 3))

    def compute(self, state: Tensor) -> Tensor:
        return state.mean(0)


class WrongShape(FilterMetric):
    name = "wrong_shape"
    unit = "share"
    better = "lower"
    description = "one number in place of one per filter"

    def compute(self, activation_NC: Tensor) -> Tensor:
        return activation_NC.mean()


def not_a_metric() -> None: ...


class Everything(FilterMetric):
    """The number of its inputs, where their shapes are right."""

    name = "everything"
    unit = "inputs"
    better = "higher"
    description = "number of inputs with the right shape"
    images = "validation"

    def update(
        self, maps_NCHW: Tensor, masked_maps_NCHW: Tensor, threshold_C: Tensor, part_masks_NKSS: Tensor
    ) -> Tensor:
        N, C, _, _ = maps_NCHW.shape
        assert masked_maps_NCHW.shape == maps_NCHW.shape and threshold_C.shape == (C,)
        assert part_masks_NKSS.shape[0] == N and part_masks_NKSS.shape[2:] == (self.layer.image_size,) * 2
        return torch.ones(N)

    def compute(
        self,
        state: Tensor,
        peaks_NC2: Tensor,
        activation_NC: Tensor,
        pooled_NC: Tensor,
        label_N: Tensor,
        landmarks_NK2: Tensor,
        parts_shown_NK: Tensor,
        noisy_peaks_NC2: Tensor,
        loss_change_NC: Tensor,
        own_NC: Tensor,
        in_training_N: Tensor,
        tracking_CK: Tensor,
        tracking_few_CK: Tensor,
        tracking_shuffled_CRK: Tensor,
    ) -> Tensor:
        N, C, K = len(state), activation_NC.shape[1], landmarks_NK2.shape[1]
        right = [
            state.shape == (N,),
            peaks_NC2.shape == noisy_peaks_NC2.shape == (N, C, 2),
            activation_NC.shape == pooled_NC.shape,
            label_N.shape == (N,),
            landmarks_NK2.shape == (N, K, 2),
            parts_shown_NK.shape == (N, K),
            loss_change_NC.shape == own_NC.shape,
            in_training_N.shape == (N,),
            tracking_CK.shape == tracking_few_CK.shape == (C, K),
            tracking_shuffled_CRK.shape == (C, SHUFFLES, K),
        ]
        assert all(right), right
        return torch.full((own_NC.shape[1],), float(len(self.compute_inputs())))


class EverythingOfObjects(Everything):
    images = "objects"


class UpperParts(FilterMetric):
    """Needs data with part sizes, the threshold, and the masked maps."""

    name = "upper_parts"
    unit = "share of images"
    better = "higher"
    description = "images with a part and a cell above the threshold"

    def update(self, masked_maps_NCHW: Tensor, threshold_C: Tensor, part_masks_NKSS: Tensor) -> Tensor:
        above_NC = (masked_maps_NCHW > threshold_C[:, None, None]).any(3).any(2)
        return above_NC & part_masks_NKSS.flatten(1).any(1)[:, None]

    def compute(self, state: Tensor, parts_shown_NK: Tensor) -> Tensor:
        return state[parts_shown_NK.any(1)].double().mean(0)


def install(monkeypatch, **metrics: str) -> None:
    """Install entry points of METRICS for one test: name -> attribute of this module."""
    points = {name: EntryPoint(name, f"fakes.metrics:{where}", METRICS.group) for name, where in metrics.items()}
    monkeypatch.setitem(METRICS.__dict__, "_external", points)
