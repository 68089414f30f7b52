"""Entropy of the activation map against numbers by hand and a loop."""

from __future__ import annotations

import math

import pytest
import torch
from fakes.metrics import LAYER

from ipcnn_ray.core.metrics.activation_entropy import ActivationEntropy
from ipcnn_ray.core.metrics.filter_metric import MetricResult

ENTROPY = ActivationEntropy(LAYER)


def test_entropy_by_hand():
    one, half, flat, zero = (torch.zeros(2, 2) for _ in range(4))
    one[1, 0] = 7.0
    half[0] = 3.0  # two of four cells: log 2 / log 4
    flat[:] = 0.1
    x_NCHW = torch.stack([torch.stack([one, half]), torch.stack([flat, zero])])
    entropy_NC = ENTROPY.update(x_NCHW)
    assert entropy_NC.flatten().tolist() == pytest.approx([0, 0.5, 1, math.nan], abs=1e-7, nan_ok=True)
    found = MetricResult(ENTROPY.compute(entropy_NC))
    assert found.per_filter_C.tolist() == pytest.approx([0.5, 0.5], abs=1e-7)


def test_entropy_equals_a_loop_and_a_dead_filter_is_dropped():
    generator = torch.Generator().manual_seed(4)
    x_NCHW = torch.randn(6, 3, 5, 5, generator=generator).relu()
    x_NCHW[:, 2] = 0
    x_NCHW[1, 0] = 0
    found = MetricResult(ENTROPY.compute(ENTROPY.update(x_NCHW)))
    for c in range(2):
        entropies = []
        for i in range(6):
            cells = x_NCHW[i, c].flatten().tolist()
            if sum(cells):
                shares = [cell / sum(cells) for cell in cells]
                entropies.append(-sum(p * math.log(p) for p in shares if p) / math.log(25))
        assert float(found.per_filter_C[c]) == pytest.approx(sum(entropies) / len(entropies), rel=1e-6)
    assert found.dropped == 1 and math.isnan(float(found.per_filter_C[2]))


def test_entropy_names_wrong_maps():
    with pytest.raises(ValueError, match="maps_NCHW has negative entries: expected maps after ReLU"):
        ENTROPY.update(-torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="maps_NCHW has maps of 1 cell: expected at least 2"):
        ENTROPY.update(torch.ones(1, 1, 1, 1))
