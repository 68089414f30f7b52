"""Distributed training of interpretable CNNs: spec -> runs -> Ray -> metrics -> MLflow.

From Python::

    import ipcnn_ray

    outcome = ipcnn_ray.run_submission(ipcnn_ray.load("specs/shapes_drawn.yaml"))
    print(outcome.best.metrics)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
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
