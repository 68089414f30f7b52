"""Draws from a space, and what a search remembers."""

from __future__ import annotations

import json
import math

import optuna
import pytest

from ipcnn_ray.on_ray.optuna_searcher import OptunaSearcher, directions, sampler
from ipcnn_ray.on_ray.search_space import UNKNOWN, Constraints, DefineByRun, StudyStorage, random_settings
from ipcnn_ray.spec.objectives import Objectives
from ipcnn_ray.spec.search import SpaceSearch

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


def test_random_draws_follow_from_the_seed_and_keep_to_the_space():
    drawn = random_settings(SEARCH, seed=3)
    assert drawn == random_settings(SEARCH, seed=3) != random_settings(SEARCH, seed=4)
    assert len(drawn) == 12
    assert all(0.5 <= one["template.beta"] <= 8 for one in drawn)
    assert {one["template.shape"] for one in drawn} == {"uniform", "gradient"}
    assert all(("template.gamma" in one) == (one["template.shape"] == "uniform") for one in drawn)
    json.dumps(drawn)


def test_a_search_that_goes_on_remembers_what_ended_and_what_did_not(tmp_path):
    memory = StudyStorage(tmp_path / "search" / "optuna.log")
    assert memory.drawn() == [] and memory.ended() == 0
    study, draw = memory.study(), DefineByRun(dict(SEARCH.space))
    trials = [study.ask() for _ in range(4)]
    for trial in trials[:3]:
        draw(trial)  # the process dies before it draws anything for the fourth
    settings = [dict(trial.params) for trial in trials[:3]]
    study.tell(trials[0], 0.5)

    again = StudyStorage(memory.folder)
    again.settle(lambda one: (one == settings[1], [0.7] if one == settings[1] else None))
    assert again.drawn() == settings
    assert again.ended() == 2
    assert [trial.value for trial in again.study().trials] == [0.5, 0.7, None, None]
    assert again.study().trials[2].state == optuna.trial.TrialState.FAIL


def test_a_run_that_ended_without_an_objective_is_not_drawn_again(tmp_path):
    memory = StudyStorage(tmp_path / "optuna.log")
    DefineByRun(dict(SEARCH.space))(memory.study().ask())
    memory.settle(lambda one: (True, None))
    assert memory.ended() == 1


def test_settings_drawn_twice_count_once(tmp_path):
    memory = StudyStorage(tmp_path / "optuna.log")
    for _ in range(2):
        memory.study().enqueue_trial({"template.shape": "gradient", "template.beta": 2.0})
        DefineByRun(dict(SEARCH.space))(memory.study().ask())
    assert memory.drawn() == [{"template.shape": "gradient", "template.beta": 2.0}]


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


def learner(search: SpaceSearch, memory: StudyStorage, seed: int) -> tuple[OptunaSearcher, Constraints]:
    bounds = Constraints(search.constraints)
    return OptunaSearcher(search, memory, sampler(search, seed, bounds), bounds, []), bounds


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_a_search_for_several_goals_learns_its_bounds(tmp_path, algorithm):
    search = pareto(algorithm)
    assert directions(Objectives.of(search)) == ["minimize", "maximize"]
    memory = StudyStorage(tmp_path / "optuna.log", directions(Objectives.of(search)))
    asked, bounds = learner(search, memory, seed=1)
    drawn = []
    for i in range(search.trials):
        settings = asked.suggest(f"t{i}")
        drawn.append(settings["template.beta"])
        asked.on_trial_complete(f"t{i}", measured(drawn[-1]))
    assert bounds.known[json.dumps({"template.beta": drawn[0]})] == [
        pytest.approx(measured(drawn[0])["val_error"] - 0.1)
    ]
    kept = [beta > 4 for beta in drawn]
    assert sum(kept[15:]) > sum(kept[:15])  # it has learned where the error is low
    trials = memory.study().trials
    assert [trial.values for trial in trials] == [[measured(b)["instability"], measured(b)["purity"]] for b in drawn]


def test_a_search_for_several_goals_that_was_killed_goes_on(tmp_path):
    search = pareto("tpe")
    memory = StudyStorage(tmp_path / "optuna.log", directions(Objectives.of(search)))
    asked, _ = learner(search, memory, seed=1)
    betas = [asked.suggest(f"t{i}")["template.beta"] for i in range(4)]
    asked.on_trial_complete("t0", measured(betas[0]))
    asked.on_trial_complete("t1", {**measured(betas[1]), "purity": math.nan})  # could not be measured
    asked.on_trial_complete("t2", None, error=True)

    again = StudyStorage(memory.folder, directions(Objectives.of(search)))
    bounds = Constraints(search.constraints)

    def ended(settings):
        bounds.learn(settings, measured(betas[3]))
        return True, [0.25, 0.75]

    again.settle(ended, sampler(search, 5, bounds))
    states = [trial.state.name for trial in again.study().trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"] and again.ended() == 3
    assert again.study().trials[3].values == [0.25, 0.75]
    assert again.study().trials[3].system_attrs["constraints"] == bounds.known[json.dumps({"template.beta": betas[3]})]
    assert [one["template.beta"] for one in again.drawn()] == betas


def test_a_bound_on_what_was_not_measured_is_violated():
    bounds = Constraints(pareto("tpe").constraints)
    bounds.learn({"template.beta": 1.0}, {"instability": 0.1})
    assert list(bounds.known.values()) == [[UNKNOWN]]
