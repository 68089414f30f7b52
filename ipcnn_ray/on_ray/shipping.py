"""What travels with a job to a cluster: this package, the resolved spec, and where things are. No secret does.

The package always travels, whatever the nodes have installed, so the code that runs is the code that submitted; the
nodes bring its dependencies. Paths of this machine mean nothing there: only addresses travel, and the nodes' own
environment says the rest, credentials among it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import ipcnn_ray
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray.session import SETTINGS
from ipcnn_ray.tracking.address import without_password
from ipcnn_ray.tracking.lineage import PACKAGE, SHIPPED, code
from ipcnn_ray.tracking.storage import is_url

SPEC = "spec.yaml"
PLACES = ("IPCNN_STORAGE", "IPCNN_DATA", "IPCNN_WEIGHTS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")
"""Travel where they are addresses."""
OPTIONS = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "OMP_NUM_THREADS",
)
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""A job that is stopped at once says so in the record before it ends."""


def travelling(env: Mapping[str, str]) -> dict[str, str]:
    """Environment of a job on a cluster. Anybody who may ask the cluster about its jobs can read it.

    Raises IpcnnError for an address with a password in it.
    """
    places = {name: env[name] for name in PLACES if is_url(env.get(name, "")) and not env[name].startswith("sqlite:")}
    for name, value in places.items():
        if without_password(value) != value:
            raise IpcnnError(
                f"{name} holds a user or a password, which everybody who can reach the cluster could read\n"
                f"Give the address alone ({without_password(value)}), and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or the keys of the storage, in the environment of the nodes."
            )
    options = {name: env[name] for name in OPTIONS if env.get(name)}
    return {**SETTINGS, **STOPPING, **places, **options}


def pack(folder: Path, spec: str) -> None:
    """Put the package and a resolved spec into an empty folder: the working directory of a job."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(ipcnn_ray.__file__).parent, folder / "ipcnn_ray", ignore=ignored)
    (folder / SPEC).write_text(spec, encoding="utf-8")
    (folder / SHIPPED).write_text(json.dumps(code(PACKAGE)), encoding="utf-8")
