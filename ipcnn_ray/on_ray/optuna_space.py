"""A spec's space as Optuna draws from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna

from ipcnn_ray.spec.search import Choice, Distribution, LogUniform, SpaceSearch


@dataclass(frozen=True)
class DefineByRun:
    """Draws the fields of a space in the order of what they depend on; the values arrive under their paths."""

    space: dict[str, Distribution]

    def __call__(self, trial: optuna.Trial) -> None:
        drawn: dict[str, Any] = {}
        waiting = dict(self.space)
        while waiting:
            ready = [path for path, d in waiting.items() if not any(on in waiting for on in d.when or {})]
            assert ready, "a checked spec has no circle of `when`"
            for path in ready:
                distribution = waiting.pop(path)
                if all(drawn.get(on) == value for on, value in (distribution.when or {}).items()):
                    drawn[path] = _draw(trial, path, distribution)


def _draw(trial: optuna.Trial, path: str, distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(path, list(distribution.choice))
    if isinstance(distribution, LogUniform):
        return trial.suggest_float(path, *distribution.log_uniform, log=True)
    return trial.suggest_float(path, *distribution.uniform)


def sampler(search: SpaceSearch, seed: int) -> optuna.samplers.BaseSampler:
    """The algorithm of a search. Every value of TPE's first draws is random, as Optuna's default has it."""
    if search.algorithm == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(2, search.trials // 3)))
