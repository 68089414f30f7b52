"""Optuna as a searcher of Tune, with one or several objectives and constraints."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from ipcnn_ray.on_ray.search_space import Constraints, Direction, SearchSpace, Settings, StudyStorage
from ipcnn_ray.on_ray.tune_callback import STOPPED
from ipcnn_ray.spec.search import Objectives, SpaceSearch, lower_is_better


def modes(objectives: Objectives) -> list[str]:
    """Return Tune's `min` or `max` for each objective."""
    return ["min" if lower_is_better(goal) else "max" for goal in objectives.goals]


def directions(objectives: Objectives) -> list[Direction]:
    """Return Optuna's `minimize` or `maximize` for each objective."""
    return ["minimize" if lower_is_better(goal) else "maximize" for goal in objectives.goals]


def make_sampler(search: SpaceSearch, seed: int, constraints: Constraints) -> optuna.samplers.BaseSampler:
    """Return the sampler of an adaptive search.

    TPE samples a third of the trials, at least 2 and at most 10, at random before it learns; NSGA-II its first
    generation.
    """
    constraints_func = constraints if search.constraints else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constraints_func is experimental in Optuna 4 and has an alternative in 5
        if search.algorithm == "nsga2":
            population = min(50, max(4, search.trials // 4))
            return optuna.samplers.NSGAIISampler(
                population_size=population, seed=seed, constraints_func=constraints_func
            )
        startup = min(10, max(2, search.trials // 3))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constraints_func=constraints_func)


class OptunaSearcher(OptunaSearch):
    """Reports each finished run to Optuna with its constraint violations.

    A run that lacks an objective is reported without values: Optuna does not learn from it or sample it again.
    """

    def __init__(
        self,
        search: SpaceSearch,
        study: StudyStorage,
        sampler: optuna.samplers.BaseSampler,
        constraints: Constraints,
        points_to_evaluate: Sequence[Settings],
    ) -> None:
        """points_to_evaluate: settings that are trained before the sampled ones."""
        self._objectives = Objectives.of(search)
        self._constraints = constraints
        self._settings: dict[str, Settings] = {}
        several = len(self._objectives.goals) > 1
        super().__init__(
            space=SearchSpace(dict(search.space)),
            metric=list(self._objectives.goals) if several else self._objectives.goals[0],
            mode=modes(self._objectives) if several else modes(self._objectives)[0],
            points_to_evaluate=list(points_to_evaluate),
            sampler=sampler,
            study_name=StudyStorage.STUDY,
            storage=study.storage(),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        settings: dict[str, Any] | None = super().suggest(trial_id)
        self._settings[trial_id] = dict(settings or {})
        return settings

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        if STOPPED in (result or {}):
            return  # a stopped run has not finished: its Optuna trial stays open until the search resumes
        metrics = {key: value for key, value in (result or {}).items() if isinstance(value, float)}
        self._constraints.record(self._settings[trial_id], metrics)
        complete = dict(result) if result and self._objectives.costs(metrics) else None
        super().on_trial_complete(trial_id, complete, error)
