"""Sampled settings, constraints, and the study of a search that is resumed."""

from __future__ import annotations

import json
import math

import optuna
import pytest

from ipcnn_ray.on_ray.optuna_searcher import (
    UNKNOWN_VIOLATION,
    Constraints,
    OptunaSearcher,
    SearchSpace,
    StudyStorage,
    directions,
    make_sampler,
    random_settings,
)
from ipcnn_ray.spec.search import Objectives, SpaceSearch

SEARCH = SpaceSearch.model_validate(
    {
        "kind": "space",
        "algorithm": "random",
        "trials": 12,
        "runs": [{"name": "plain", "set": {"template.shape": "none"}}],
        "space": {
            "template.gamma": {"uniform": [0.5, 8.0], "when": {"template.shape": "uniform"}},
            "template.shape": {"choice": ["uniform", "gradient"]},
            "template.beta": {"log_uniform": [0.5, 8.0]},
        },
    }
)


def test_random_settings_follow_from_the_seed_and_keep_to_the_space():
    sampled = random_settings(SEARCH, seed=3)
    assert sampled == random_settings(SEARCH, seed=3) != random_settings(SEARCH, seed=4)
    assert len(sampled) == 12
    assert all(0.5 <= one["template.beta"] <= 8 for one in sampled)
    assert {one["template.shape"] for one in sampled} == {"uniform", "gradient"}
    assert all(("template.gamma" in one) == (one["template.shape"] == "uniform") for one in sampled)
    json.dumps(sampled)


def test_a_resumed_search_knows_its_finished_and_its_open_trials(tmp_path):
    storage = StudyStorage(tmp_path / "search" / "optuna.log")
    assert storage.sampled_settings() == [] and storage.finished_trials() == 0
    study, space = storage.study(), SearchSpace(dict(SEARCH.space))
    trials = [study.ask() for _ in range(4)]
    for trial in trials[:3]:
        space(trial)  # the process dies before it draws anything for the fourth
    settings = [dict(trial.params) for trial in trials[:3]]
    study.tell(trials[0], 0.5)

    again = StudyStorage(storage.folder)
    again.close_open_trials(lambda one: (one == settings[1], [0.7] if one == settings[1] else None))
    assert again.sampled_settings() == settings
    assert again.finished_trials() == 2
    assert [trial.value for trial in again.study().trials] == [0.5, 0.7, None, None]
    assert again.study().trials[2].state == optuna.trial.TrialState.FAIL


def test_a_run_without_an_objective_is_not_repeated(tmp_path):
    storage = StudyStorage(tmp_path / "optuna.log")
    SearchSpace(dict(SEARCH.space))(storage.study().ask())
    storage.close_open_trials(lambda one: (True, None))
    assert storage.finished_trials() == 1


def test_settings_that_are_sampled_twice_count_once(tmp_path):
    storage = StudyStorage(tmp_path / "optuna.log")
    for _ in range(2):
        storage.study().enqueue_trial({"template.shape": "gradient", "template.beta": 2.0})
        SearchSpace(dict(SEARCH.space))(storage.study().ask())
    assert storage.sampled_settings() == [{"template.shape": "gradient", "template.beta": 2.0}]


def pareto(algorithm: str) -> SpaceSearch:
    """Instability is to be low, purity high, and the error at most a tenth."""
    more = {
        "algorithm": algorithm,
        "trials": 30,
        "objective": {"kind": "pareto", "measures": ["instability", "purity"]},
        "constraints": [{"measure": "val_error", "at_most": 0.1}],
        "space": {"template.beta": {"log_uniform": [0.5, 8.0]}},
    }
    return SpaceSearch.model_validate({**SEARCH.model_dump(mode="json"), **more})


def measured(beta: float) -> dict[str, float]:
    """Three measures that pull in different directions; the error is low for large beta alone."""
    return {"instability": beta / 10, "purity": beta / 8, "val_error": 0.05 if beta > 4 else 0.3}


def make_searcher(search: SpaceSearch, storage: StudyStorage, seed: int) -> tuple[OptunaSearcher, Constraints]:
    constraints = Constraints(search.constraints)
    return OptunaSearcher(search, storage, make_sampler(search, seed, constraints), constraints, []), constraints


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_a_pareto_search_learns_its_constraints(tmp_path, algorithm):
    search = pareto(algorithm)
    assert directions(Objectives.of(search)) == ["minimize", "maximize"]
    storage = StudyStorage(tmp_path / "optuna.log", directions(Objectives.of(search)))
    searcher, constraints = make_searcher(search, storage, seed=1)
    drawn = []
    for i in range(search.trials):
        settings = searcher.suggest(f"t{i}")
        drawn.append(settings["template.beta"])
        searcher.on_trial_complete(f"t{i}", measured(drawn[-1]))
    assert constraints.known[json.dumps({"template.beta": drawn[0]})] == [
        pytest.approx(measured(drawn[0])["val_error"] - 0.1)
    ]
    kept = [beta > 4 for beta in drawn]
    assert sum(kept[15:]) > sum(kept[:15])  # it has learned where the error is low
    trials = storage.study().trials
    assert [trial.values for trial in trials] == [[measured(b)["instability"], measured(b)["purity"]] for b in drawn]


def test_a_pareto_search_that_was_killed_resumes(tmp_path):
    search = pareto("tpe")
    storage = StudyStorage(tmp_path / "optuna.log", directions(Objectives.of(search)))
    searcher, _ = make_searcher(search, storage, seed=1)
    betas = [searcher.suggest(f"t{i}")["template.beta"] for i in range(4)]
    searcher.on_trial_complete("t0", measured(betas[0]))
    searcher.on_trial_complete("t1", {**measured(betas[1]), "purity": math.nan})  # could not be measured
    searcher.on_trial_complete("t2", None, error=True)

    again = StudyStorage(storage.folder, directions(Objectives.of(search)))
    constraints = Constraints(search.constraints)

    def ended(settings):
        constraints.record(settings, measured(betas[3]))
        return True, [0.25, 0.75]

    again.close_open_trials(ended, make_sampler(search, 5, constraints))
    states = [trial.state.name for trial in again.study().trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"] and again.finished_trials() == 3
    assert again.study().trials[3].values == [0.25, 0.75]
    assert (
        again.study().trials[3].system_attrs["constraints"]
        == constraints.known[json.dumps({"template.beta": betas[3]})]
    )
    assert [one["template.beta"] for one in again.sampled_settings()] == betas


def test_a_constraint_on_an_unmeasured_metric_is_violated():
    constraints = Constraints(pareto("tpe").constraints)
    constraints.record({"template.beta": 1.0}, {"instability": 0.1})
    assert list(constraints.known.values()) == [[UNKNOWN_VIOLATION]]
