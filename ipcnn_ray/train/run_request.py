"""RunRequest: what a worker needs to train one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.utils.paths import Paths


@dataclass(frozen=True)
class ControlReference:
    """Final metrics of the control run, which the combined objective of a search divides by."""

    instability: float
    """Location instability, share of the image diagonal."""
    error: float
    """Validation error, a share."""
    instability_weight: float
    """Weight of the instability in the combined objective, from 0 to 1."""


@dataclass(frozen=True)
class RunRequest:
    """Everything that a worker needs to train one run. Small, and it pickles."""

    run: RunSummary
    """Identity of the run; its state and metrics are not used."""
    spec: ExperimentSpec
    """Resolved, without a search. Its digest is stored in the run's checkpoints."""
    paths: Paths
    handle: str
    """The tracker's id of the run."""
    folder: str
    """Directory of the run: a path that all workers share, or an s3:// URL."""
    references: ControlReference | None = None
    """If set, every evaluated epoch has the metric `combined`."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Additional tags of the tracked run, such as the commit."""

    @property
    def run_id(self) -> str:
        return self.run.run_id
