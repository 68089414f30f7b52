"""Ablation, of the own and of other categories, against numbers by hand and a loop."""

from __future__ import annotations

import math

import pytest
import torch
from fakes.metrics import LAYER
from torch import Tensor

from ipcnn_ray.core.metrics.ablation import AblationOthers, AblationOwn
from ipcnn_ray.core.metrics.filter_metric import MetricResult


def ablation(loss_N: Tensor, ablated_loss_NC: Tensor, own_NC: Tensor) -> tuple[MetricResult, MetricResult]:
    change_NC = ablated_loss_NC.double() - loss_N.double()[:, None]
    own, others = AblationOwn(LAYER), AblationOthers(LAYER)
    return MetricResult(own.compute(change_NC, own_NC)), MetricResult(others.compute(change_NC, own_NC))


def test_ablation_by_hand():
    # Filter 0 is of the class of images 0 and 1; filter 1 of that of image 2.
    loss_N = torch.tensor([1.0, 2.0, 3.0])
    ablated_NC = torch.tensor([[1.5, 1.0], [2.1, 1.0], [2.0, 7.0]])
    own_NC = torch.tensor([[True, False], [True, False], [False, True]])
    own, others = ablation(loss_N, ablated_NC, own_NC)
    assert own.per_filter_C.tolist() == pytest.approx([(0.5 + 0.1) / 2, 4.0], abs=1e-6)
    assert others.per_filter_C.tolist() == pytest.approx([1.0, (0.0 + 1.0) / 2], abs=1e-6)


def test_ablation_equals_a_loop_and_drops_what_has_no_images():
    generator = torch.Generator().manual_seed(1)
    loss_N = torch.rand(20, generator=generator)
    ablated_NC = torch.rand(20, 5, generator=generator)
    own_NC = torch.rand(20, 5, generator=generator) < 0.5
    own_NC[:, 0], own_NC[:, 1] = True, False
    own, others = ablation(loss_N, ablated_NC, own_NC)
    for c in range(5):
        rises = [float(ablated_NC[i, c]) - float(loss_N[i]) for i in range(20) if own_NC[i, c]]
        moves = [abs(float(ablated_NC[i, c]) - float(loss_N[i])) for i in range(20) if not own_NC[i, c]]
        for found, values in ((own, rises), (others, moves)):
            expected = sum(values) / len(values) if values else math.nan
            assert float(found.per_filter_C[c]) == pytest.approx(expected, nan_ok=True)
    assert (own.dropped, others.dropped) == (1, 1)
    assert own.mean == pytest.approx(float(own.per_filter_C[[0, 2, 3, 4]].mean()))


def test_ablation_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"own_NC has shape \(3, 1\): expected \[3, 2\]"):
        ablation(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 1))
