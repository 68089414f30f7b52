"""Runs of an experiment: labels, settings, what a setting changes, and their cost."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.data.datasets.voc_part import VocPart
from ipcnn_ray.spec.data import in_training
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import load, loads
from ipcnn_ray.spec.runs import experiment_id, grid_runs, named_runs, plan, resolved_yaml, run_for, run_id
from ipcnn_ray.spec.search import MAX_CORNERS, SpaceSearch, active, points

BASE = """\
name: t
data: {kind: drawn_animals}
model: {network: compact}
template: {shape: uniform, gamma: 0.5}
loss: {filter: {weight: 0.3}}
train: {epochs: 4, learning_rate: 0.1}
compute: {workers: 2, concurrent_runs: 3}
"""
RUNS = "  runs:\n    - {name: plain, set: {template: {shape: none}}}\n"
GRID = "search:\n  kind: grid\n" + RUNS + "  grid: {template.shape: [gradient, uniform], template.norm: [l1, l2]}\n"
SPACE = "search:\n  kind: space\n  trials: 2\n" + RUNS + "  space:\n"


def spec(text: str) -> ExperimentSpec:
    return loads(text, "s.yaml").spec


def test_without_a_search_there_is_one_run():
    single = spec(BASE.replace(", concurrent_runs: 3", ""))
    (run,) = named_runs(single)
    assert (run.label, run.spec, dict(run.settings)) == ("run", single, {})
    assert grid_runs(single) == ()
    assert run_id(single, run) == f"t-{single.digest()}-run"


def test_the_control_drops_the_filter_loss():
    (plain,) = named_runs(spec(BASE + GRID))
    assert plain.label == "plain"
    assert plain.spec.template.shape == "none"
    assert plain.spec.loss.filter is None
    assert plain.spec.search is None


def test_a_grid_is_every_combination():
    experiment = spec(BASE + GRID)
    runs = grid_runs(experiment)
    assert [tuple(run.settings.values()) for run in runs] == list(product(["gradient", "uniform"], ["l1", "l2"]))
    labels = ["L1 β2", "L2 β2", "uniform L1 β2 γ0.5", "uniform L2 β2 γ0.5"]
    assert [run.spec.template.label() for run in runs] == labels
    assert all(run.spec.loss.filter is not None and run.spec.loss.filter.weight == 0.3 for run in runs)
    assert len({run.label for run in runs}) == 4
    assert all(run.label == f"r{run.spec.digest()}" for run in runs)
    assert run_id(experiment, runs[0]) == f"{experiment_id(experiment)}-{runs[0].label}"


def test_a_combination_that_a_named_run_trains_is_not_trained_twice():
    runs = RUNS + "    - {name: l1, set: {template: {shape: gradient}}}\n"
    labels = [run.spec.template.label() for run in grid_runs(spec(BASE + GRID.replace(RUNS, runs)))]
    assert labels == ["L2 β2", "uniform L1 β2 γ0.5", "uniform L2 β2 γ0.5"]


def test_equal_settings_have_equal_labels():
    experiment = spec(BASE + GRID)
    same = [{"template.beta": 3}, {"template.beta": 3.0}, {"template.beta": 3.0, "template.norm": "l1"}]
    assert len({run_for(experiment, settings).label for settings in same}) == 1
    assert run_for(experiment, {"template.beta": 3.5}).label != run_for(experiment, same[0]).label
    assert run_for(experiment, same[0], "mine").label == "mine"


def test_dependent_defaults_follow_a_setting():
    experiment = spec(BASE + GRID)
    run = run_for(experiment, {"train.learning_rate": 0.02, "model.network": "vgg16"})
    assert run.spec.train.final_learning_rate == 0.02
    assert run.spec.model.interpretable_layers == ("conv5_3", "conv6")
    assert (run.spec.eval.layer, run.spec.model.dropout) == ("conv6", 0.5)


def test_runs_of_the_resolved_spec_are_the_same_runs():
    experiment = spec(BASE + GRID)
    again = loads(resolved_yaml(experiment), "r.yaml").spec
    for settings in ({"train.learning_rate": 0.02}, {"template.shape": "none"}, {"model.appended_layer": False}):
        assert run_for(again, settings) == run_for(experiment, settings)


def test_what_a_run_keeps_and_drops():
    run = run_for(spec(BASE + GRID), {"template.beta": 3})
    assert (run.spec.compute.workers, run.spec.compute.concurrent_runs) == (2, None)
    assert loads(resolved_yaml(run.spec), "r.yaml").spec == run.spec


def test_an_impossible_setting_is_an_error():
    with pytest.raises(ValidationError, match="greater than 0"):
        run_for(spec(BASE + GRID), {"template.beta": -1})
    with pytest.raises(ValidationError, match="has no filter loss"):
        run_for(spec(BASE + GRID), {"template.shape": "none", "loss.filter.weight": 0.2})


def test_corners_are_ends_and_choices_with_conditions():
    space = "    template.shape: {choice: [gradient, uniform]}\n    template.beta: {log_uniform: [1, 4]}\n"
    space += "    template.gamma: {uniform: [0.5, 2], when: {template.shape: uniform}}\n"
    search = spec(BASE + SPACE + space).search
    assert isinstance(search, SpaceSearch)
    found = [tuple(corner.values()) for corner in points(search)]
    gradient = [("gradient", 1.0), ("gradient", 4.0)]
    uniform = [("uniform", low, high) for low in (1.0, 4.0) for high in (0.5, 2.0)]
    assert found == gradient + uniform


def test_a_condition_on_an_inactive_field_does_not_hold():
    space = (
        "    template.norm: {choice: [l1, l2]}\n    train.batch_size: {choice: [32, 64], when: {template.norm: l1}}\n"
    )
    space += "    template.beta: {uniform: [1, 2], when: {train.batch_size: 32}}\n"
    search = spec(BASE + SPACE + space).search
    assert isinstance(search, SpaceSearch)
    chosen = {"template.norm": "l2", "train.batch_size": 32, "template.beta": 1.5}
    assert active(search.space, chosen) == {"template.norm": "l2"}
    assert active(search.space, chosen | {"template.norm": "l1"}) == chosen | {"template.norm": "l1"}


def test_every_value_is_tried_even_in_a_large_space():
    fields = [f"template.{name}" for name in ("beta", "gamma", "tau")]
    fields += ["train.learning_rate", "train.momentum", "loss.filter.weight"]
    space = "".join(f"    {field}: {{choice: [0.1, 0.2, 0.3, 0.4]}}\n" for field in fields)
    search = spec(BASE + SPACE + space).search
    assert isinstance(search, SpaceSearch)
    found = points(search)
    assert len(found) < MAX_CORNERS < 4**6
    for field in fields:
        assert {corner[field] for corner in found} == {0.1, 0.2, 0.3, 0.4}


def test_a_large_space_is_reduced_to_corners_that_still_draw_every_field(monkeypatch):
    """A field that waits for a later value of another one is looked at beside that value."""
    space = "    template.shape: {choice: [gradient, uniform, ring]}\n"
    space += "    train.learning_rate: {log_uniform: [0.001, 0.01]}\n"
    space += "    template.beta: {uniform: [1.0, 3.0], when: {template.shape: gradient}}\n"
    space += "    template.radius: {uniform: [0.1, 0.4], when: {template.shape: ring}}\n"
    search = spec(BASE + SPACE + space).search
    monkeypatch.setattr("ipcnn_ray.spec.search.MAX_CORNERS", 3)
    values = points(search)
    for radius in (0.1, 0.4):
        assert any(one.get("template.shape") == "ring" and one.get("template.radius") == radius for one in values)
    assert all("template.radius" not in one for one in values if one["template.shape"] != "ring")
    assert len(values) <= 9


SPECS = Path(__file__).resolve().parents[2] / "specs"
SMALL = """\
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
    assert data.train_items() == len(split.items_of_categories([37], 23, 0.7, repeat=False)[0])


def test_a_single_run():
    found = plan(loads(SMALL, "s.yaml").spec)
    (run,) = found.runs
    assert (run.label, run.items, run.steps, run.images) == ("run", 16, 2 * 4, 64)
    assert (found.drawn, found.largest, found.steps, found.images, found.workers) == (0, None, 8, 64, 1)


def test_a_space_costs_at_most_its_dearest_corner():
    text = SMALL + "search: {kind: space, trials: 3, runs: [{name: plain, set: {template.shape: none}}], "
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
