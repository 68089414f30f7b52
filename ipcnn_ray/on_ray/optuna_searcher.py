"""Optuna as a searcher of Tune: one goal or several, and bounds that the runs must keep."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from ipcnn_ray.on_ray.search_space import Constraints, DefineByRun, Direction, Settings, StudyStorage
from ipcnn_ray.on_ray.tune_callback import STOPPED
from ipcnn_ray.spec.objectives import Objectives, lower
from ipcnn_ray.spec.search import SpaceSearch


def modes(objectives: Objectives) -> list[str]:
    """Of each goal what Tune calls its direction."""
    return ["min" if lower(goal) else "max" for goal in objectives.goals]


def directions(objectives: Objectives) -> list[Direction]:
    """Of each goal what Optuna calls its direction."""
    return ["minimize" if lower(goal) else "maximize" for goal in objectives.goals]


def sampler(search: SpaceSearch, seed: int, bounds: Constraints) -> optuna.samplers.BaseSampler:
    """What draws the runs: of TPE a third of the trials, ten at most, is drawn at random before anything is learned;
    of NSGA-II the first generation."""
    bounded = bounds if search.constraints else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna 5 has another way beside this one, Optuna 4 calls it experimental
        if search.algorithm == "nsga2":
            population = min(50, max(4, search.trials // 4))
            return optuna.samplers.NSGAIISampler(population_size=population, seed=seed, constraints_func=bounded)
        startup = min(10, max(2, search.trials // 3))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constraints_func=bounded)


class OptunaSearcher(OptunaSearch):
    """Tells Optuna how a run ended, its violations of the bounds included. A run that lacks one of its goals teaches
    nothing, and is not drawn again."""

    def __init__(
        self,
        search: SpaceSearch,
        memory: StudyStorage,
        sampler: optuna.samplers.BaseSampler,
        bounds: Constraints,
        first: Any,
    ) -> None:
        """first: settings that are drawn before all others."""
        self._aims = Objectives.of(search)
        self._bounds = bounds
        self._settings: dict[str, Settings] = {}
        several = len(self._aims.goals) > 1
        super().__init__(
            space=DefineByRun(dict(search.space)),
            metric=list(self._aims.goals) if several else self._aims.goals[0],
            mode=modes(self._aims) if several else modes(self._aims)[0],
            points_to_evaluate=first,
            sampler=sampler,
            study_name=StudyStorage.STUDY,
            storage=memory.storage(),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        settings: dict[str, Any] | None = super().suggest(trial_id)
        self._settings[trial_id] = dict(settings or {})
        return settings

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        if STOPPED in (result or {}):
            return  # it has not ended: Optuna keeps it open until the experiment goes on
        metrics = {key: value for key, value in (result or {}).items() if isinstance(value, float)}
        self._bounds.learn(self._settings[trial_id], metrics)
        super().on_trial_complete(trial_id, dict(result) if result and self._aims.costs(metrics) else None, error)
