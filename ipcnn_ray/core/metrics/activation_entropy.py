"""Activation entropy: over how many cells a filter's activation is spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric


class ActivationEntropy(FilterMetric):
    """Mean over images of the entropy of a filter's map, as a share of its largest value.

    Maps that are zero are left out; a filter that has no other is dropped.

    Source: Shannon's entropy of the map taken as a distribution over cells, divided by its largest value, so that
    layers of different n compare. No paper of the field publishes it as a measure; Zhang et al., CVPR 2018, section
    3.2, ask for it to be low (their second entropy, of a map over the positions of a part). The maps are those before
    the mask, which would concentrate any map.
    """

    name = "activation_entropy"
    unit = "share of log n^2"
    better = "lower"
    best = 0.0
    description = "entropy of the filter's map as a distribution over its cells; 0 is a single cell, 1 is flat"

    def update(self, maps_NCHW: Tensor) -> Tensor:
        """-sum_ij p_ij log p_ij / log(n^2) with p = x / sum x, of each map, as [N, C] float64.

        0: all activation in one cell; 1: the same in all cells; NaN: a map that is zero.
        """
        x_NCP = maps_NCHW.double().flatten(2)
        cells = x_NCP.shape[2]
        if cells < 2:
            raise ValueError(f"maps_NCHW has maps of {cells} cell: expected at least 2")
        if bool((x_NCP < 0).any()):
            raise ValueError("maps_NCHW has negative entries: expected maps after ReLU")
        p_NCP = x_NCP / x_NCP.sum(2, keepdim=True)
        entropy_NC: Tensor = torch.special.entr(p_NCP).sum(2)
        return entropy_NC / math.log(cells)

    def compute(self, state: Tensor) -> Tensor:
        return state.nanmean(0)
