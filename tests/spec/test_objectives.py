"""Repeats, objectives and constraints of a search."""

from __future__ import annotations

import pytest
import yaml

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import grid_runs, named_runs, plan, resolved_yaml, seeds
from ipcnn_ray.spec.search import Objectives

BASE = """\
name: t
seed: 7
data: {kind: drawn_animals}
model: {network: compact}
template: {shape: uniform}
train: {epochs: 4}
"""
PLAIN = "{name: plain, set: {template.shape: none}}"
NAMED = f"search: {{kind: named, runs: [{PLAIN}, {{name: u}}]"
GRID = f"search: {{kind: grid, runs: [{PLAIN}], grid: {{template.beta: [1, 2]}}"
SPACE = f"search: {{kind: space, trials: 3, runs: [{PLAIN}], space: {{template.beta: {{uniform: [1, 2]}}}}"


def spec(search: str, more: str = "") -> ExperimentSpec:
    return loads(f"{BASE}{search}{more}}}\n", "s.yaml").spec


def test_repeats_are_the_same_runs_with_the_seeds_that_follow():
    found = spec(GRID, ", repeats: 2")
    assert seeds(found) == (7, 8)
    assert [run.label for run in named_runs(found)] == ["plain.seed7", "plain.seed8"]
    once = grid_runs(spec(GRID))
    repeated = grid_runs(found)
    assert [run.label for run in repeated] == [f"{run.label}.seed{seed}" for seed in (7, 8) for run in once]
    assert [run.group for run in repeated] == [run.label for run in once] * 2
    assert [run.spec.seed for run in repeated] == [7, 7, 8, 8]
    assert repeated[0].spec == once[0].spec  # the first repeat is the run that there would be without repeats
    assert len(plan(found).runs) == 6


def test_named_runs_alone_need_no_grid():
    found = spec(NAMED, ", repeats: 3")
    assert [run.label for run in named_runs(found)] == [f"{name}.seed{s}" for s in (7, 8, 9) for name in ("plain", "u")]
    assert grid_runs(found) == () and plan(found).drawn == 0


def test_specs_from_before_repeats_keep_their_digests():
    before = {GRID: "7c83fc4a", SPACE: "65984c01"}
    for search, known in before.items():
        assert spec(search).digest() == known
        combined = "kind: combined, control: plain, instability_weight: 0.5, interpretability: instability"
        same = f", repeats: 1, constraints: [], objective: {{{combined}}}"
        assert spec(search, same).digest() == known
        for other in (", repeats: 2", ", objective: {kind: measure, measure: val_error}"):
            assert spec(search, other).digest() != known


@pytest.mark.parametrize(
    ("more", "goals"),
    [
        ("", ("combined",)),
        (", objective: {instability_weight: 0.2}", ("combined",)),
        (", objective: {kind: measure, measure: val_error}", ("val_error",)),
        (", objective: {kind: pareto, measures: [instability, val_error]}", ("instability", "val_error")),
    ],
)
def test_what_runs_are_ranked_by(more, goals):
    for search in (NAMED, GRID, SPACE):
        found = spec(search, more)
        assert Objectives.of(found.search) == Objectives(goals, (), "plain")
        assert loads(resolved_yaml(found), "r.yaml").spec == found
    assert Objectives.of(None) == Objectives(("instability",))
    assert Objectives.of(None, landmarks=False) == Objectives(("val_error",))


def test_every_run_measures_what_it_may_be_ranked_by_without_being_asked():
    for name in EVERY_RUN:
        found = spec(SPACE, f", objective: {{kind: measure, measure: {name}}}")
        assert Objectives.of(found.search).goals == (name,) and found.eval.measures == ()
        found = spec(SPACE, f", objective: {{kind: pareto, measures: [{name}, val_error]}}")
        assert Objectives.of(found.search).goals == (name, "val_error")
        found = spec(
            SPACE, f", objective: {{interpretability: {name}}}, constraints: [{{measure: {name}, at_most: 0.5}}]"
        )
        assert found.search.objective.interpretability == name
        assert Objectives.of(found.search) == Objectives(("combined",), found.search.constraints, "plain")
        assert loads(resolved_yaml(found), "r.yaml").spec == found
    assert spec(SPACE, ", objective: {interpretability: following_share}").digest() != spec(SPACE).digest()
    costs = Objectives(("following_share", "keypoint_error")).costs({"following_share": 0.75, "keypoint_error": 0.125})
    assert costs == [-0.75, 0.125]


def test_what_runs_without_landmarks_are_ranked_by():
    none = [name for name in METRICS.built_in if not METRICS.load(name).needs_landmarks()]
    assert none == [
        *("peak_distance", "peak_spread", "peak_stability", "mutual_information_score"),
        *("ablation_own", "ablation_others", "activation_entropy"),
    ]
    raw = yaml.safe_load(resolved_yaml(spec(NAMED)))
    raw["data"] = {"kind": "folder", "path": "birds", "category": ["wren", "robin"]}
    for name in none:
        raw["eval"]["measures"] = [] if name in EVERY_RUN else [name]
        raw["search"]["objective"] = {"kind": "combined", "interpretability": name}
        assert ExperimentSpec.model_validate(raw).search.objective.interpretability == name


def test_violations_are_in_the_unit_of_the_measure():
    bounds = spec(SPACE, ", constraints: [{measure: val_error, at_most: 0.1}, {measure: instability, at_least: 0.1}]")
    assert bounds.search is not None
    found = [bound.violation({"val_error": 0.15, "instability": 0.3}) for bound in bounds.search.constraints]
    assert found == [pytest.approx(0.05), pytest.approx(-0.2)]
    assert [bound.violation({"val_error": float("nan")}) for bound in bounds.search.constraints] == [None, None]
    assert [str(bound) for bound in bounds.search.constraints] == ["val_error <= 0.1", "instability >= 0.1"]
