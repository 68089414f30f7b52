"""What an experiment will cost, redone on paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.data.datasets.voc_part import VocPart
from ipcnn_ray.spec.data import in_training
from ipcnn_ray.spec.loader import load, loads
from ipcnn_ray.spec.runs import plan

SPECS = Path(__file__).resolve().parents[2] / "specs"
TEXT = """\
name: t
data: {kind: drawn_animals, objects: 10, negatives: 11, train_share: 0.5}
model: {network: compact}
template: {shape: uniform}
train: {epochs: 4, batch_size: 8}
"""


def rounded_split(n: int, share: float) -> int:
    """The slow twin: the distinct indices of round(linspace(1, n, round(share n))), half away from zero."""
    count = int(share * n + 0.5)
    ends = [n] if count == 1 else [1 + (n - 1) * i / (count - 1) for i in range(count)]
    return len({int(x + 0.5) for x in ends})


@pytest.mark.parametrize("n", [10, 11, 194, 250, 400, 1000])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_items_in_training(n, share):
    assert in_training(n, share) == rounded_split(n, share)


def test_drawn_items():
    # 5 of 10 objects, each twice, and 6 of 11 negatives (5.5 rounds up)
    assert DrawnAnimals(kind="drawn_animals", objects=10, negatives=11, train_share=0.5).train_items() == 16
    assert VocPart(kind="voc_part", category="cow").train_items() is None


def test_drawn_items_are_those_of_the_data():
    split = pytest.importorskip("ipcnn_ray.data.split")
    data = DrawnAnimals(kind="drawn_animals", objects=37, negatives=23, train_share=0.7)
    assert data.train_items() == len(split.items(37, 23, 0.7, None)[0])


def test_a_single_run():
    found = plan(loads(TEXT, "s.yaml").spec)
    (run,) = found.runs
    assert (run.label, run.items, run.steps, run.images) == ("run", 16, 2 * 4, 64)
    assert (found.drawn, found.largest, found.steps, found.images, found.workers) == (0, None, 8, 64, 1)


def test_a_space_costs_at_most_its_dearest_corner():
    text = TEXT + "search: {kind: space, trials: 3, runs: [{name: plain, set: {template.shape: none}}], "
    text += "space: {train.epochs: {choice: [2, 6]}}, early_stopping: {grace_epochs: 1}}\n"
    found = plan(loads(text, "s.yaml").spec)
    assert found.largest is not None
    assert (found.drawn, found.largest.epochs, found.largest.steps, found.grace_epochs) == (3, 6, 12, 1)
    assert (found.steps, found.images) == (8 + 3 * 12, 8 * (8 + 3 * 12))


def test_what_only_the_data_knows():
    spec = load(SPECS / "voc" / "alexnet_templates.yaml").spec
    assert [run.steps for run in plan(spec).runs] == [None] * 5
    assert plan(spec).steps is None
    counted = plan(spec, lambda data: 1000)
    assert [run.steps for run in counted.runs] == [1000 // spec.train.batch_size * spec.train.epochs] * 5
