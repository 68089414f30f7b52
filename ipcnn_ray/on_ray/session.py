"""A Ray of our own for the length of a submission, on loopback."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ipcnn_ray

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # embedded: nothing listens beyond loopback
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def embedded_ray() -> Iterator[list[Mapping[str, float]]]:
    """Start Ray with all cores of this machine; gives the resources of its nodes, and stops Ray at the end."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    package = str(Path(ipcnn_ray.__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        include_dashboard=True,  # without it an early-stopped nested trial leaks its placement group
        dashboard_host="127.0.0.1",
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {**SETTINGS, "PYTHONPATH": search}},
    )
    for noisy in ("ray.tune", "ray.train", "ray.air", "ray"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
