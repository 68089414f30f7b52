"""The Ray that an experiment runs on: one of our own for the length of a submission, or a cluster that is there."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources

import ipcnn_ray
from ipcnn_ray.errors import ResourceError
from ipcnn_ray.on_ray.resources import Nodes, gpus_per_worker, runs_at_once, this_machine
from ipcnn_ray.spec.training import Compute

LOOPBACK = "127.0.0.1"
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # its default of 2 lets one epoch through every 2 s
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is elsewhere
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # named runs have no objective yet
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # an early-stopped run ends before its process takes the next
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Of Ray, for the submitting process and the workers; what the environment sets already stays."""


JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in the driver of a job that was submitted to a cluster."""
ASK_S = 5.0
"""Between two looks at the nodes of a cluster that has no room yet."""

log = logging.getLogger(__name__)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """The settings in this process's environment, as it was before at the end."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(shared: dict[str, Any]) -> None:
    """An embedded Ray. Raises ResourceError where its processes do not come up in time."""
    here = this_machine()[0]
    try:
        ray.init(
            address="local",
            num_cpus=int(here["CPU"]),
            num_gpus=int(here["GPU"]),
            include_dashboard=True,  # without it an early-stopped nested run leaks its placement group
            dashboard_host=LOOPBACK,
            **shared,
        )
    except Exception as error:
        if "timed out" not in str(error):
            raise
        raise ResourceError(
            "Ray did not start on this machine: its processes were not up after half a minute\n"
            f"The load is {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores; submit again when the machine has time."
        ) from error


@contextmanager
def session(address: str | None = None) -> Iterator[Nodes]:
    """Ray for the length of the block; gives the resources of its nodes.

    Without an address an embedded Ray with all cores and GPUs of this machine, closed to others by a token and stopped
    at the end. With one ("auto": of this machine) the cluster there. A Ray that this process already uses is used and
    left as it is.
    """
    if ray.is_initialized():
        yield _nodes()
        return
    settings = {name: os.environ.get(name, value) for name, value in SETTINGS.items()}
    package = str(Path(ipcnn_ray.__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    shared: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": {**settings, "PYTHONPATH": python_path}},
    }
    if address is None:
        settings |= _our_own()
    with _environment(settings):
        _read_authentication()
        if address is None:
            _start(shared)
        elif JOB in os.environ:
            shared.pop("runtime_env")  # the job has brought the package and the settings
            ray.init(address=address, **shared)
        else:
            ray.init(address=address, **shared)
        for noisy in ("ray", "ray.tune", "ray.train", "ray.air"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what fails is recorded, with its traceback
        try:
            with _quiet():
                yield _nodes()
        finally:
            ray.shutdown()
    _read_authentication()


def _our_own() -> dict[str, str]:
    """Environment of an embedded Ray: closed to others, and known by its address to all of its processes. Those that
    free the places of a stopped run would look for it otherwise, and give up where there is another Ray."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{LOOPBACK}:{port}",
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """What Ray prints on stdout about lost workers goes to the log: stdout may be somebody's JSON."""
    prints = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = lambda data, ignore_prefix: log.info("%s", "\n".join(data["lines"]))
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = prints


def room_for(compute: Compute, wait: float, tell: Callable[[str], None]) -> Nodes:
    """The nodes of the cluster, as soon as the runs that go on at the same time have room on them.

    Where they have none, the autoscaler is asked for it, if there is one, and `tell` is called with what is missing;
    and with nothing when it is there. Raises ResourceError when that takes more than `wait` seconds.
    """
    end, missing = time.monotonic() + wait, ""
    while True:
        nodes = _nodes()
        gpus = gpus_per_worker(compute, nodes)
        try:
            runs_at_once(compute, gpus, nodes)
        except ResourceError as error:
            if time.monotonic() + ASK_S > end:
                if wait:
                    raise ResourceError(f"{error}\nWaited {wait / 60:.0f} minutes for it.") from error
                raise
            if str(error) != missing:
                missing = str(error)
                tell(" ".join(missing.split("\n")[:2]))
                bundle = {"CPU": compute.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
                request_resources(bundles=[bundle] * compute.workers * (compute.concurrent_runs or 1))
            time.sleep(ASK_S)
            continue
        if missing:
            request_resources(bundles=[])
            tell("")
        return nodes


def _nodes() -> Nodes:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def _read_authentication() -> None:
    """Make Ray take its authentication from the environment as it is now; by itself it does so once, when imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
