"""Whatever is done to a sound spec, a person gets problems with places, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec.loader import loads

SPECS = Path(__file__).resolve().parents[2] / "specs"
GRID = """\
name: t
seed: 1
data: {kind: voc_part, category: cow, landmarks: [head, neck]}
model:
  network: alexnet
  appended_layer: true
  interpretable_layers: [conv5, conv6]
  dropout: 0.5
  weights: {file: a.npz, layers: [conv1, conv2], channels: bgr}
template: {shape: gradient, norm: l2, beta: 2, tau: 0.1}
loss: {filter: {weight: 0.1, schedule: paper}}
train: {epochs: 9, batch_size: 32, learning_rate: 0.1, final_learning_rate: 0.01, freeze_through: conv2}
eval: {every: 1, layer: conv5}
compute: {workers: 2, gpus_per_worker: 1, concurrent_runs: 2}
search:
  kind: grid
  runs: [{name: plain, set: {template: {shape: none}}}, {name: slow, set: {train.learning_rate: 0.01}}]
  grid: {template.norm: [l1, l2], template.beta: [1, 2]}
  objective: {control: plain, instability_weight: 0.3}
  early_stopping: {grace_epochs: 3, reduction_factor: 2}
"""
STRANGE: list[Any] = [None, True, -1, float("nan"), "1e-4", ["a"], {"a": 1}]


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*above, key)
        yield from paths(value[key], (*above, key))


def damaged(raw: Any) -> Iterator[tuple[str, Any]]:
    for place in paths(raw):
        for strange in [*STRANGE, "removed", "renamed"]:
            copy = deepcopy(raw)
            holder = copy
            for key in place[:-1]:
                holder = holder[key]
            if strange not in ("removed", "renamed"):
                holder[place[-1]] = strange
            else:
                value = holder.pop(place[-1])
                if strange == "renamed" and isinstance(holder, dict):
                    holder[f"{place[-1]}s"] = value
            yield f"{place} {strange!r}", copy


@pytest.mark.parametrize("text", [GRID, (SPECS / "uniform_sweep.yaml").read_text()], ids=["grid", "space"])
def test_any_damage(text):
    sound = loads(text, "s.yaml").spec
    assert sound.search is not None
    refused = 0
    for what, raw in damaged(yaml.safe_load(text)):
        try:
            loads(yaml.safe_dump(raw), "s.yaml")
        except SpecError as error:
            refused += 1
            for problem in error.issues:
                assert problem.where.startswith("s.yaml:"), what
                assert problem.what and problem.advice, what
                assert "Input should" not in str(problem), what
    assert refused > 250
