"""Repeats, objectives and constraints of a search: what they mean, and what is refused, in words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.objectives import Objectives, violations
from ipcnn_ray.spec.runs import digest, grid_runs, named_runs, plan, resolved_yaml, seeds
from ipcnn_ray.spec.search import NamedSearch
from ipcnn_ray.spec.search_validation import objective_issues

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
        assert digest(spec(search)) == known
        same = ", repeats: 1, constraints: [], objective: {kind: combined, control: plain, instability_weight: 0.5}"
        assert digest(spec(search, same)) == known
        for other in (", repeats: 2", ", objective: {kind: measure, measure: val_error}"):
            assert digest(spec(search, other)) != known


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


def test_violations_are_in_the_unit_of_the_measure():
    bounds = spec(SPACE, ", constraints: [{measure: val_error, at_most: 0.1}, {measure: instability, at_least: 0.1}]")
    assert bounds.search is not None
    found = violations(bounds.search.constraints, {"val_error": 0.15, "instability": 0.3})
    assert found == [pytest.approx(0.05), pytest.approx(-0.2)]
    assert violations(bounds.search.constraints, {"val_error": float("nan")}) == [None, None]


STOPPING = ", early_stopping: {grace_epochs: 2}"
PARETO = ", objective: {kind: pareto, measures: [instability, val_error]}"
WRONG = [
    (NAMED, ", repeats: 0", "search.repeats = 0", "must be at least 1"),
    (NAMED, ", repeats: 41", "search.repeats = 41", "must be at most 40"),
    (NAMED, STOPPING, "search.early_stopping = {grace_epochs: 2}", "search with kind: named has no such field"),
    (
        GRID,
        f", repeats: 2{STOPPING}",
        "search.repeats = 2",
        "a repeat that is stopped early leaves its seed without a pair; drop search.early_stopping",
    ),
    (
        GRID.replace("template.beta: [1, 2]", "seed: [1, 2]"),
        ", repeats: 2",
        "search.grid.seed = [1, 2]",
        "search.repeats gives the runs their seeds; drop one of the two",
    ),
    (
        NAMED.replace("{name: u}", "{name: u, set: {seed: 3}}"),
        ", repeats: 2",
        "search.runs.1.set.seed = 3",
        "search.repeats gives the runs their seeds; drop one of the two",
    ),
    (
        SPACE,
        f"{PARETO}{STOPPING}",
        "search.early_stopping = {grace_epochs: 2, reduction_factor: 3}",
        "early stopping ranks runs by one number, and a Pareto search has several; drop one of the two",
    ),
    (
        SPACE,
        ", objective: {kind: pareto, measures: [instability]}",
        "search.objective.measures = ['instability']",
        "must have at least 2 value(s)",
    ),
    (
        SPACE,
        ", objective: {kind: pareto, measures: [instability, val_error, instability]}",
        "search.objective.measures.2 = 'instability'",
        "is listed twice; list it once",
    ),
    (
        SPACE,
        ", objective: {kind: parato, measures: [instability, val_error]}",
        "search.objective.kind = 'parato'",
        "must be one of measure, pareto, combined. Did you mean 'pareto'?",
    ),
    (
        SPACE,
        ", objective: {kind: measure, measure: eror}",
        "search.objective.measure = 'eror'",
        "must be one of instability, val_error, part_interpretability, consistency, stability, purity, "
        "mutual_information_score, ablation_own, ablation_others, activation_entropy. Did you mean 'val_error'?",
    ),
    (
        SPACE,
        ", objective: {kind: measure, measure: val_error, instability_weight: 0.1}",
        "search.objective.instability_weight = 0.1",
        "search.objective with kind: measure has no such field; it belongs to kind: combined",
    ),
    (
        SPACE,
        ", constraints: [{measure: val_error}]",
        "search.constraints.0 = {measure: 'val_error'}",
        "must say one of at_most and at_least; write two constraints for two bounds",
    ),
    (
        SPACE,
        ", constraints: [{measure: val_error, at_most: 0.1}, {measure: val_error, at_most: 0.2}]",
        "search.constraints.1.measure = 'val_error'",
        "is bounded twice on the same side; keep the narrower bound",
    ),
    (
        SPACE.replace(
            "{uniform: [1, 2]}", "{uniform: [1, 2], when: {template.norm: l1}}, template.norm: {choice: [l1, l2]}"
        ),
        ", algorithm: nsga2",
        "search.space.template.beta.when = {template.norm: 'l1'}",
        "nsga2 inherits only fields that every run has, and draws this one at random; take tpe",
    ),
]


@pytest.mark.parametrize(("search", "more", "what", "advice"), WRONG)
def test_what_is_refused(search, more, what, advice):
    with pytest.raises(SpecError) as error:
        spec(search, more)
    (problem,) = error.value.issues
    assert (problem.where, problem.what) == ("s.yaml:7", what)
    assert problem.advice.startswith(advice)


def test_the_last_seed():
    with pytest.raises(SpecError, match="the last seed would be 4294967296; seeds end at 4294967295"):
        loads(f"{BASE.replace('seed: 7', 'seed: 4294967295')}{NAMED}, repeats: 2}}\n", "s.yaml")


def test_a_measure_that_no_run_takes():
    raw = {
        "kind": "named",
        "runs": [{"name": "plain"}],
        "objective": {"kind": "pareto", "measures": ["instability", "purity"]},
        "constraints": [{"measure": "stability", "at_least": 0.5}, {"measure": "val_error", "at_most": 0.1}],
    }
    search, evaluation = NamedSearch.model_validate(raw), SimpleNamespace(measures=("consistency",))
    told = [(finding.what, finding.advice) for finding in objective_issues(search, {"eval": evaluation})]
    advice = "is not measured: add it to eval.measures, ['consistency']"
    assert told == [
        ("search.objective.measures.1 = 'purity'", advice),
        ("search.constraints.0.measure = 'stability'", advice),
    ]
    assert not list(objective_issues(search, {"eval": SimpleNamespace(measures=("purity", "stability"))}))
