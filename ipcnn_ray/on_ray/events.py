"""Events of a submission, which its listener receives in the order in which they happen; keys of reports to Tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_dir import ProgressUpdate


@dataclass(frozen=True)
class Logged:
    """A step before the first run, or after the last one."""

    text: str


@dataclass(frozen=True)
class DataProgress:
    """Number of images that are decoded or drawn."""

    done: int
    total: int


@dataclass(frozen=True)
class PhaseStarted:
    """The named runs, or those of the search, start."""

    name: str
    total: int


@dataclass(frozen=True)
class RunStarted:
    """A run was assigned a worker, for the first time or again."""

    label: str
    epochs: int
    """Epochs that it is trained for in all."""


@dataclass(frozen=True)
class StageReached:
    """Progress of a run within an epoch, or before its first."""

    label: str
    stage: ProgressUpdate


@dataclass(frozen=True)
class EpochDone:
    """An epoch of a run is finished and recorded."""

    label: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunEnded:
    """A run has ended, in this submission or in an earlier one."""

    run: RunSummary


@dataclass(frozen=True)
class Warned:
    """Something failed or is missing, and the submission continues."""

    text: str


FAILED = "failed"
"""Key of the last report of a run to Tune: the cause of its final failure."""
STOPPED = "stopped"
"""Key of a report to Tune: the run has stopped after its epoch, as requested, and waits for its termination."""

Event = Logged | DataProgress | PhaseStarted | RunStarted | StageReached | EpochDone | RunEnded | Warned
Listener = Callable[[Event], None]
