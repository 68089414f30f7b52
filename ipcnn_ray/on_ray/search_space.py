"""A spec's space as Optuna draws from it, and what Optuna remembers of a search across submissions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import TrialState

from ipcnn_ray.spec.objectives import violations
from ipcnn_ray.spec.search import Choice, Constraint, Distribution, LogUniform, SpaceSearch, active
from ipcnn_ray.tracking.storage import Storage, below
from ipcnn_ray.train.run_dir import Folder, local_path, open_run_dir

Settings = dict[str, Any]
Direction = Literal["minimize", "maximize"]
UNKNOWN = 1e9
"""Violation of a bound on a measure that a run does not have: Optuna takes numbers only."""


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


@dataclass(frozen=True)
class Constraints:
    """By how much each drawn run violates each constraint: what a sampler asks for when a trial has ended."""

    constraints: tuple[Constraint, ...]
    known: dict[str, list[float]] = field(default_factory=dict)

    def learn(self, settings: Settings, metrics: Mapping[str, float]) -> None:
        """What came of these settings."""
        found = violations(self.constraints, metrics)
        self.known[_key(settings)] = [UNKNOWN if one is None else one for one in found]

    def __call__(self, trial: optuna.trial.FrozenTrial) -> list[float]:
        return self.known.get(_key(trial.params), [UNKNOWN] * len(self.constraints))


class StudyStorage:
    """The trials of a search that learns, in Optuna's journal beside the runs.

    A search that goes on learns from what has ended, and begins with what was drawn and has not; its further draws
    are new ones.
    """

    STUDY = "search"

    def __init__(self, folder: Folder, directions: Sequence[Direction] = ("minimize",)) -> None:
        """folder: where the journal is kept; directions: `minimize` or `maximize` for each goal."""
        self.folder = folder
        self.directions = list(directions)

    def storage(self) -> JournalStorage:
        if (here := local_path(self.folder)) is None:
            return JournalStorage(JournalOfFiles(open_run_dir(below(str(self.folder), "journal"))))
        here.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(here / "optuna.log")))

    def study(self, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        return optuna.create_study(
            study_name=self.STUDY,
            storage=self.storage(),
            sampler=sampler,
            directions=self.directions,
            load_if_exists=True,
        )

    def settle(
        self,
        ended: Callable[[Settings], tuple[bool, Sequence[float] | None]],
        sampler: optuna.samplers.BaseSampler | None = None,
    ) -> None:
        """Close trials that another process left open. `ended`: whether the run of these settings has ended, and its
        goals; `sampler`: asked for the violations of those that have."""
        study = self.study(sampler)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            over, values = ended(dict(trial.params))
            if over and values is not None:
                study.tell(trial.number, list(values))
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


class JournalOfFiles(BaseJournalBackend):
    """Written by one process at a time, the experiment's driver, which reads what is there once."""

    def __init__(self, files: Storage) -> None:
        self.files = files
        self._logs: list[dict[str, Any]] | None = None
        self._next = 0

    def _read(self) -> list[dict[str, Any]]:
        if self._logs is None:
            keys = self.files.list()
            self._logs = [one for key in keys for one in json.loads(self.files.get(key))]
            self._next = int(keys[-1].removesuffix(".json")) + 1 if keys else 0
        return self._logs

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._read()[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        known = self._read()
        self.files.put_bytes(json.dumps(logs).encode(), f"{self._next:08}.json")
        self._next += 1
        known.extend(json.loads(json.dumps(logs)))
