"""Entropy of the activation map: over how many cells a filter's activation is spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ipcnn_ray.core.metrics import FilterMeasure


def map_entropy(x_NCHW: Tensor) -> Tensor:
    """-sum_ij p_ij log p_ij / log(n^2) with p = x / sum x, of each map after ReLU, as [N, C] float64.

    0: all activation in one cell; 1: the same in all cells; NaN: a map that is zero. Maps have at least 2 cells.
    """
    x_NCP = x_NCHW.double().flatten(2)
    cells = x_NCP.shape[2]
    if cells < 2:
        raise ValueError(f"x_NCHW has maps of {cells} cell: expected at least 2")
    if bool((x_NCP < 0).any()):
        raise ValueError("x_NCHW has negative entries: expected maps after ReLU")
    p_NCP = x_NCP / x_NCP.sum(2, keepdim=True)
    entropy_NC: Tensor = torch.special.entr(p_NCP).sum(2)
    return entropy_NC / math.log(cells)


def activation_entropy(entropy_NC: Tensor) -> FilterMeasure:
    """Mean over images of `map_entropy`; lower is better. Maps that are zero are left out; a filter that has no other
    is dropped.

    Source: Shannon's entropy of the map taken as a distribution over cells, divided by its largest value, so that
    layers of different n compare. No paper of the field publishes it as a measure; Zhang et al., CVPR 2018, section
    3.2, ask for it to be low (their second entropy, of a map over the positions of a part). The maps are those before
    the mask, which would concentrate any map.
    """
    return FilterMeasure(entropy_NC.double().nanmean(0))
