"""Interpretable CNNs in PyTorch, and their distributed training: spec -> runs -> Ray -> metrics -> MLflow.

The layer, in a network and a training loop of one's own::

    from ipcnn_ray import InterpretableLayer

    layer = InterpretableLayer(n=14, shape="gradient", norm="l2", beta=10)
    y = layer(torch.relu(conv(x)))
    loss = criterion(head(y), target) + 0.01 * layer.filter_loss()

A whole experiment, as `ipcnn submit` trains it::

    import ipcnn_ray

    result = ipcnn_ray.submit("specs/uniform_sweep.yaml")
    print(result.best.metrics, result.verdict)

Each name is imported when it is used: the layer needs torch alone, only submissions need Ray and MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipcnn_ray.cli.experiments import load_model as load_model
    from ipcnn_ray.cli.experiments import runs as runs
    from ipcnn_ray.cli.experiments import submit as submit
    from ipcnn_ray.core.explanation import Explanation as Explanation
    from ipcnn_ray.core.explanation import FiringFilter as FiringFilter
    from ipcnn_ray.core.explanation import Score as Score
    from ipcnn_ray.core.metrics.filter_metric import MetricResult as MetricResult
    from ipcnn_ray.core.metrics.streaming import AblationOthers as AblationOthers
    from ipcnn_ray.core.metrics.streaming import AblationOwn as AblationOwn
    from ipcnn_ray.core.metrics.streaming import ActivationEntropy as ActivationEntropy
    from ipcnn_ray.core.metrics.streaming import Consistency as Consistency
    from ipcnn_ray.core.metrics.streaming import FilterMetrics as FilterMetrics
    from ipcnn_ray.core.metrics.streaming import FollowingShare as FollowingShare
    from ipcnn_ray.core.metrics.streaming import FollowingShareFew as FollowingShareFew
    from ipcnn_ray.core.metrics.streaming import FollowingShareShuffled as FollowingShareShuffled
    from ipcnn_ray.core.metrics.streaming import InstabilityBestConstant as InstabilityBestConstant
    from ipcnn_ray.core.metrics.streaming import InstabilityCenter as InstabilityCenter
    from ipcnn_ray.core.metrics.streaming import InstabilityRandom as InstabilityRandom
    from ipcnn_ray.core.metrics.streaming import KeypointError as KeypointError
    from ipcnn_ray.core.metrics.streaming import KeypointErrorMean as KeypointErrorMean
    from ipcnn_ray.core.metrics.streaming import LandmarkCoverage as LandmarkCoverage
    from ipcnn_ray.core.metrics.streaming import LandmarksFollowed as LandmarksFollowed
    from ipcnn_ray.core.metrics.streaming import LandmarkTracking as LandmarkTracking
    from ipcnn_ray.core.metrics.streaming import LandmarkTrackingFew as LandmarkTrackingFew
    from ipcnn_ray.core.metrics.streaming import LandmarkTrackingShuffled as LandmarkTrackingShuffled
    from ipcnn_ray.core.metrics.streaming import LocationInstability as LocationInstability
    from ipcnn_ray.core.metrics.streaming import MutualInformationScore as MutualInformationScore
    from ipcnn_ray.core.metrics.streaming import PartInterpretability as PartInterpretability
    from ipcnn_ray.core.metrics.streaming import PeakDistance as PeakDistance
    from ipcnn_ray.core.metrics.streaming import PeakSpread as PeakSpread
    from ipcnn_ray.core.metrics.streaming import PeakStability as PeakStability
    from ipcnn_ray.core.metrics.streaming import Purity as Purity
    from ipcnn_ray.core.metrics.streaming import Stability as Stability
    from ipcnn_ray.core.receptive_field import Field as Field
    from ipcnn_ray.errors import IpcnnError as IpcnnError
    from ipcnn_ray.models.interpretable_layer import InterpretableLayer as InterpretableLayer
    from ipcnn_ray.models.measured_receptive_field import receptive_field as receptive_field
    from ipcnn_ray.on_ray.submission import Outcome as Outcome
    from ipcnn_ray.on_ray.submission import run_submission as run_submission
    from ipcnn_ray.on_ray.tuner import Interrupted as Interrupted
    from ipcnn_ray.report.experiment_result import ExperimentResult as ExperimentResult
    from ipcnn_ray.spec.loader import load as load
    from ipcnn_ray.spec.loader import load_spec as load_spec
    from ipcnn_ray.utils.paths import Paths as Paths

__version__ = "0.2.0"

_METRICS = "ipcnn_ray.core.metrics.streaming"
_PUBLIC = {
    "InterpretableLayer": "ipcnn_ray.models.interpretable_layer",
    "receptive_field": "ipcnn_ray.models.measured_receptive_field",
    "Field": "ipcnn_ray.core.receptive_field",
    "FilterMetrics": _METRICS,
    "LocationInstability": _METRICS,
    "InstabilityCenter": _METRICS,
    "InstabilityBestConstant": _METRICS,
    "InstabilityRandom": _METRICS,
    "LandmarkTracking": _METRICS,
    "LandmarkTrackingFew": _METRICS,
    "LandmarkTrackingShuffled": _METRICS,
    "FollowingShare": _METRICS,
    "FollowingShareFew": _METRICS,
    "FollowingShareShuffled": _METRICS,
    "LandmarksFollowed": _METRICS,
    "LandmarkCoverage": _METRICS,
    "PeakDistance": _METRICS,
    "PeakSpread": _METRICS,
    "KeypointError": _METRICS,
    "KeypointErrorMean": _METRICS,
    "PartInterpretability": _METRICS,
    "Consistency": _METRICS,
    "Stability": _METRICS,
    "PeakStability": _METRICS,
    "Purity": _METRICS,
    "MutualInformationScore": _METRICS,
    "AblationOwn": _METRICS,
    "AblationOthers": _METRICS,
    "ActivationEntropy": _METRICS,
    "MetricResult": "ipcnn_ray.core.metrics.filter_metric",
    "load_spec": "ipcnn_ray.spec.loader",
    "submit": "ipcnn_ray.cli.experiments",
    "runs": "ipcnn_ray.cli.experiments",
    "load_model": "ipcnn_ray.cli.experiments",
    "Explanation": "ipcnn_ray.core.explanation",
    "FiringFilter": "ipcnn_ray.core.explanation",
    "Score": "ipcnn_ray.core.explanation",
    "ExperimentResult": "ipcnn_ray.report.experiment_result",
    "load": "ipcnn_ray.spec.loader",
    "run_submission": "ipcnn_ray.on_ray.submission",
    "Outcome": "ipcnn_ray.on_ray.submission",
    "Interrupted": "ipcnn_ray.on_ray.tuner",
    "IpcnnError": "ipcnn_ray.errors",
    "Paths": "ipcnn_ray.utils.paths",
}
"""Module of each name of the Python API. It is imported when the name is used: ray and torch take seconds."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return ["__version__", *_PUBLIC]
