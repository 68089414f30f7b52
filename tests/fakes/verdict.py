"""Settings with the numbers of a plain network, of a narrow template, and of the authors' code, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping

from fakes import tracker
from fakes.tracker import FakeTracker
from ipcnn_ray.tracking.run_summary import RunSummary

BASELINES = {"instability_center": 0.0755, "instability_best_constant": 0.0753, "instability_random": 0.1389}
NOISE = (0.0, 0.3, -0.2, 0.25, -0.1)
"""Deviation of each of five seeds, relative to a tenth of the mean, for the error to a half of it."""
PLAIN = {
    "instability": 0.1263,
    "following_share": 0.25,
    "following_share_shuffled": 0.03,
    "peak_spread": 0.27,
    "landmark_coverage": 1.5,
    "val_error": 0.032,
    "following_head": 6.0,
    "following_neck": 2.0,
    "following_torso": 0.0,
    "landmark_tracking": -0.29,
    "landmark_tracking_shuffled": -1.1,
    "landmark_tracking_few": -0.1,
    "following_share_few": 0.3,
    "landmarks_followed": 2.0,
    "peak_distance": 0.45,
    "keypoint_error": 0.12,
    "keypoint_error_mean": 0.15,
}
NARROW = {
    **PLAIN,
    "instability": 0.0659,
    "following_share": 0.97,
    "landmark_coverage": 1.0,
    "val_error": 0.034,
    "following_head": 31.0,
    "following_neck": 0.0,
    "landmark_tracking": 0.92,
    "peak_distance": 0.14,
}
RELEASED = {**PLAIN, "instability": 0.0649, "following_share": 0.25, "peak_spread": 0.11}


def metrics_of(means: Mapping[str, float], seed: int, shift: int = 0) -> dict[str, float]:
    """`means` with the deviations of a seed, those of NOISE rotated by `shift`."""
    noise = NOISE[(seed + shift) % len(NOISE)]
    values = {key: value * (1 + (0.5 if key == "val_error" else 0.1) * noise) for key, value in means.items()}
    return {**values, **BASELINES}


def trained(name: str, means: Mapping[str, float], seeds: int = 5, shift: int = 0, **facts: object) -> list[RunSummary]:
    """The succeeded runs of a setting, one for each seed."""
    runs = []
    for seed in range(seeds):
        label = f"{name}.seed{seed}" if seeds > 1 else name
        known = {"group": name, "seed": seed, "template": name, "state": "succeeded"}
        runs.append(RunSummary(f"a-1-{label}", label, **{**known, "metrics": metrics_of(means, seed, shift), **facts}))
    return runs


def recorded(seeds: int = 5) -> FakeTracker:
    """An experiment `drawn`: plain, a narrow template, and the template of the authors' code."""
    found = FakeTracker()
    found.parent("drawn", spec={"search": {"kind": "named", "repeats": seeds}})
    released = {"template.shape": "released"}
    settings = {
        "plain": (tracker.PLAIN, PLAIN),
        "narrow": (tracker.gradient("l2", 10.0), NARROW),
        "released": (released, RELEASED),
    }
    for shift, (name, (params, means)) in enumerate(settings.items()):
        for seed in range(seeds):
            more = metrics_of(means, seed, shift)
            values = {"instability": more.pop("instability"), "error": more.pop("val_error")}
            found.child("drawn", f"{name}.seed{seed}", params, seed=seed, more=more, **values)
    return found
