"""The mutual information score against numbers by hand and a loop over pairs of images."""

from __future__ import annotations

import math

import pytest
import torch
from fakes.metrics import LAYER
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import MetricResult
from ipcnn_ray.core.metrics.mutual_information_score import MutualInformationScore


def mutual_information_score(pooled_NC: Tensor, label_N: Tensor, **options: int) -> MetricResult:
    return MetricResult(MutualInformationScore(LAYER, **options).compute(pooled_NC, label_N))


def psi(whole: int) -> float:
    """The digamma function of a whole number."""
    return -0.5772156649015329 + sum(1 / i for i in range(1, whole))


def slow(values: list[float], member: list[bool], neighbors: int) -> float:
    """Ross's estimator, literally: for every image its k-th neighbour in its group, then all within that distance."""
    N = len(values)
    terms = []
    for i in range(N):
        own = sorted(abs(values[i] - values[j]) for j in range(N) if j != i and member[j] == member[i])
        k = min(neighbors, len(own))
        within = 1 + sum(abs(values[i] - values[j]) < own[k - 1] for j in range(N) if j != i)
        terms.append(psi(k) - psi(len(own) + 1) - psi(within))
    return max(0.0, psi(N) + sum(terms) / N)


def drawn(images: int, filters: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    label_N = torch.randint(0, classes, (images,), generator=generator)
    pooled_NC = torch.randn(images, filters, generator=generator, dtype=torch.float64)
    return pooled_NC + (label_N[:, None] == 1) * torch.linspace(0, 3, filters), label_N


def test_two_groups_apart_by_hand():
    # Two groups of 3, far apart: k = 2 is all of the own group, itself and one nearer one are within (k of them).
    # psi(6) + psi(2) - psi(3) - psi(2) = psi(6) - psi(3) = 1/3 + 1/4 + 1/5.
    pooled_NC = torch.tensor([[0.0], [1.0], [3.0], [100.0], [101.0], [103.0]])
    found = mutual_information_score(pooled_NC, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found.mean == pytest.approx(47 / 60, rel=1e-9)


def test_equals_a_loop():
    pooled_NC, label_N = drawn(40, 5, 2)
    found = mutual_information_score(pooled_NC, label_N, neighbors=3)
    member = (label_N == 1).tolist()
    expected = [slow(pooled_NC[:, c].tolist(), member, 3) for c in range(5)]
    assert expected[-1] > 0.2 > expected[0]
    assert found.per_filter_C.tolist() == pytest.approx(expected, abs=1e-9)


def test_of_several_classes_the_most_telling():
    pooled_NC, label_N = drawn(60, 4, 3)
    found = mutual_information_score(pooled_NC, label_N)
    by_class = [[slow(pooled_NC[:, c].tolist(), (label_N == one).tolist(), 3) for c in range(4)] for one in range(3)]
    assert found.per_filter_C.tolist() == pytest.approx([max(column) for column in zip(*by_class, strict=True)])


def test_neither_unit_nor_order_of_classes_matters():
    pooled_NC, label_N = drawn(50, 3, 2)
    one = mutual_information_score(pooled_NC, label_N)
    torch.testing.assert_close(mutual_information_score(pooled_NC * 1e4, label_N).per_filter_C, one.per_filter_C)
    torch.testing.assert_close(mutual_information_score(pooled_NC, 5 - label_N).per_filter_C, one.per_filter_C)


def test_dead_filters_tell_nothing_and_ties_do_not_break_it():
    pooled_NC, label_N = drawn(200, 3, 2)
    pooled_NC[:, 0] = 0.0
    pooled_NC[:, 1] = pooled_NC[:, 1].clamp(min=1.0)  # most of them equal
    found = mutual_information_score(pooled_NC, label_N)
    assert float(found.per_filter_C[0]) < 0.1
    assert bool(found.per_filter_C.isfinite().all())
    assert torch.equal(found.per_filter_C, mutual_information_score(pooled_NC, label_N).per_filter_C)


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [1, 0, 0, 0]])
def test_one_class_cannot_be_measured(labels):
    found = mutual_information_score(torch.arange(8.0).reshape(4, 2), torch.tensor(labels))
    assert found.dropped == 2 and math.isnan(found.mean)


def test_wrong_arguments_are_named():
    pooled_NC, label_N = drawn(10, 2, 2)
    with pytest.raises(ValueError, match=r"label_N has shape \(9,\): expected \[10\]"):
        mutual_information_score(pooled_NC, label_N[:9])
    with pytest.raises(ValueError, match="neighbors = 0: expected at least 1"):
        mutual_information_score(pooled_NC, label_N, neighbors=0)
    with pytest.raises(ValueError, match="pooled_NC has entries that are not finite"):
        mutual_information_score(pooled_NC / 0, label_N)
