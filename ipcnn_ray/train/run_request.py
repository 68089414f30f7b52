"""What a run is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.tracking.tracker import State
from ipcnn_ray.utils.paths import Paths


@dataclass(frozen=True)
class ControlReference:
    """What a run of a search is measured against: the control's last numbers."""

    instability: float
    """Location instability, share of the image diagonal."""
    error: float
    """Validation error, a share."""
    instability_weight: float
    """Weight of the instability in the combined objective, from 0 to 1."""


@dataclass(frozen=True)
class RunRequest:
    """Everything that a worker must know to train one run; small, and it pickles."""

    run_id: str
    spec: ExperimentSpec
    """Resolved, without a search. Its digest is what the run's checkpoints belong to."""
    paths: Paths
    handle: str
    """The tracker's id of the run."""
    folder: str
    """Where the run keeps its checkpoints and its result: a folder that all workers see, or an s3:// URL."""
    references: ControlReference | None = None
    """With it, every evaluated epoch has the metric `combined`."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags for the record, such as the commit."""

    @property
    def path(self) -> Path:
        """The folder of a run that is not kept in a bucket."""
        assert "://" not in self.folder
        return Path(self.folder)


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    run_id: str
    state: State
    """`succeeded` or `stopped`; a run that failed raises."""
    why: str
    """Cause of a stop, in a sentence; empty otherwise."""
    epochs: int
    """Epochs that were trained."""
    metrics: Mapping[str, float]
    """Metrics of the last epoch, with those of the whole run."""
