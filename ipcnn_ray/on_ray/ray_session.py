"""Ray for the length of a submission, embedded or as a connection to a cluster, and the resources of its nodes.

The resources of an experiment are compared with those of the nodes before anything starts: Ray itself would wait for
ever.

Private names of Ray that the package uses, and the public interface that would replace each (tests/test_layers.py finds
any that is not listed):

| name | used in | replaced by |
|---|---|---|
| ray._raylet.Config, AuthenticationTokenLoader | ray_session | a token argument of ray.init |
| ray._private.worker.print_to_stdstream | ray_session | log_to_driver=False that covers messages of the raylet |
| ray.init(_temp_dir=...) | ray_session | a session folder that other users of the machine cannot enter by default |
| RAY_JOB_CONFIG_JSON_ENV_VAR | ray_session | a public test whether this driver is a submitted job |
| ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE, DEFAULT_ENV_VARS | tuner | an option of Tune: no env of actors |
| DatasetsCallback, PlacementGroupCleanerCallback | trainers | options of TorchTrainer for its helper processes |
| TorchTrainer._create_default_callbacks | trainers | the same |
| TorchTrainer._initialize_and_run_controller | trainers | a controller that is given to TorchTrainer |
| TorchTrainer._register_sigint_handler | trainers | the same |
| TrainController, get_env_vars_to_propagate | train_controller | a controller that can start before its run |
| get_or_create_autoscaling_coordinator | train_controller | a TorchTrainer that does not ask for nodes |
| Trial.max_failures, num_failures, should_recover | tune_callback | a FailureConfig by kind of failure |
| Trial.metric_analysis, metric_n_steps, run_metadata | tune_callback | an option of Tune to keep no statistics |
| node:__internal_head__ | trainables, cluster_probe | a public resource or label of the head node |
| get_runtime_context().worker.node.webui_url | cluster_probe | the context that ray.init returns, kept by the caller |
| ray._private.runtime_env.packaging | job_client | a log level of JobSubmissionClient |
| RAY_GCS_SERVER_PORT, RAY_worker_niceness | ray_session | options of ray.init |
| RAY_prestart_worker_first_driver | ray_session | an option of ray.init |
| RAY_TRAIN_ENABLE_PREEMPTION_WATCHER | ray_session | an option of Ray Train's RunConfig |
| RAY_TRAIN_HEALTH_CHECK_INTERVAL_S | ray_session | reports that Ray Train takes as they come |
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources

import ipcnn_ray
from ipcnn_ray.errors import ResourceError
from ipcnn_ray.on_ray.gpu_share import GPU_MEMORY, Nodes, own_gpus
from ipcnn_ray.spec.training import Compute

LOOPBACK = "127.0.0.1"
RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 delays every reported epoch by up to 2 s
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MALLOC_ARENA_MAX": "1",  # runs train in a thread: see utils/memory.py
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs are recorded by our tracker
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # named runs have no objective yet
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # an early-stopped run ends before its process takes the next one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Environment variables of the driver and the workers. Values that the user sets take precedence."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets in the driver of a submitted job."""
NICENESS = "RAY_worker_niceness"
"""Priority of worker processes. With Ray's default of 15 they starve beside any other process of the machine."""
POLL_S = 5.0
"""Seconds between two looks at the nodes of a cluster that lacks resources."""

log = logging.getLogger(__name__)


@contextmanager
def session(address: str | None = None, *, dashboard: bool = True) -> Iterator[Nodes]:
    """Connect to Ray for the length of the block; yields the resources of its nodes.

    A Ray that this process is connected to already is used and left connected.

    Args:
        address: Address of a cluster (``auto``: the one of this machine). By default an embedded Ray with all cores and
            GPUs of this machine is started, protected by a token, and stopped at the end.
        dashboard: Start the dashboard of an embedded Ray. A Ray Train run in a trial of Tune needs it: it answers
            whether a controller is alive, without which the resources of a stopped run are never released.

    Raises:
        ResourceError: The processes of the embedded Ray did not start in time.
    """
    if ray.is_initialized():
        yield _alive_nodes()
        return
    variables = {name: os.environ.get(name, value) for name, value in RAY_VARIABLES.items()}
    package = str(Path(ipcnn_ray.__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:  # its processes inherit the variables; a runtime_env would cost each of them an import of Ray
        variables |= {**_embedded_variables(), "PYTHONPATH": python_path}
    elif JOB_CONFIG not in os.environ:  # a submitted job brings the package and the variables
        options["runtime_env"] = {"env_vars": {**variables, "PYTHONPATH": python_path}}
    with environment_variables(variables):
        _reload_authentication()
        if address is None:
            _start_embedded({**options, "include_dashboard": dashboard})
        else:
            ray.init(address=address, **options)
        for name in ("ray", "ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are recorded with their traceback
        try:
            with _raylet_messages_to_log():
                yield _alive_nodes()
        finally:
            ray.shutdown()
    _reload_authentication()


@contextmanager
def starting_session(
    *, dashboard: bool = True, also: Callable[[], object] | None = None
) -> Iterator[Callable[[], Nodes]]:
    """Start an embedded Ray in another thread, and stop it at the end of the block. See `session`.

    also: Called in that thread when Ray is up.
    Yields a function that waits until it is up, and returns the resources of its node or raises the error of the start.
    An error of the block is raised when the start has ended: a Ray that is half up cannot be stopped.

    The kernel kills the processes of Ray when the thread that started them ends, so that this thread ends last.
    """
    with ThreadPoolExecutor(1, "ray") as thread, ExitStack() as stack:

        def start() -> Nodes:
            nodes = stack.enter_context(session(dashboard=dashboard))
            if also is not None:
                also()
            return nodes

        started = thread.submit(start)
        try:
            yield started.result
        finally:
            started.exception()  # waits


@contextmanager
def environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process for the length of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _embedded_variables() -> dict[str, str]:
    """Environment variables of an embedded Ray.

    The address is fixed before the start and known to all of its processes: those that release the resources of a
    stopped run would otherwise search for a Ray, and give up where they find two.
    """
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{LOOPBACK}:{port}",
        "RAY_prestart_worker_first_driver": "0",  # one process for each core, of which Tune uses none
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that asks whether this machine is about to be reclaimed
        NICENESS: os.environ.get(NICENESS, "0"),
    }


def _start_embedded(options: dict[str, Any]) -> None:
    """Start an embedded Ray. Raises ResourceError if its processes do not start in time, or its folder is taken."""
    resources = this_machine()[0]
    folder = private_folder(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))
    try:
        ray.init(
            address="local",
            num_cpus=int(resources["CPU"]),
            num_gpus=int(resources["GPU"]),
            dashboard_host=LOOPBACK,
            _temp_dir=str(folder / "ray"),
            **options,
        )
    except Exception as error:
        if "timed out" not in str(error):
            raise
        raise ResourceError(
            "Ray did not start on this machine: its processes were not up after half a minute\n"
            f"The load is {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores; submit again when the machine has time."
        ) from error


def private_folder(above: Path) -> Path:
    """Return the folder `ipcnn-<user id>` for sessions of Ray, which no other user can enter. Create it if needed.

    Ray makes its session folders writable for all users of the machine, who could replace the sockets and the code in
    them.

    above: Folder for temporary files.
    Raises ResourceError if another user has made it.
    """
    folder = above / f"ipcnn-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ResourceError(
            f"{folder}, the folder for this user's sessions of Ray, was made by somebody else\n"
            "Have it deleted, or set RAY_TMPDIR to a folder of your own, with a short path."
        )
    folder.chmod(0o700)
    return folder


@contextmanager
def _raylet_messages_to_log() -> Iterator[None]:
    """Log what Ray prints about lost workers: stdout may be the JSON output of a command."""
    prints = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = lambda data, ignore_prefix: log.info("%s", "\n".join(data["lines"]))
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = prints


def wait_for_resources(
    compute: Compute, gpus_of: Callable[[Nodes], float], wait: float, report: Callable[[str], None]
) -> Nodes:
    """Wait until the concurrent runs of an experiment fit on the cluster, and return its nodes.

    Missing resources are requested from the autoscaler, if there is one.

    Args:
        compute: Section of the spec.
        gpus_of: Returns the GPUs of a worker on these nodes.
        wait: Seconds to wait at most.
        report: Called with what is missing whenever that changes, and with an empty text when nothing is any more.

    Raises:
        ResourceError: The runs do not fit after `wait` seconds.
    """
    end, missing = time.monotonic() + wait, ""
    while True:
        nodes = _alive_nodes()
        gpus = gpus_of(nodes)
        try:
            max_concurrent_runs(compute, gpus, nodes)
        except ResourceError as error:
            if time.monotonic() + POLL_S > end:
                if wait:
                    raise ResourceError(f"{error}\nWaited {wait / 60:.0f} minutes for it.") from error
                raise
            if str(error) != missing:
                missing = str(error)
                report(" ".join(missing.split("\n")[:2]))
                bundle = {"CPU": compute.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
                request_resources(bundles=[bundle] * compute.workers * (compute.concurrent_runs or 1))
            time.sleep(POLL_S)
            continue
        if missing:
            request_resources(bundles=[])
            report("")
        return nodes


def _alive_nodes() -> Nodes:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    here, own = ray.get_runtime_context().get_node_id(), own_gpus()
    memory = {GPU_MEMORY: own[GPU_MEMORY]} if GPU_MEMORY in own else {}
    return [node["Resources"] | (memory if node["NodeID"] == here else {}) for node in nodes if node["Alive"]]


def _reload_authentication() -> None:
    """Make Ray read its authentication from the environment again: by itself it does so once, at import."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def this_machine() -> Nodes:
    """Return the resources of an embedded Ray."""
    return [{"CPU": float(os.cpu_count() or 1), **own_gpus()}]


def max_concurrent_runs(compute: Compute, gpus: float, nodes: Nodes) -> int:
    """Return how many runs are trained at the same time.

    Args:
        compute: Section of the spec.
        gpus: GPUs of each worker.
        nodes: Resources of the cluster's nodes. A worker does not span nodes.

    Raises:
        ResourceError: No run fits, or fewer than `compute.concurrent_runs`.
    """
    cpus = compute.cpus_per_worker
    workers = _workers_that_fit(nodes, cpus, gpus)
    fit = workers // compute.workers
    needed = f"{_count(compute.workers, 'worker')} of {_count(cpus, 'core')}"
    needed += f" and {_count(gpus, 'GPU')}" if gpus else ""
    available = f"This cluster has {_described(nodes)}: room for {_count(workers, 'such worker')}."
    if not fit:
        changes = {
            f"compute.workers={workers}": workers > 0,
            "compute.cpus_per_worker=1": _workers_that_fit(nodes, 1, gpus) >= compute.workers,
            "compute.gpus_per_worker=0": _workers_that_fit(nodes, cpus, 0) >= compute.workers,
        }
        ways = [f"--set {setting}" for setting, helps in changes.items() if helps]
        raise ResourceError(
            f"a run asks for {needed}; it would wait for ever\n{available}\n"
            f"Ways out: {', '.join([*ways, 'or more nodes'])}."
        )
    if compute.concurrent_runs is not None and compute.concurrent_runs > fit:
        raise ResourceError(
            f"compute.concurrent_runs = {compute.concurrent_runs}, each run of {needed}\n"
            f"{available} At the same time {_count(fit, 'such run')} can go on.\n"
            f"Ways out: --set compute.concurrent_runs={fit}, or null for as many as fit."
        )
    return compute.concurrent_runs or fit


def _workers_that_fit(nodes: Nodes, cpus: int, gpus: float) -> int:
    def on_node(node: Mapping[str, float]) -> int:
        by_cpu = int(node.get("CPU", 0) // cpus)
        return min(by_cpu, int(node.get("GPU", 0) / gpus)) if gpus else by_cpu

    return sum(map(on_node, nodes))


def _count(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _described(nodes: Nodes) -> str:
    kinds = Counter(f"{_count(node.get('CPU', 0), 'core')} and {_count(node.get('GPU', 0), 'GPU')}" for node in nodes)
    return ", ".join(f"{_count(number, 'node')} of {kind}" for kind, number in kinds.items())
