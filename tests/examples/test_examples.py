"""The examples run, each in a process of its own, on few pictures."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FEW = {"images": 32, "epochs": 2, "image_size": 48, "batch_size": 8}
RAY = {"RAY_worker_niceness": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Workers of nice 15, which is Ray's default, would wait for the other tests."""


def run(module: str) -> dict[str, float]:
    """Run `main` of an example; workers of Ray find it by PYTHONPATH."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "examples")])
    code = f"import json, {module}; print('\\n' + json.dumps({module}.main(**{FEW})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **RAY, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("module", ["train_pytorch", "train_lightning", "train_ray"])
def test_an_example_trains_and_measures(module):
    if module == "train_lightning" and find_spec("lightning") is None:
        pytest.skip("needs Lightning: pip install lightning")
    metrics = run(module)
    assert -3 < metrics["landmark_tracking"] <= 1
    if module == "train_pytorch":
        assert 0 < metrics["instability_best_constant"] < metrics["instability"] + 0.1 < 0.6
    else:
        assert metrics["filter_loss"] < 0


def test_the_network_is_converted_in_twenty_lines():
    text = (ROOT / "tests" / "examples" / "resnet18.py").read_text()
    (network,) = (part for part in text.split("\n\n\n") if part.startswith("class InterpretableResNet"))
    assert len(inspect.cleandoc(network).splitlines()) <= 25  # with five of documentation
