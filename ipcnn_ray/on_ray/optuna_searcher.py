"""Optuna: search spaces of a spec, samplers, the searcher of Tune, and the study of a search.

The study persists across submissions.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from ipcnn_ray.on_ray.events import STOPPED
from ipcnn_ray.on_ray.param_importance import silence_optuna
from ipcnn_ray.spec.search import (
    Choice,
    Constraint,
    Distribution,
    LogUniform,
    Objectives,
    SpaceSearch,
    active,
    lower_is_better,
)
from ipcnn_ray.tracking.storage import Storage, join_path
from ipcnn_ray.train.run_dir import Folder, local_path, open_run_dir

Settings = dict[str, Any]
"""Values of the searched fields, by dotted path."""
Direction = Literal["minimize", "maximize"]
UNKNOWN_VIOLATION = 1e9
"""Violation of a constraint on a metric that a run does not have: Optuna requires a number."""


@dataclass(frozen=True)
class SearchSpace:
    """Define-by-run space: suggests each field after the fields in its `when` conditions, under its dotted path."""

    fields: dict[str, Distribution]

    def __call__(self, trial: optuna.Trial) -> None:
        sampled: Settings = {}
        remaining = dict(self.fields)
        while remaining:
            ready = [path for path, d in remaining.items() if not any(on in remaining for on in d.when or {})]
            assert ready, "spec validation refuses cycles of `when`"
            for path in ready:
                distribution = remaining.pop(path)
                if all(sampled.get(on) == value for on, value in (distribution.when or {}).items()):
                    sampled[path] = _suggest(trial, path, distribution)


def _suggest(trial: optuna.Trial, path: str, distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(path, list(distribution.choice))
    if isinstance(distribution, LogUniform):
        return trial.suggest_float(path, *distribution.log_uniform, log=True)
    return trial.suggest_float(path, *distribution.uniform)


def random_settings(search: SpaceSearch, seed: int) -> list[Settings]:
    """Sample all trials of a random search. They depend on the seed only."""
    silence_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space, sampled = SearchSpace(dict(search.space)), []
    for _ in range(search.trials):
        trial = study.ask()
        space(trial)
        sampled.append(active(search.space, trial.params))
    return sampled


@dataclass(frozen=True)
class Constraints:
    """Constraint function for Optuna's samplers: violations of each finished trial, 0 where a constraint holds."""

    constraints: tuple[Constraint, ...]
    known: dict[str, list[float]] = field(default_factory=dict)

    def record(self, settings: Settings, metrics: Mapping[str, float]) -> None:
        """Store the violations of the run with these settings."""
        amounts = [bound.violation(metrics) for bound in self.constraints]
        self.known[_key(settings)] = [UNKNOWN_VIOLATION if amount is None else amount for amount in amounts]

    def __call__(self, trial: optuna.trial.FrozenTrial) -> list[float]:
        return self.known.get(_key(trial.params), [UNKNOWN_VIOLATION] * len(self.constraints))


class StudyStorage:
    """Optuna study of an adaptive search, in a journal beside the runs.

    A resumed search learns from the finished trials, repeats the unfinished ones, and samples new ones after them.
    """

    STUDY = "search"

    def __init__(self, folder: Folder, directions: Sequence[Direction] = ("minimize",)) -> None:
        """
        Args:
            folder: Path or s3:// URL of the journal's folder.
            directions: `minimize` or `maximize` for each objective.
        """
        self.folder = folder
        self.directions = list(directions)

    def storage(self) -> JournalStorage:
        if (folder := local_path(self.folder)) is None:
            return JournalStorage(StorageJournalBackend(open_run_dir(join_path(str(self.folder), "journal"))))
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(folder / "optuna.log")))

    def study(self, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        return optuna.create_study(
            study_name=self.STUDY,
            storage=self.storage(),
            sampler=sampler,
            directions=self.directions,
            load_if_exists=True,
        )

    def close_open_trials(
        self,
        outcome: Callable[[Settings], tuple[bool, Sequence[float] | None]],
        sampler: optuna.samplers.BaseSampler | None = None,
    ) -> None:
        """Close trials that another process left open.

        Args:
            outcome: From settings to (whether their run is finished, its objectives or None). Finished trials become
                complete, or pruned without objectives; unfinished ones failed.
            sampler: Called for the constraint violations of finished trials.
        """
        study = self.study(sampler)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            finished, values = outcome(dict(trial.params))
            if finished and values is not None:
                study.tell(trial.number, list(values))
            else:
                study.tell(trial.number, state=TrialState.PRUNED if finished else TrialState.FAIL)

    def sampled_settings(self) -> list[Settings]:
        """Return the distinct settings of all trials, in the order of sampling."""
        trials = self.study().get_trials(deepcopy=False)
        return list({_key(trial.params): dict(trial.params) for trial in trials if trial.params}.values())

    def finished_trials(self) -> int:
        """Return the number of complete and pruned trials."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study().get_trials(deepcopy=False, states=states))


def _key(params: Settings) -> str:
    return json.dumps(params, sort_keys=True)


class StorageJournalBackend(BaseJournalBackend):
    """Optuna journal in a storage, one file per append. Only the experiment's driver writes it, so it is read once."""

    def __init__(self, files: Storage) -> None:
        self.files = files
        self._logs: list[dict[str, Any]] | None = None
        self._next = 0

    def _read(self) -> list[dict[str, Any]]:
        if self._logs is None:
            keys = self.files.list()
            self._logs = [entry for key in keys for entry in json.loads(self.files.get(key))]
            self._next = int(keys[-1].removesuffix(".json")) + 1 if keys else 0
        return self._logs

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._read()[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        written = self._read()
        self.files.put_bytes(json.dumps(logs).encode(), f"{self._next:08}.json")
        self._next += 1
        written.extend(json.loads(json.dumps(logs)))


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
