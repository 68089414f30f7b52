"""Share of the cells of a filter's map that are zero."""

from __future__ import annotations

from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric


class Sparsity(FilterMetric):
    """Mean over object images of the share of cells that are zero after ReLU; higher is better."""

    name = "sparsity"
    unit = "share of cells"
    better = "higher"
    description = "cells of the filter's map that are zero"

    def update(self, maps_NCHW: Tensor) -> Tensor:
        return (maps_NCHW == 0).double().mean((2, 3))

    def compute(self, state: Tensor) -> Tensor:
        return state.mean(0)
