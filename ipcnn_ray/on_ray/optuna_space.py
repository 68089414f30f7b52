"""A spec's space as Optuna draws from it, and what Optuna remembers of a search across submissions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from ipcnn_ray.spec.expand import active
from ipcnn_ray.spec.search import Choice, Distribution, LogUniform, SpaceSearch

Settings = dict[str, Any]


@dataclass(frozen=True)
class DefineByRun:
    """Draws the fields of a space in the order of what they depend on; the values arrive under their paths."""

    space: dict[str, Distribution]

    def __call__(self, trial: optuna.Trial) -> None:
        drawn: Settings = {}
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


def random_settings(search: SpaceSearch, seed: int) -> list[Settings]:
    """All draws of a random search: they follow from the seed alone."""
    quiet()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    draw, found = DefineByRun(dict(search.space)), []
    for _ in range(search.trials):
        trial = study.ask()
        draw(trial)
        found.append(active(search.space, trial.params))
    return found


def quiet() -> None:
    """Optuna tells every trial on stderr otherwise."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class Memory:
    """The trials of a TPE search, in Optuna's journal beside the runs.

    A search that goes on learns from what has ended, and begins with what was drawn and has not; its further draws
    are new ones.
    """

    STUDY = "search"

    def __init__(self, path: Path) -> None:
        self.path = path

    def storage(self) -> JournalStorage:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(self.path)))

    def study(self) -> optuna.Study:
        return optuna.create_study(
            study_name=self.STUDY, storage=self.storage(), direction="minimize", load_if_exists=True
        )

    def settle(self, ended: Callable[[Settings], tuple[bool, float | None]]) -> None:
        """Close trials that another process left open. `ended`: whether the run of these settings has ended, and its
        objective."""
        study = self.study()
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            over, value = ended(dict(trial.params))
            if over and value is not None:
                study.tell(trial.number, value)
            else:
                study.tell(trial.number, state=TrialState.PRUNED if over else TrialState.FAIL)

    def drawn(self) -> list[Settings]:
        """Settings of all trials, each once, in the order in which they were drawn."""
        trials = self.study().get_trials(deepcopy=False)
        found = {_key(trial.params): dict(trial.params) for trial in trials if trial.params}
        return list(found.values())

    def ended(self) -> int:
        """Number of trials that need not be drawn again."""
        over = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study().get_trials(deepcopy=False, states=over))


def _key(params: Settings) -> str:
    return json.dumps(params, sort_keys=True)


def tpe(search: SpaceSearch, seed: int) -> optuna.samplers.TPESampler:
    """A third of the trials, ten at most, is drawn at random before anything is learned."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(2, search.trials // 3)))
