from __future__ import annotations

import json

import pytest

from ipcnn_ray.data.inspection import summary
from ipcnn_ray.data.prepare import prepare


def test_a_summary_by_hand(folder):
    store = prepare(folder.spec(landmarks=("torso", "neck"), min_side=10), 33, folder.paths)
    found = json.loads(json.dumps(summary(store)))
    assert (found["digest"], found["image_size"]) == (store.digest, 33)
    assert (found["objects"], found["negatives"], found["left_out"]) == (8, 6, {})
    # 18 positive items: objects 0..7 twice and object 0 again; trained: round(linspace(1, 8, 6)) = 1 2 4 5 7 8
    assert found["splits"] == {
        "training": {"items": 14 + 5, "positive_items": 14, "negative_items": 5, "objects": 6},
        "validation": {"items": 4 + 1, "positive_items": 4, "negative_items": 1, "objects": 2},
    }
    assert found["landmarks"]["torso"] == {
        "seen": 8,
        "share": 1.0,
        "mean": pytest.approx([16 / 33, 16 / 33]),
        "deviation": pytest.approx([0, 0], abs=1e-6),
    }
    assert found["landmarks"]["neck"]["seen"] == 4
    assert found["landmarks"]["neck"]["share"] == 0.5
    assert found["brightness"]["objects"] == pytest.approx(float(store.images_N3SS[:8].mean()))
    assert found["brightness"]["negatives"] == pytest.approx(float(store.images_N3SS[8:].mean()))


def test_a_landmark_that_is_hardly_seen_has_no_mean(folder):
    store = prepare(folder.spec(landmarks=("nose",)), 33, folder.paths)
    store.landmarks_NK2[6] = float("nan")
    assert summary(store)["landmarks"]["nose"] == {"seen": 1, "share": 0.125, "mean": None, "deviation": None}
