"""A filter's distances to the landmarks by hand, and that their deviations are its location instability."""

from __future__ import annotations

import math

import pytest
import torch

from ipcnn_ray.core.metrics.location_instability import landmark_distances, location_instability

NAN = math.nan


def test_by_hand():
    peaks = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0], [6.0, 8.0]])
    landmarks = torch.tensor(
        [[[0.0, 0.0], [0.0, 5.0]], [[0.0, 0.0], [NAN, NAN]], [[0.0, 0.0], [0.0, 7.0]], [[0.0] * 2] * 2]
    )
    found = landmark_distances(peaks, torch.tensor([3.0, 1.0, 3.0, 2.0]), landmarks, 10.0, top_images=3)
    assert found.distance_NK[:, 0].tolist() == [0.0, 0.5, 0.8, 1.0]
    assert found.distance_NK[1, 1].isnan() and found.distance_NK[[0, 2, 3], 1].tolist() == pytest.approx(
        [0.5, 0.1, 1.0]
    )
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
