"""Keypoint regression: by hand, and against refits that leave out one image each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import LayerContext
from ipcnn_ray.core.metrics.keypoint_error import (
    STRENGTHS,
    KeypointError,
    KeypointErrorMean,
    ridge,
    standardized,
)
from ipcnn_ray.core.receptive_field import Field

LAYER = LayerContext(image_size=100, map_side=8, field=Field(4, 9, 1.5))


def split(training: int, others: int) -> Tensor:
    return torch.arange(training + others) < training


def fitted(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights [D + 1, 2] of the normal equations of a ridge regression; the last is the intercept, not penalised."""
    x1 = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    ridge_DD = penalty * torch.eye(x1.shape[1], dtype=torch.float64)
    ridge_DD[-1, -1] = 0
    return torch.linalg.solve(x1.T @ x1 + ridge_DD, x1.T @ y)


def slow_ridge(x: Tensor, y: Tensor, other: Tensor) -> Tensor:
    """For each strength refit without one image each; take the best, fit all."""
    total, errors = float((x - x.mean(0)).square().sum()), []
    for strength in STRENGTHS:
        error = 0.0
        for i in range(len(x)):
            rest = torch.arange(len(x)) != i
            weight = fitted(x[rest], y[rest], strength * total)
            error += float((x[i] @ weight[:-1] + weight[-1] - y[i]).square().sum())
        errors.append(error)
    best = STRENGTHS[errors.index(min(errors))]
    weight = fitted(x, y, best * total)
    return other @ weight[:-1] + weight[-1]


@pytest.mark.parametrize("features", [1, 4, 11, 12, 30], ids=str)
@pytest.mark.parametrize("noise", [0.01, 1.0, 100.0], ids=str)
def test_leave_one_out_in_closed_form_agrees_with_refits(features, noise):
    """With fewer and with more features than the twelve images; the noise decides how strong the penalty is."""
    generator = torch.Generator().manual_seed(features)
    x = torch.randn(19, features, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(features, 2, generator=generator, dtype=torch.float64) + 50
    y += noise * torch.randn(19, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ridge(x[:12], y[:12], x[12:]), slow_ridge(x[:12], y[:12], x[12:]), rtol=1e-8, atol=1e-8)


def test_the_noise_makes_the_penalty_strong():
    """Features that say nothing: the prediction is nearly the mean position."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, d, generator=generator, dtype=torch.float64) for d in (40, 2))
    predicted = ridge(x[:50], y[:50], x[50:])
    assert float((predicted - y[:50].mean(0)).norm(dim=1).mean()) < 0.2


def test_columns_are_standardized_on_the_training_images():
    x = torch.tensor([[1.0, 5, 7], [3, 5, 7], [9, 6, 7]]).double()
    found = standardized(x, split(2, 1))
    assert found.tolist() == [[-1], [1], [7]]  # the second column varies only elsewhere, the third nowhere


def test_a_peak_at_a_fixed_offset_tells_where_the_landmark_is():
    generator = torch.Generator().manual_seed(4)
    landmarks = torch.rand(40, 1, 2, generator=generator, dtype=torch.float64) * 100
    random = torch.rand(40, 2, 2, generator=generator, dtype=torch.float64) * 100
    peaks = torch.cat([landmarks + torch.tensor([3.0, -5.0]), random], 1)
    train = split(30, 10)
    error = KeypointError(LAYER).compute(peaks, landmarks, train)
    mean = KeypointErrorMean(LAYER).compute(landmarks, train)
    assert error.tolist() == [pytest.approx(0, abs=1e-4)] and float(mean) > 0.2
    lost = KeypointError(LAYER).compute(random, landmarks, train)
    assert float(mean) * 0.8 < float(lost) < float(mean) * 1.3
    still = KeypointError(LAYER).compute(peaks[:1].expand_as(peaks), landmarks, train)
    assert still.tolist() == mean.tolist()  # peaks that never move tell nothing


def test_the_mean_position_by_hand():
    # Training images: landmark 0 at (10, 10) on average, 1 at (0, 0). Others: 5 and 15 away; 20 away, one unseen.
    nan = math.nan
    landmarks = torch.tensor(
        [
            *[[[r, 10.0], [0.0, 0.0]] for r in (4.0, 10.0, 16.0)],
            *([[13.0, 14.0], [nan, 0.0]], [[10.0, 25.0], [12.0, 16.0]]),
        ]
    ).double()
    found = KeypointErrorMean(LAYER).compute(landmarks, split(3, 2))
    assert found.tolist() == [pytest.approx(((5 + 15) / 2 + 20) / 2 / 100)]


def test_a_landmark_with_too_few_images_is_left_out():
    generator = torch.Generator().manual_seed(9)
    peaks = torch.rand(9, 2, 2, generator=generator, dtype=torch.float64)
    landmarks = torch.rand(9, 3, 2, generator=generator, dtype=torch.float64)
    train = split(5, 4)
    landmarks[2:5, 1] = torch.nan  # two training images
    landmarks[5:, 2] = torch.nan  # none but training images
    for metric, inputs in ((KeypointError, (peaks,)), (KeypointErrorMean, ())):
        alone = metric(LAYER).compute(*inputs, landmarks[:, :1], train)
        assert torch.equal(metric(LAYER).compute(*inputs, landmarks, train), alone) and bool(alone.isfinite())
        for nobody in (torch.zeros(9, dtype=torch.bool), torch.ones(9, dtype=torch.bool)):
            assert metric(LAYER).compute(*inputs, landmarks, nobody).isnan().tolist() == [True]


def test_the_other_images_are_not_fitted():
    generator = torch.Generator().manual_seed(2)
    peaks, landmarks = (torch.rand(20, c, 2, generator=generator, dtype=torch.float64) for c in (3, 1))
    more = [torch.cat([x, 1e6 * torch.ones_like(x[:1])]) for x in (peaks, landmarks)]
    train = split(15, 5)
    apart = torch.cat([train, torch.tensor([False])])
    few, many = KeypointErrorMean(LAYER).compute(landmarks, train), KeypointErrorMean(LAYER).compute(more[1], apart)
    assert float(many) > 100 * float(few)
    x = peaks.flatten(1)
    assert torch.equal(standardized(more[0].flatten(1), apart)[:20], standardized(x, train))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"in_training_N has shape \(3,\): expected \[4\]"):
        KeypointErrorMean(LAYER).compute(torch.zeros(4, 1, 2), split(2, 1))
