"""Parts at peaks; consistency, stability and purity against numbers by hand and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from fakes.metrics import LAYER
from torch import Tensor

from ipcnn_ray.core.metrics.consistency import Consistency
from ipcnn_ray.core.metrics.filter_metric import MetricResult
from ipcnn_ray.core.metrics.part_positions import parts_at_peaks
from ipcnn_ray.core.metrics.purity import Purity
from ipcnn_ray.core.metrics.stability import IMAGENET_DEVIATION, PeakStability, Stability, pixel_noise

NAN = math.nan


def consistency(peaks: Tensor, landmarks: Tensor, half: float, **options: float) -> MetricResult:
    return MetricResult(Consistency(LAYER, half_side=half, **options).compute(peaks, landmarks))


def stability(peaks: Tensor, noisy: Tensor, landmarks: Tensor, half: float) -> MetricResult:
    return MetricResult(Stability(LAYER, half_side=half).compute(peaks, noisy, landmarks))


def purity(peaks: Tensor, activation: Tensor, landmarks: Tensor, half: float, **options: int) -> MetricResult:
    return MetricResult(Purity(LAYER, half_side=half, **options).compute(peaks, activation, landmarks))


def drawn(images: int = 25, filters: int = 7, landmarks: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Peaks on a grid near the landmarks, peaks with noise, activations with ties, landmarks of which some miss."""
    generator = torch.Generator().manual_seed(3)
    landmarks_NK2 = torch.rand(images, landmarks, 2, generator=generator, dtype=torch.float64) * 60
    grid = torch.randint(-2, 3, (2, images, filters, 2), generator=generator).double() * 8
    nearest = landmarks_NK2[:, torch.arange(filters) % landmarks]
    peaks_NC2, noisy_NC2 = nearest + grid[0], nearest + torch.where(grid[1] > 0, grid[1], grid[0])
    activation_NC = torch.randint(0, 5, (images, filters), generator=generator).double()
    landmarks_NK2[torch.rand(images, landmarks, generator=generator) < 0.3] = NAN
    landmarks_NK2[4] = NAN
    return peaks_NC2, noisy_NC2, activation_NC, landmarks_NK2


def at(peak: Tensor, landmark: Tensor, half: float) -> bool:
    (row, col), (y, x) = peak.tolist(), landmark.tolist()
    return row - half <= y <= row + half and col - half <= x <= col + half


def shows(landmark: Tensor) -> bool:
    return not any(math.isnan(number) for number in landmark.tolist())


def slow_consistency(peaks: Tensor, landmarks: Tensor, half: float, share: float) -> list[float]:
    found = []
    for c in range(peaks.shape[1]):
        consistent = 0.0
        for k in range(landmarks.shape[1]):
            images = [i for i in range(len(peaks)) if shows(landmarks[i, k])]
            hits = sum(at(peaks[i, c], landmarks[i, k], half) for i in images)
            if images and hits / len(images) >= share:
                consistent = 1.0
        found.append(consistent)
    return found


def slow_stability(peaks: Tensor, noisy: Tensor, landmarks: Tensor, half: float) -> list[float]:
    found = []
    for c in range(peaks.shape[1]):
        same = []
        for i in range(len(peaks)):
            marks = [mark for mark in landmarks[i] if shows(mark)]
            if marks:
                same.append(all(at(peaks[i, c], mark, half) == at(noisy[i, c], mark, half) for mark in marks))
        found.append(sum(same) / len(same))
    return found


def slow_purity(peaks: Tensor, activation: Tensor, landmarks: Tensor, half: float, top: int) -> list[float]:
    found = []
    for c in range(peaks.shape[1]):
        best = sorted(range(len(peaks)), key=lambda i: (-float(activation[i, c]), i))[:top]
        shares = []
        for k in range(landmarks.shape[1]):
            shown = [i for i in best if shows(landmarks[i, k])]
            if shown:
                shares.append(sum(at(peaks[i, c], landmarks[i, k], half) for i in shown) / len(shown))
        found.append(max(shares) if shares else NAN)
    return found


def test_the_square_holds_its_edges_and_a_missing_landmark_is_nowhere():
    peaks_NC2 = torch.tensor([[[10.0, 10.0], [10.0, 15.0]]])
    landmarks_NK2 = torch.tensor([[[12.0, 12.0], [10.0, NAN], [12.1, 12.0]]])
    assert parts_at_peaks(peaks_NC2, landmarks_NK2, 2).tolist() == [[[True, False, False], [False, False, False]]]
    assert parts_at_peaks(peaks_NC2, landmarks_NK2, 3).tolist() == [[[True, False, True], [True, False, True]]]


def test_consistency_by_hand():
    # Landmark 0 is seen in all five images, landmark 1 in the last two. Filter 0 is at landmark 0 in four of five,
    # filter 1 in three of five, filter 2 at landmark 1 in both.
    zero, far = [0.0, 0.0], [50.0, 50.0]
    landmarks_NK2 = torch.tensor([[zero, [NAN, NAN]]] * 3 + [[zero, [20.0, 20.0]]] * 2)
    other = [20.0, 20.0]
    peaks_NC2 = torch.tensor(
        [[zero, zero, far], [zero, zero, far], [zero, zero, far], [zero, far, other], [far, far, other]]
    )
    found = consistency(peaks_NC2, landmarks_NK2, 5.0)
    assert found.per_filter_C.tolist() == [1, 0, 1]
    assert found.mean == pytest.approx(2 / 3)
    assert found.dropped == 0


def test_stability_by_hand():
    # Image 0: stays at its landmark; 1: leaves it; 2: moves, at no landmark before and after; 3: shows no landmark.
    landmarks_NK2 = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]], [[NAN, 0.0]]])
    peaks_NC2 = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]], [[30.0, 1.0]], [[1.0, 1.0]]])
    noisy_NC2 = torch.tensor([[[2.0, 1.0]], [[9.0, 1.0]], [[1.0, 30.0]], [[9.0, 9.0]]])
    assert stability(peaks_NC2, noisy_NC2, landmarks_NK2, 5.0).per_filter_C.tolist() == [pytest.approx(2 / 3)]


def test_purity_by_hand():
    # The three strongest images (the second of the two with activation 2 is left out): landmark 0 is shown in all and
    # hit once, landmark 1 is shown in two and hit once.
    activation_NC = torch.tensor([[1.0], [3.0], [2.0], [2.0], [4.0]])
    peaks_NC2 = torch.zeros(5, 1, 2)
    here, away, none = [0.0, 0.0], [9.0, 0.0], [NAN, NAN]
    landmarks_NK2 = torch.tensor([[here, here], [away, away], [here, none], [here, here], [away, here]])
    found = purity(peaks_NC2, activation_NC, landmarks_NK2, 5.0, top_images=3)
    assert found.per_filter_C.tolist() == [0.5]


@pytest.mark.parametrize("half", [4.0, 9.0, 30.0])
def test_equal_loops(half):
    peaks_NC2, noisy_NC2, activation_NC, landmarks_NK2 = drawn()
    for share in (0.1, 0.4, 0.8):
        found = consistency(peaks_NC2, landmarks_NK2, half, needed_share=share)
        assert found.per_filter_C.tolist() == slow_consistency(peaks_NC2, landmarks_NK2, half, share)
    slow = slow_stability(peaks_NC2, noisy_NC2, landmarks_NK2, half)
    assert 0 < min(slow) < 1 or half == 30
    assert stability(peaks_NC2, noisy_NC2, landmarks_NK2, half).per_filter_C.tolist() == pytest.approx(slow)
    for top in (1, 3, 10, 100):
        found = purity(peaks_NC2, activation_NC, landmarks_NK2, half, top_images=top)
        expected = slow_purity(peaks_NC2, activation_NC, landmarks_NK2, half, top)
        assert found.per_filter_C.tolist() == pytest.approx(expected, nan_ok=True)


def test_filters_that_cannot_be_measured_are_dropped():
    peaks_NC2, noisy_NC2, activation_NC, landmarks_NK2 = drawn(filters=2)
    best = int(activation_NC[:, 0].argmax())
    partly = landmarks_NK2.clone()
    partly[best] = NAN
    activation_NC[best, 1] = -1.0
    found = purity(peaks_NC2, activation_NC, partly, 8.0, top_images=1)
    assert found.per_filter_C.isnan().tolist() == [True, False]
    assert found.dropped == 1 and found.mean == float(found.per_filter_C[1])
    nothing = torch.full_like(landmarks_NK2, NAN)
    for found in (
        consistency(peaks_NC2, nothing, 8.0),
        stability(peaks_NC2, noisy_NC2, nothing, 8.0),
        purity(peaks_NC2, activation_NC, nothing, 8.0),
    ):
        assert found.dropped == 2 and math.isnan(found.mean)


def test_a_peak_that_stays_in_its_cell_by_hand():
    peaks_NC2 = torch.tensor([[[4.0, 4.0], [4.0, 12.0]], [[4.0, 4.0], [4.0, 12.0]]])
    noisy_NC2 = torch.tensor([[[4.0, 4.0], [12.0, 12.0]], [[4.0, 4.0], [4.0, 12.0]]])
    assert PeakStability(LAYER).compute(peaks_NC2, noisy_NC2).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"noisy_peaks_NC2 has shape \(1, 2, 2\): expected \[2, 2, 2\]"):
        PeakStability(LAYER).compute(peaks_NC2, noisy_NC2[:1])


def test_noise_follows_from_seed_and_image_and_is_cut_off():
    one = pixel_noise(7, 3, 40)
    assert one.shape == (3, 40, 40)
    assert torch.equal(one, pixel_noise(7, 3, 40))
    assert not torch.equal(one, pixel_noise(7, 4, 40)) and not torch.equal(one, pixel_noise(8, 3, 40))
    for channel, unit in zip(one, IMAGENET_DEVIATION, strict=True):
        assert float(channel.abs().max()) == pytest.approx(0.25 * unit)
        # A normal number of deviation 0.2 is beyond 0.25 with probability 0.211, and cut to it.
        assert float((channel.abs() > 0.2499 * unit).float().mean()) == pytest.approx(0.211, abs=0.04)
        assert abs(float(channel.mean())) < 0.03 * unit


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p, a, m: consistency(p[0], m, 1.0), r"peaks_NC2 has shape \(7, 2\): expected \[N, C, 2\]"),
        (lambda p, a, m: consistency(p[:3], m, 1.0), r"peaks_NC2 has shape \(3, 7, 2\): expected \[25, 7, 2\]"),
        (lambda p, a, m: consistency(p, m[:, :0], 1.0), r"landmarks_NK2 has shape .*expected \[N, K >= 1, 2\]"),
        (lambda p, a, m: consistency(p, m, 0.0), r"half_side = 0.0: expected a positive number of pixels"),
        (lambda p, a, m: stability(p, p[:, :2], m, 1.0), r"noisy_peaks_NC2 has shape .*expected \[25, 7, 2\]"),
        (lambda p, a, m: purity(p, a[:, :2], m, 1.0), r"activation_NC has shape \(25, 2\): expected \[25, 7\]"),
        (lambda p, a, m: purity(p, a / 0, m, 1.0), r"activation_NC has entries that are not finite"),
        (lambda p, a, m: purity(p, a, m, 1.0, top_images=0), r"top_images = 0: expected at least 1"),
    ],
)
def test_wrong_arguments_are_named(call, text):
    peaks_NC2, _, activation_NC, landmarks_NK2 = drawn()
    with pytest.raises(ValueError, match=text):
        call(peaks_NC2, activation_NC, landmarks_NK2)
