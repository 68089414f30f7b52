"""Counts of the classification error by hand, merged, padded."""

from __future__ import annotations

import math

import pytest
import torch

from ipcnn_ray.core.classification import BinaryCounts, logistic_loss


def test_logistic_loss_by_hand():
    # s = log 3: label 1 gives log(1 + 1/3), label 0 gives log(1 + 3).
    logit_N = torch.tensor([math.log(3), math.log(3), 0.0])
    loss_N = logistic_loss(logit_N, torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(loss_N, torch.tensor([math.log(4 / 3), math.log(4), math.log(2)]))


def test_logistic_loss_of_large_scores_is_finite():
    loss_N = logistic_loss(torch.tensor([1e4, -1e4]), torch.tensor([1.0, 1.0]))
    assert loss_N.tolist() == [0.0, 1e4]


def test_counts_by_hand():
    counts = BinaryCounts.of(torch.tensor([2.0, -1.0, 3.0, -4.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert (counts.wrong, counts.seen, counts.error) == (2, 4, 0.5)
    expected = sum(math.log1p(math.exp(x)) for x in (-2, 1, 3, -4)) / 4
    assert counts.loss == pytest.approx(expected, rel=1e-9)


def test_a_score_of_zero_counts_as_negative():
    assert BinaryCounts.of(torch.zeros(2), torch.tensor([1.0, 0.0])).wrong == 1


def test_batches_and_workers_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    logit_N = torch.randn(13, generator=generator)
    label_N = (torch.rand(13, generator=generator) < 0.5).float()
    whole = BinaryCounts.of(logit_N, label_N)
    parts = BinaryCounts()
    for logits, labels in zip(logit_N.split(5), label_N.split(5), strict=True):
        parts = parts + BinaryCounts.of(logits, labels)
    assert (parts.wrong, parts.seen) == (whole.wrong, whole.seen)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)


def test_weights_repeat_and_leave_out():
    logit_N, label_N = torch.tensor([2.0, -1.0, 5.0]), torch.tensor([1.0, 1.0, 0.0])
    weighted = BinaryCounts.of(logit_N, label_N, torch.tensor([1.0, 2.0, 0.0]))
    repeated = BinaryCounts.of(logit_N[[0, 1, 1]], label_N[[0, 1, 1]])
    assert (weighted.wrong, weighted.seen) == (repeated.wrong, repeated.seen) == (2, 3)
    assert weighted.loss_sum == pytest.approx(repeated.loss_sum, rel=1e-12)


def test_nothing_seen_is_not_a_number():
    assert math.isnan(BinaryCounts().error) and math.isnan(BinaryCounts().loss)


@pytest.mark.parametrize(
    ("logit", "label", "weight", "text"),
    [
        ((3,), torch.zeros(2), None, r"logit_N has shape \(3,\) and label_N \(2,\): expected \[N\] and \[N\]"),
        ((3, 1), torch.zeros(3, 1), None, r"logit_N has shape \(3, 1\) and label_N \(3, 1\)"),
        ((2,), torch.tensor([-1.0, 1.0]), None, r"label_N has values \[-1\.0, 1\.0\]: expected 0 and 1"),
        ((2,), torch.zeros(2), torch.ones(2, 1), r"weight_N has shape \(2, 1\): expected \[2\]"),
    ],
)
def test_wrong_arguments_are_named(logit, label, weight, text):
    with pytest.raises(ValueError, match=text):
        BinaryCounts.of(torch.zeros(logit), label, weight)
