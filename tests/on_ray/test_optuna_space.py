"""Draws from a space, and what a search remembers."""

from __future__ import annotations

import json

import optuna

from ipcnn_ray.on_ray.optuna_space import DefineByRun, Memory, random_settings
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
    memory = Memory(tmp_path / "search" / "optuna.log")
    assert memory.drawn() == [] and memory.ended() == 0
    study, draw = memory.study(), DefineByRun(dict(SEARCH.space))
    trials = [study.ask() for _ in range(4)]
    for trial in trials[:3]:
        draw(trial)  # the process dies before it draws anything for the fourth
    settings = [dict(trial.params) for trial in trials[:3]]
    study.tell(trials[0], 0.5)

    again = Memory(memory.path)
    again.settle(lambda one: (one == settings[1], 0.7 if one == settings[1] else None))
    assert again.drawn() == settings
    assert again.ended() == 2
    assert [trial.value for trial in again.study().trials] == [0.5, 0.7, None, None]
    assert again.study().trials[2].state == optuna.trial.TrialState.FAIL


def test_a_run_that_ended_without_an_objective_is_not_drawn_again(tmp_path):
    memory = Memory(tmp_path / "optuna.log")
    DefineByRun(dict(SEARCH.space))(memory.study().ask())
    memory.settle(lambda one: (True, None))
    assert memory.ended() == 1


def test_settings_drawn_twice_count_once(tmp_path):
    memory = Memory(tmp_path / "optuna.log")
    for _ in range(2):
        memory.study().enqueue_trial({"template.shape": "gradient", "template.beta": 2.0})
        DefineByRun(dict(SEARCH.space))(memory.study().ask())
    assert memory.drawn() == [{"template.shape": "gradient", "template.beta": 2.0}]
