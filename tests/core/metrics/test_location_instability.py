"""Location instability and the distances behind it, by hand and against loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from ipcnn_ray.core.metrics.location_instability import (
    landmark_distances,
    location_instability,
)
from ipcnn_ray.core.metrics.location_instability import (
    location_instability_of_categories as of_categories,
)

NAN = math.nan


def slow(peaks: Tensor, activation: Tensor, landmarks: Tensor, diagonal: float, top_images: int) -> list[float]:
    """Per filter: sort its images, leave out those without the landmark, take the first, deviate, average."""
    found = []
    for c in range(peaks.shape[1]):
        ranked = sorted(range(len(peaks)), key=lambda image: (-float(activation[image, c]), image))
        deviations = []
        for k in range(landmarks.shape[1]):
            shown = [image for image in ranked if not math.isnan(float(landmarks[image, k].sum()))][:top_images]
            distances = [math.dist(peaks[image, c].tolist(), landmarks[image, k].tolist()) for image in shown]
            deviations.append(statistics.stdev(distances) if len(distances) > 1 else math.nan)
        found.append(sum(deviations) / len(deviations) / diagonal)
    return found


def drawn(images: int, filters: int, landmarks: int, missing: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    peaks_NC2 = torch.randint(0, 13, (images, filters, 2), generator=generator).double() * 16 + 17
    activation_NC = torch.randint(-3, 4, (images, filters), generator=generator).double()  # many ties
    landmarks_NK2 = torch.rand(images, landmarks, 2, generator=generator, dtype=torch.float64) * 224
    landmarks_NK2[torch.rand(images, landmarks, generator=generator) < missing] = torch.nan
    return peaks_NC2, activation_NC, landmarks_NK2


def test_one_filter_one_landmark_by_hand():
    # Distances 5, 0, 10 (3-4-5 triangles): deviation with N - 1 is 5; diagonal 50.
    peaks_NC2 = torch.tensor([[[3.0, 4.0]], [[10.0, 10.0]], [[6.0, 8.0]]])
    landmarks_NK2 = torch.tensor([[[0.0, 0.0]], [[10.0, 10.0]], [[0.0, 0.0]]])
    found = location_instability(peaks_NC2, torch.ones(3, 1), landmarks_NK2, 50.0)
    assert found.mean == pytest.approx(0.1, abs=1e-15)
    assert (found.dropped, found.deviation_CK.shape) == (0, (1, 1))


@pytest.mark.parametrize("activation", [[9.0, 5.0, 4.0, 1.0], [9.0, 4.0, 4.0, 4.0]], ids=["strongest", "earlier"])
def test_only_the_strongest_images_that_show_the_landmark_count(activation):
    # The strongest image lacks the landmark, the weakest (or last) is beyond the top two: distances 1 and 3 remain.
    peaks_NC2 = torch.tensor([[[0.0, 9.0]], [[0.0, 1.0]], [[0.0, 3.0]], [[0.0, 90.0]]])
    landmarks_NK2 = torch.zeros(4, 1, 2)
    landmarks_NK2[0, 0, 1] = torch.nan  # one missing coordinate is a missing landmark
    found = location_instability(peaks_NC2, torch.tensor(activation)[:, None], landmarks_NK2, 1.0, top_images=2)
    assert found.mean == pytest.approx(math.sqrt(2), rel=1e-12)


def test_mean_over_landmarks_then_over_filters():
    # Filter 0: deviations sqrt(2) and 0; filter 1: 2 sqrt(2) and 0.
    peaks_NC2 = torch.tensor([[[0.0, 1.0], [0.0, 2.0]], [[0.0, 3.0], [0.0, 6.0]]])
    landmarks_NK2 = torch.tensor([[[0.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = location_instability(peaks_NC2, torch.ones(2, 2), landmarks_NK2, 1.0)
    root = math.sqrt(2)
    torch.testing.assert_close(found.deviation_CK, torch.tensor([[root, 0.0], [2 * root, 2 * root]]).double())
    assert found.mean == pytest.approx((root / 2 + 2 * root) / 2, rel=1e-7)


@pytest.mark.parametrize("top_images", [2, 7, 100])
def test_equals_a_loop(top_images):
    peaks_NC2, activation_NC, landmarks_NK2 = drawn(30, 6, 3, missing=0.3)
    found = location_instability(peaks_NC2, activation_NC, landmarks_NK2, 320.0, top_images=top_images)
    expected = slow(peaks_NC2, activation_NC, landmarks_NK2, 320.0, top_images)
    torch.testing.assert_close(found.per_filter_C, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert found.mean == pytest.approx(sum(expected) / 6, rel=1e-12)


def test_a_constant_distance_gives_zero():
    _, activation_NC, landmarks_NK2 = drawn(20, 4, 1, missing=0.0)
    offset = torch.tensor([30.0, 40.0], dtype=torch.float64)
    found = location_instability((landmarks_NK2 + offset).expand(-1, 4, -1), activation_NC, landmarks_NK2, 300.0)
    assert found.mean == pytest.approx(0, abs=1e-14)


def test_padded_images_without_landmarks_change_nothing():
    peaks_NC2, activation_NC, landmarks_NK2 = drawn(20, 4, 3, missing=0.2)
    plain = location_instability(peaks_NC2, activation_NC, landmarks_NK2, 300.0, top_images=5)
    peaks_NC2 = torch.cat([peaks_NC2, peaks_NC2[:3]])
    activation_NC = torch.cat([activation_NC, torch.full((3, 4), 1e9, dtype=torch.float64)])
    landmarks_NK2 = torch.cat([landmarks_NK2, torch.full((3, 3, 2), torch.nan, dtype=torch.float64)])
    padded = location_instability(peaks_NC2, activation_NC, landmarks_NK2, 300.0, top_images=5)
    assert torch.equal(plain.per_filter_C, padded.per_filter_C)


def test_a_landmark_seen_once_drops_every_filter():
    peaks_NC2, activation_NC, landmarks_NK2 = drawn(10, 4, 2, missing=0.0)
    landmarks_NK2[1:, 1] = torch.nan
    found = location_instability(peaks_NC2, activation_NC, landmarks_NK2, 300.0)
    assert found.dropped == 4
    assert math.isnan(found.mean) and bool(found.per_filter_C.isnan().all())
    assert bool(found.deviation_CK[:, 0].isfinite().all()) and bool(found.deviation_CK[:, 1].isnan().all())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"peaks_NC2": torch.zeros(4, 2, 3)}, r"peaks_NC2 has shape \(4, 2, 3\): expected \[4, 2, 2\]"),
        ({"activation_NC": torch.zeros(4, 3)}, r"activation_NC has shape \(4, 3\): expected \[4, 2\]"),
        ({"landmarks_NK2": torch.zeros(5, 1, 2)}, r"landmarks_NK2 has shape \(5, 1, 2\): expected \[4, 1, 2\]"),
        ({"landmarks_NK2": torch.zeros(4, 0, 2)}, r"landmarks_NK2 has no landmark: expected K >= 1"),
        ({"activation_NC": torch.full((4, 2), torch.nan)}, r"activation_NC has entries that are not finite"),
        ({"top_images": 1}, r"top_images = 1: a deviation needs at least 2 images"),
        ({"diagonal": 0.0}, r"diagonal = 0\.0: expected a positive number of pixels"),
    ],
)
def test_wrong_arguments_are_named(changed, text):
    arguments = {"peaks_NC2": torch.zeros(4, 2, 2), "activation_NC": torch.zeros(4, 2), "diagonal": 300.0}
    with pytest.raises(ValueError, match=text):
        location_instability(**arguments | {"landmarks_NK2": torch.zeros(4, 1, 2)} | changed)


def test_several_categories_are_measured_apart():
    """Slow twin: each category by itself, then the smallest (paper) or that of the highest mean score (released)."""
    peaks, activation, landmarks = drawn(60, 5, 2, 0.2)
    label_N = torch.arange(60) % 3
    own = [slow(peaks[label_N == c], activation[label_N == c], landmarks[label_N == c], 9.0, 10) for c in range(3)]
    means = [activation[label_N == c].mean(0).tolist() for c in range(3)]
    best = [min(range(3), key=lambda c, f=f: own[c][f]) for f in range(5)]
    strongest = [max(range(3), key=lambda c, f=f: means[c][f]) for f in range(5)]
    assert best != strongest
    for variant, chosen in (("paper", best), ("released", strongest)):
        found = of_categories(peaks, activation, landmarks, label_N, 9.0, variant=variant, top_images=10)
        assert found.category_C.tolist() == chosen
        assert found.per_filter_C.tolist() == pytest.approx([own[c][f] for f, c in enumerate(chosen)], rel=1e-12)
        torch.testing.assert_close(found.deviation_CK.mean(1), found.per_filter_C)
        assert found.mean == pytest.approx(sum(found.per_filter_C.tolist()) / 5)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_one_category_is_the_measure_of_one(variant):
    peaks, activation, landmarks = drawn(30, 4, 2, 0.3)
    one = location_instability(peaks, activation, landmarks, 7.0, top_images=9)
    label_N = torch.full((30,), 2)
    found = of_categories(peaks, activation, landmarks, label_N, 7.0, variant=variant, top_images=9)
    assert found.mean == one.mean and torch.equal(found.deviation_CK, one.deviation_CK)
    assert found.category_C.tolist() == [2] * 4


def test_a_landmark_that_a_category_does_not_have_is_left_out_of_its_mean():
    peaks, activation, landmarks = drawn(20, 1, 2, 0.0)
    label_N = (torch.arange(20) >= 10).long()
    landmarks[10:, 1] = torch.nan  # category 1 has the first landmark only
    activation[10:] += 100  # and moves the filter most
    found = of_categories(peaks, activation, landmarks, label_N, 3.0, variant="released")
    alone = location_instability(peaks[10:], activation[10:], landmarks[10:, :1], 3.0)
    assert found.mean == alone.mean
    assert torch.isnan(found.deviation_CK[0, 1])


def test_a_filter_without_any_measure_is_dropped():
    peaks, activation, landmarks = drawn(20, 3, 1, 0.0)
    label_N = (torch.arange(20) >= 10).long()
    landmarks[:10] = torch.nan
    activation[:10, 0] += 100
    released = of_categories(peaks, activation, landmarks, label_N, 3.0, variant="released")
    assert released.dropped >= 1 and torch.isnan(released.per_filter_C[0])
    paper = of_categories(peaks, activation, landmarks, label_N, 3.0)
    assert paper.dropped == 0 and paper.category_C.tolist() == [1] * 3
    landmarks[:] = torch.nan
    assert of_categories(peaks, activation, landmarks, label_N, 3.0).dropped == 3


def test_every_measured_image_has_a_category():
    peaks, activation, landmarks = drawn(4, 1, 1, 0.0)
    for labels in (torch.tensor([0, 1, -1, 0]), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="expected a category for each of the images"):
            of_categories(peaks, activation, landmarks, labels, 3.0)


def test_by_hand():
    peaks = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0], [6.0, 8.0]])
    landmarks = torch.tensor(
        [[[0.0, 0.0], [0.0, 5.0]], [[0.0, 0.0], [NAN, NAN]], [[0.0, 0.0], [0.0, 7.0]], [[0.0] * 2] * 2]
    )
    found = landmark_distances(peaks, torch.tensor([3.0, 1.0, 3.0, 2.0]), landmarks, 10.0, top_images=3)
    assert found.distance_NK[:, 0].tolist() == [0.0, 0.5, 0.8, 1.0]
    assert found.distance_NK[:, 1].tolist() == pytest.approx([0.5, NAN, 0.1, 1.0], nan_ok=True)
    assert found.counted_NK.tolist() == [[True, True], [False, False], [True, True], [True, True]]
    assert found.mean_K.tolist() == pytest.approx([0.6, 1.6 / 3])
    # distances 0, .8, 1 around .6: squares .36 + .04 + .16 = .56 over 2
    assert found.deviation_K[0].item() == pytest.approx(math.sqrt(0.28))


def test_a_landmark_that_is_seen_once_or_never():
    landmarks = torch.tensor([[[1.0, 1.0], [NAN, NAN]], [[NAN, NAN], [NAN, NAN]]])
    found = landmark_distances(torch.ones(2, 2), torch.ones(2), landmarks, 10.0)
    assert found.mean_K[0] == 0 and found.mean_K[1].isnan() and found.deviation_K.isnan().all()


@pytest.mark.parametrize("top_images", [2, 7, 100])
def test_the_mean_deviation_is_the_location_instability(top_images):
    made = torch.Generator().manual_seed(3)
    peaks, landmarks = torch.rand(40, 5, 2, generator=made) * 90, torch.rand(40, 3, 2, generator=made) * 90
    landmarks[torch.rand(40, 3, generator=made) < 0.3] = NAN
    activation = torch.randint(0, 6, (40, 5), generator=made).float()  # many ties
    whole = location_instability(peaks, activation, landmarks, 127.0, top_images=top_images)
    for c in range(5):
        one = landmark_distances(peaks[:, c], activation[:, c], landmarks, 127.0, top_images=top_images)
        assert torch.allclose(one.deviation_K, whole.deviation_CK[c], rtol=0, atol=1e-12)
        assert one.deviation_K.mean().item() == pytest.approx(whole.per_filter_C[c].item(), abs=1e-12)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"shapes \(2, 3\), \(2,\): expected \[2, 2\] and \[2\]"):
        landmark_distances(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 1, 2), 1.0)
