"""The example with Ray Train runs, on the Ray of the tests: to start one takes longer than it trains."""

from __future__ import annotations

import pytest
from fakes.run_example import PATH, run_example


@pytest.mark.slow
def test_the_example_with_ray_trains_and_measures(ray_here: None) -> None:
    metrics = run_example(
        "train_ray", before=f"import ray; ray.init(runtime_env={{'env_vars': {{'PYTHONPATH': {PATH!r}}}}})"
    )
    assert -3 < metrics["landmark_tracking"] <= 1
    assert metrics["filter_loss"] < 0
