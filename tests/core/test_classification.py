"""Classification losses and errors against numbers by hand, and convergence of error curves that a reader can draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

from ipcnn_ray.core.classification import (
    ClassificationCounts,
    area_under_error,
    classification_loss,
    epochs_to_converge,
    wrong_share,
)


def test_logistic_loss_by_hand():
    # s = log 3: the category gives log(1 + 1/3), a negative log(1 + 3).
    logit_NL = torch.tensor([math.log(3), math.log(3), 0.0])[:, None]
    loss_N = classification_loss(logit_NL, torch.tensor([0, -1, 0]))
    torch.testing.assert_close(loss_N, torch.tensor([math.log(4 / 3), math.log(4), math.log(2)]))
    # Several categories: the sum over each against the rest.
    logit_NL = torch.tensor([[math.log(3), 0.0], [math.log(3), -math.log(3)]])
    loss_N = classification_loss(logit_NL, torch.tensor([1, -1]))
    torch.testing.assert_close(loss_N, torch.tensor([math.log(4) + math.log(2), math.log(4) + math.log(4 / 3)]))
    # Large scores do not overflow.
    assert classification_loss(torch.tensor([[1e4], [-1e4]]), torch.tensor([0, 0])).tolist() == [0.0, 1e4]


def test_one_category_is_bit_for_bit_the_loss_of_one_score():
    torch.manual_seed(0)
    logit_N, there_N = torch.randn(50, requires_grad=True), (torch.rand(50) < 0.5).float()
    before = softplus(-(2 * there_N - 1) * logit_N)
    (gradient,) = torch.autograd.grad(before.sum(), logit_N)
    found = classification_loss(logit_N[:, None], there_N.long() - 1)
    assert torch.equal(found, before)
    assert torch.equal(torch.autograd.grad(found.sum(), logit_N)[0], gradient)
    assert torch.equal(wrong_share(logit_N[:, None], there_N.long() - 1), ((logit_N > 0) != (there_N > 0.5)).float())


def test_softmax_by_hand():
    # exp of the scores: 1, 3, 4 of 8.
    logit_NL = torch.tensor([[0.0, math.log(3), math.log(4)]]).repeat(3, 1)
    loss_N = classification_loss(logit_NL, torch.tensor([0, 1, 2]), "softmax")
    torch.testing.assert_close(loss_N, torch.tensor([math.log(8), math.log(8 / 3), math.log(2)]))
    assert wrong_share(logit_NL, torch.tensor([0, 1, 2]), "softmax").tolist() == [1, 1, 0]


def test_counts_by_hand():
    logit_NL = torch.tensor([2.0, -1.0, 3.0, -4.0])[:, None]
    counts = ClassificationCounts.of(logit_NL, torch.tensor([0, 0, -1, -1]))
    assert (counts.wrong, counts.seen, counts.error) == (2, 4, 0.5)
    expected = sum(math.log1p(math.exp(x)) for x in (-2, 1, 3, -4)) / 4
    assert counts.loss == pytest.approx(expected, rel=1e-9)
    assert ClassificationCounts.of(torch.zeros(2, 1), torch.tensor([0, -1])).wrong == 1, "0 counts as negative"
    assert math.isnan(ClassificationCounts().error) and math.isnan(ClassificationCounts().loss)


def released_error_binary(scores: list[list[float]], signs: list[list[int]]) -> float:
    """sum(predictions .* labels < 0) / number of labels, over the number of images."""
    pairs = [pair for row, classes in zip(scores, signs, strict=True) for pair in zip(row, classes, strict=True)]
    return sum(s * c < 0 for s, c in pairs) / len(scores[0]) / len(scores)


def test_the_error_of_several_is_the_released_one():
    torch.manual_seed(1)
    logit_NL, label_N = torch.randn(40, 3), torch.randint(-1, 3, (40,))
    signs = [[1 if k == label else -1 for k in range(3)] for label in label_N.tolist()]
    counts = ClassificationCounts.of(logit_NL, label_N)
    assert counts.error == pytest.approx(released_error_binary(logit_NL.tolist(), signs), rel=1e-12)
    assert ClassificationCounts.of(torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.tensor([3])).error == 0.75


@pytest.mark.parametrize("form", ["logistic", "softmax"])
def test_batches_and_workers_add_up_to_the_whole(form):
    generator = torch.Generator().manual_seed(0)
    logit_NL = torch.randn(13, 3, generator=generator)
    label_N = torch.randint(0, 3, (13,), generator=generator)
    whole = ClassificationCounts.of(logit_NL, label_N, form=form)
    parts = ClassificationCounts()
    for logits, labels in zip(logit_NL.split(5), label_N.split(5), strict=True):
        parts = parts + ClassificationCounts.of(logits, labels, form=form)
    assert parts.seen == whole.seen
    assert parts.wrong == pytest.approx(whole.wrong, rel=1e-12)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)


def test_weights_repeat_and_leave_out():
    logit_NL, label_N = torch.tensor([[2.0], [-1.0], [5.0]]), torch.tensor([0, 0, -1])
    weighted = ClassificationCounts.of(logit_NL, label_N, torch.tensor([1.0, 2.0, 0.0]))
    repeated = ClassificationCounts.of(logit_NL[[0, 1, 1]], label_N[[0, 1, 1]])
    assert (weighted.wrong, weighted.seen) == (repeated.wrong, repeated.seen) == (2, 3)
    assert weighted.loss_sum == pytest.approx(repeated.loss_sum, rel=1e-12)


@pytest.mark.parametrize(
    ("logit", "label", "weight", "form", "text"),
    [
        ((3, 1), [0, 0], None, "logistic", r"logit_NL has shape \(3, 1\) and label_N \(2,\): expected \[N, L\] and"),
        ((3,), [0, 0, 0], None, "logistic", r"logit_NL has shape \(3,\) and label_N \(3,\)"),
        ((2, 1), [-1, 1], None, "logistic", r"torch.int64 values \[-1, 1\]: expected int64 from -1 to 0"),
        ((2, 1), [0.0, 1.0], None, "logistic", r"torch.float32 values \[0.0, 1.0\]: expected int64 from -1 to 0"),
        ((2, 3), [-1, 1], None, "softmax", r"torch.int64 values \[-1, 1\]: expected int64 from 0 to 2"),
        ((2, 1), [0, 0], torch.ones(2, 1), "logistic", r"weight_N has shape \(2, 1\): expected \[2\]"),
    ],
)
def test_wrong_arguments_are_named(logit, label, weight, form, text):
    with pytest.raises(ValueError, match=text):
        ClassificationCounts.of(torch.zeros(logit), torch.tensor(label), weight, form)


CURVE = [(1, 0.5), (2, 0.2), (3, 0.11), (4, 0.1), (5, 0.15)]


@pytest.mark.parametrize(
    ("curve", "share", "epoch"),
    [
        *[(CURVE, 1.0, 4), (CURVE, 0.9, 3), (CURVE, 0.5, 2), (CURVE, 0.2, 1)],  # bounds 0.1, 0.111, 0.2, 0.5
        ([(1, 0.3), (2, 0.01), (3, 0.0), (4, 0.0)], 0.5, 3),  # a best error of 0 asks for 0
        ([(3, 0.4), (6, 0.1)], 0.9, 6),  # epochs that were not evaluated cannot converge
        ([], 0.9, None),
    ],
)
def test_first_epoch_within_a_share_of_the_best(curve, share, epoch):
    assert epochs_to_converge(curve, share) == epoch


@pytest.mark.parametrize(
    ("curve", "area"),
    [
        (CURVE, 0.735 / 4),  # trapezoids 0.35, 0.155, 0.105, 0.125 over four epochs
        ([(1, 0.5), (3, 0.1), (4, 0.1)], 0.7 / 3),  # from epoch 1 to 3 mean 0.3 twice, from 3 to 4 mean 0.1
        ([(2, 0.25), (4, 0.25), (9, 0.25)], 0.25),
        ([(7, 0.4)], 0.4),
    ],
)
def test_area_by_hand(curve, area):
    assert area_under_error(curve) == pytest.approx(area, rel=1e-12)
    assert area_under_error([]) is None


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(ValueError, match=rf"share = {share}: expected a number above 0, at most 1"):
        epochs_to_converge(CURVE, share)
