"""The examples run. The one with Ray: test_train_ray.py."""

from __future__ import annotations

import inspect
from importlib.util import find_spec

import pytest
from fakes.run_example import ROOT, run_example


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train_pytorch", "train_lightning"])
def test_an_example_trains_and_measures(module):
    if module == "train_lightning" and find_spec("lightning") is None:
        pytest.skip("needs Lightning: pip install lightning")
    metrics = run_example(module)
    assert -3 < metrics["landmark_tracking"] <= 1
    if module == "train_pytorch":
        assert 0 < metrics["instability_best_constant"] < metrics["instability"] + 0.1 < 0.6
    else:
        assert metrics["filter_loss"] < 0


def test_the_network_is_converted_in_twenty_lines():
    text = (ROOT / "tests" / "examples" / "resnet18.py").read_text()
    (network,) = (part for part in text.split("\n\n\n") if part.startswith("class InterpretableResNet"))
    assert len(inspect.cleandoc(network).splitlines()) <= 25  # with five of documentation
