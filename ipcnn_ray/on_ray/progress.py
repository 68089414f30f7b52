"""What happens in a running experiment, told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ipcnn_ray.on_ray.campaign import Campaign
from ipcnn_ray.tracking.protocol import State
from ipcnn_ray.train.attempts import Attempts
from ipcnn_ray.train.checkpoint import read_result, write_result
from ipcnn_ray.train.request import RunResult


@dataclass(frozen=True)
class PhaseStarted:
    """Named runs, or those of the search, begin."""

    name: str
    total: int


@dataclass(frozen=True)
class RunStarted:
    """A run got its worker."""

    label: str


@dataclass(frozen=True)
class EpochDone:
    """An epoch of a run is recorded."""

    label: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunEnded:
    """A run will not go on."""

    label: str
    state: State
    why: str
    metrics: Mapping[str, float]


Event = PhaseStarted | RunStarted | EpochDone | RunEnded
Listener = Callable[[Event], None]


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Our metrics in what Tune hands round."""
    return {k: float(v) for k, v in result.items() if isinstance(v, float)}


class TellListener(Callback):
    """Tune's events as ours. Also settles the runs that early stopping ended: their workers cannot."""

    def __init__(self, campaign: Campaign, listener: Listener) -> None:
        self.campaign = campaign
        self.listener = listener

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener(RunStarted(self.campaign.run(trial.config).label))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            self.listener(EpochDone(self.campaign.run(trial.config).label, numbers(result)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener(settle(self.campaign, trial.config, numbers(trial.last_result or {})))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run = self.campaign.run(trial.config)
        why = Attempts.read(Path(self.campaign.folder(run))).why or "its worker was lost too often"
        self.campaign.record(run).state("failed", why)
        self.listener(RunEnded(run.label, "failed", why, numbers(trial.last_result or {})))


def settle(campaign: Campaign, config: Mapping[str, Any], last: Mapping[str, float]) -> RunEnded:
    """How a run that Tune is through with has ended; without a result or an error, early stopping ended it."""
    run = campaign.run(config)
    folder = Path(campaign.folder(run))
    if (result := read_result(folder)) is None:
        if why := Attempts.read(folder).why:
            return RunEnded(run.label, "failed", why, dict(last))
        epoch, epochs = int(last.get("epoch", 0)), run.spec.train.epochs
        why = f"early stopping at epoch {epoch} of {epochs}"
        result = RunResult(campaign.run_id(run), "stopped", why, epoch, dict(last))
        write_result(folder, result)
        campaign.record(run).state("stopped", why)
    return RunEnded(run.label, result.state, result.why, result.metrics)
