"""Landmark tracking, what filters follow, and the coverage of the landmarks: by hand and against loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from fakes.metrics import LAYER
from torch import Tensor

from ipcnn_ray.core.metrics import landmark_tracking as module
from ipcnn_ray.core.metrics.landmark_tracking import (
    SHUFFLES,
    FollowingShare,
    FollowingShareShuffled,
    LandmarkCoverage,
    LandmarksFollowed,
    LandmarkTracking,
    LandmarkTrackingShuffled,
    Tracking,
    followed_landmark,
    following_counts,
    shuffles,
    tracking_of_categories,
)

NAN = math.nan


def track(peaks: Tensor, activation: Tensor, landmarks: Tensor, *, top: int = 100, few: int = 30) -> Tracking:
    N, C = activation.shape
    labels, categories = torch.zeros(N, dtype=torch.int64), torch.zeros(C, dtype=torch.int64)
    return tracking_of_categories(peaks, activation, landmarks, labels, categories, top_images=top, few_images=few)


def columns(*values: list[float]) -> Tensor:
    """[N, len(values), 2]: positions in row 7, with these columns in each image."""
    return torch.tensor([[[7.0, col] for col in image] for image in zip(*values, strict=True)]).double()


def slow(peaks: Tensor, activation: Tensor, landmarks: Tensor, images: list[int], c: int, top: int) -> list[float]:
    """T of filter c and each landmark on some images: sort them, take those that show it, take the first, divide."""
    ranked, found = sorted(images, key=lambda i: (-float(activation[i, c]), i)), []
    for k in range(landmarks.shape[1]):
        shown = [i for i in ranked if not math.isnan(float(landmarks[i, k].sum()))][:top]
        apart, total = 0.0, 0.0
        for axis in (0, 1):
            at = [float(landmarks[i, k, axis]) for i in shown]
            offset = [float(landmarks[i, k, axis] - peaks[i, c, axis]) for i in shown]
            if len(shown) > 1:
                apart, total = apart + statistics.variance(offset), total + statistics.variance(at)
        found.append(1 - apart / total if total > 0 else NAN)
    return found


def drawn(images: int = 40, filters: int = 6, landmarks: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Peaks of which some follow a landmark, activations with ties, landmarks of which some miss, two categories."""
    generator = torch.Generator().manual_seed(3)
    landmarks_NK2 = torch.rand(images, landmarks, 2, generator=generator, dtype=torch.float64) * 60
    grid_NC2 = torch.randint(0, 12, (images, filters, 2), generator=generator).double() * 5
    nearest_NC2 = (landmarks_NK2[:, torch.arange(filters) % landmarks] / 5).round() * 5
    follows_C = torch.arange(filters) % 2 == 0
    peaks_NC2 = torch.where(follows_C[:, None], nearest_NC2, grid_NC2)
    activation_NC = torch.randint(-2, 3, (images, filters), generator=generator).double()
    landmarks_NK2[torch.rand(images, landmarks, generator=generator) < 0.3] = NAN
    label_N = torch.randint(0, 2, (images,), generator=generator)
    return peaks_NC2, activation_NC, landmarks_NK2, label_N, torch.arange(filters) % 2


@pytest.mark.parametrize(
    ("peak", "expected"),
    [
        ([10.0, 14.0], 1.0),  # always ten columns beside the landmark
        ([5.0, 5.0], 0.0),  # it never moves
        ([1.0, 3.0], 0.75),  # offsets -1 and 1: variance 1 of 4
        ([4.0, 0.0], -3.0),  # it moves the other way: variance 16 of 4
    ],
)
def test_two_images_by_hand(peak, expected):
    found = track(columns(peak), torch.ones(2, 1), columns([0.0, 4.0]))
    assert found.strongest_CK.tolist() == [[pytest.approx(expected, abs=1e-15)]]
    assert LandmarkTracking(LAYER).compute(found.strongest_CK).tolist() == [pytest.approx(expected, abs=1e-15)]


def test_only_the_strongest_images_that_show_the_landmark_count():
    # The strongest image lacks the landmark; the two that follow are tracked; the others are not.
    peaks, landmarks = columns([99.0, 1.0, 2.0, 3.0, 8.0]), columns([NAN, 1.0, 2.0, 8.0, 3.0])
    activation = torch.tensor([[9.0], [5.0], [4.0], [4.0], [1.0]])
    found = track(peaks, activation, landmarks, top=2, few=3)
    assert found.strongest_CK.tolist() == [[1.0]]
    # l = 1 2 8 with mean 11/3, l - p = 0 0 5 with mean 5/3
    apart, total = [25 / 9, 25 / 9, 100 / 9], [64 / 9, 25 / 9, 169 / 9]
    assert found.few_CK.tolist() == [[pytest.approx(1 - sum(apart) / sum(total))]]


def test_offsets_of_the_strongest_images_by_hand():
    # The strongest image lacks the landmark; offsets of the two that follow are (0, 3) and (0, 5).
    peaks, landmarks = columns([99.0, 1.0, 2.0, 3.0]), columns([NAN, 4.0, 7.0, 90.0], [NAN, NAN, 1.0, NAN])
    found = track(peaks, torch.tensor([[9.0], [5.0], [4.0], [1.0]]), landmarks, top=2)
    assert found.offset_CK2[0, 0].tolist() == [0, 4] and found.offset_deviation_CK2[0, 0].tolist() == [0, 1]
    assert found.offset_CK2[0, 1].isnan().all() and found.offset_deviation_CK2[0, 1].isnan().all()


def test_a_landmark_that_cannot_be_measured_is_left_out():
    peaks = columns([0.1, 0.7, 0.4], [0.0, 1.0, 5.0])
    still, once, moves = [0.1, 0.1, 0.1], [NAN, 3.0, NAN], [0.0, 1.0, 5.0]
    found = track(peaks, torch.ones(3, 2), columns(still, once, moves)).strongest_CK
    assert found[:, :2].isnan().all() and found[1, 2] == 1
    assert followed_landmark(found).tolist() == [-1, 2]
    nothing = track(peaks, torch.ones(3, 2), columns(still, once)).strongest_CK
    for metric in (LandmarkTracking, FollowingShare, LandmarksFollowed, LandmarkCoverage):
        assert bool(metric(LAYER).compute(nothing).isnan().all())


@pytest.mark.parametrize(("top", "few"), [(2, 5), (7, 30), (100, 3)])
def test_agrees_with_loops(top, few):
    peaks, activation, landmarks, labels, categories = drawn()
    found = tracking_of_categories(peaks, activation, landmarks, labels, categories, top_images=top, few_images=few)
    some_follow = []
    for c, category in enumerate(categories.tolist()):
        images = [i for i, label in enumerate(labels.tolist()) if label == category]
        for tensor, count in ((found.strongest_CK, top), (found.few_CK, few)):
            expected = slow(peaks, activation, landmarks, images, c, count)
            assert tensor[c].tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        ranked = sorted(images, key=lambda i, c=c: (-float(activation[i, c]), i))
        for k in range(landmarks.shape[1]):
            shown = [i for i in ranked if not math.isnan(float(landmarks[i, k, 0]))][:top]
            for axis in (0, 1):
                apart = [float(landmarks[i, k, axis] - peaks[i, c, axis]) for i in shown]
                assert float(found.offset_CK2[c, k, axis]) == pytest.approx(statistics.mean(apart), abs=1e-12)
                spread = float(found.offset_deviation_CK2[c, k, axis])
                assert spread == pytest.approx(statistics.pstdev(apart), abs=1e-9)
        for r, shuffle_N in enumerate(shuffles(len(images))):
            others = landmarks.clone()
            others[images] = landmarks[[images[j] for j in shuffle_N.tolist()]]
            expected = slow(peaks, activation, others, images, c, top)
            assert found.shuffled_CRK[c, r].tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        some_follow.append(bool((found.strongest_CK[c] > 0.3).any()))
    if top == 100:
        assert some_follow == [True, False] * 3
        chance_C = LandmarkTrackingShuffled(LAYER).compute(found.shuffled_CRK)
        assert bool((chance_C < LandmarkTracking(LAYER).compute(found.strongest_CK))[::2].all())
        assert FollowingShareShuffled(LAYER).compute(found.shuffled_CRK).mean() < 0.2


def test_the_shuffles_are_fixed_and_differ():
    once, again = shuffles(30), shuffles(30)
    assert len(once) == SHUFFLES and all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert all(sorted(shuffle.tolist()) == list(range(30)) for shuffle in once)
    assert len({tuple(shuffle.tolist()) for shuffle in once}) == SHUFFLES


def test_first_shown_looks_as_far_as_it_must():
    order = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    shown = torch.tensor([False, False, False, False, True, True])
    assert module.first_shown(order, shown, 2).tolist() == [[4, 5], [5, 4]]
    assert module.first_shown(order, shown, 9).tolist() == [[4, 5], [5, 4]]
    assert module.first_shown(order, torch.ones(6, dtype=torch.bool), 2).tolist() == [[0, 1], [5, 4]]


def test_what_filters_follow_by_hand():
    # Three follow landmark 0, one landmark 2; one is at the threshold, one follows nothing, one was not measured.
    rows = [[0.9, 0.5, NAN], [0.31, -1, 0.2], [0.4, NAN, 0.3], [0, 0, 0.8], [0.3, 0.3, 0.3], [-2, -1, 0], [NAN] * 3]
    tracking_CK = torch.tensor(rows, dtype=torch.float64)
    assert followed_landmark(tracking_CK).tolist() == [0, 0, 0, 2, -1, -1, -1]
    assert following_counts(tracking_CK).tolist() == [3, 0, 1]
    share_C = FollowingShare(LAYER).compute(tracking_CK)
    assert share_C.tolist() == pytest.approx([1, 1, 1, 1, 0, 0, NAN], nan_ok=True)
    assert LandmarksFollowed(LAYER).compute(tracking_CK).tolist() == [2]
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert LandmarkCoverage(LAYER).compute(tracking_CK).tolist() == [pytest.approx(math.exp(entropy))]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([[0.9, 0], [0.5, 0.1]], 1), ([[0.9, 0], [0.1, 0.5]], 2), ([[0.9, 0, 0]] * 4, 1), ([[0.1, 0.2]], 0)],
)
def test_coverage_of_one_of_all_and_of_none(rows, expected):
    tracking_CK = torch.tensor(rows, dtype=torch.float64)
    assert LandmarkCoverage(LAYER).compute(tracking_CK).tolist() == [pytest.approx(expected)]
    assert LandmarksFollowed(LAYER).compute(tracking_CK).tolist() == [expected]


def test_wrong_arguments_are_named():
    peaks, activation, landmarks, labels, categories = drawn()
    with pytest.raises(ValueError, match=r"activation_NC has shape \(39, 6\): expected \[40, 6\]"):
        tracking_of_categories(peaks, activation[1:], landmarks, labels, categories, top_images=2, few_images=2)
    activation[0, 0] = NAN
    with pytest.raises(ValueError, match="activation_NC has entries that are not finite"):
        tracking_of_categories(peaks, activation, landmarks, labels, categories, top_images=2, few_images=2)
