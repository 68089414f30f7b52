"""Interpretable CNNs in PyTorch, and their distributed training: spec -> runs -> Ray -> metrics -> MLflow.

The layer, in a network and a training loop of one's own::

    from ipcnn_ray import InterpretableLayer

    layer = InterpretableLayer(n=14, shape="gradient", norm="l2", beta=10)
    y = layer(torch.relu(conv(x)))
    loss = criterion(head(y), target) + 0.01 * layer.filter_loss()

A whole experiment, as `ipcnn submit` trains it::

    import ipcnn_ray

    outcome = ipcnn_ray.run_submission(ipcnn_ray.load("specs/shapes_drawn.yaml"))
    print(outcome.best.metrics)

Each name is imported when it is used: the layer needs torch alone, only submissions need Ray and MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipcnn_ray.errors import IpcnnError as IpcnnError
    from ipcnn_ray.models.interpretable_layer import InterpretableLayer as InterpretableLayer
    from ipcnn_ray.on_ray.submission import Outcome as Outcome
    from ipcnn_ray.on_ray.submission import run_submission as run_submission
    from ipcnn_ray.on_ray.tuner import Interrupted as Interrupted
    from ipcnn_ray.spec.loader import load as load
    from ipcnn_ray.utils.paths import Paths as Paths

__version__ = "0.1.0"

_PUBLIC = {
    "InterpretableLayer": "ipcnn_ray.models.interpretable_layer",
    "load": "ipcnn_ray.spec.loader",
    "run_submission": "ipcnn_ray.on_ray.submission",
    "Interrupted": "ipcnn_ray.on_ray.tuner",
    "Outcome": "ipcnn_ray.on_ray.submission",
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
