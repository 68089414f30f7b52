"""Facts about every node of a cluster, measured on the node, for `ipcnn doctor`.

Run as a job of a cluster (`python -m ipcnn_ray.on_ray.cluster_probe`) it prints the facts as one line after MARK.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ipcnn_ray import __version__
from ipcnn_ray.data.datasets.dataset import Listing, registered
from ipcnn_ray.errors import ResourceError, TrackingError
from ipcnn_ray.on_ray.job_client import JobClient, write_working_dir
from ipcnn_ray.on_ray.ray_session import session
from ipcnn_ray.tracking.mlflow_tracker import check_record
from ipcnn_ray.tracking.storage import is_url, open_storage, preflight
from ipcnn_ray.utils.paths import Paths

MARK = "ipcnn-doctor-facts:"
NODE_TIMEOUT_S = 120.0
"""Seconds for the answer of a node, which includes the start of its first worker."""
DASHBOARD_TIMEOUT_S = 15.0
JOB_TIMEOUT_S = 240.0
PACKAGES = ("torch", "torchvision", "mlflow", "boto3", "numpy")
SAFETENSORS_HEADER = 8
WEIGHTS = {".npz", ".safetensors", ".mat", ".pth", ".pt"}
"""Endings of weight files."""


def probe_embedded(paths: Paths) -> dict[str, Any]:
    """Return the facts of an embedded Ray, which is started for this and stopped again."""
    with session():
        dashboard = f"http://{ray.get_runtime_context().worker.node.webui_url}"
        return {"access": dashboard_access(dashboard), **cluster_facts(paths)}


def probe_cluster(address: str) -> dict[str, Any]:
    """Return the facts of the cluster with this dashboard address. Raises IpcnnError if it cannot run the probe."""
    client = JobClient(address)
    access = dashboard_access(client.address)
    submitted = time.time()
    facts = _run_probe_job(client)
    # The cluster read its clock after the submission and before now.
    ahead = max(0.0, facts["time"] - time.time()) + min(0.0, facts["time"] - submitted)
    return {"access": access, "client_skew": ahead, **facts}


def dashboard_access(dashboard: str) -> str:
    """Return `closed` if the dashboard refuses a request without a token, `open` if it answers, or `away`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{dashboard.rstrip('/')}/api/version", timeout=DASHBOARD_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return "closed" if error.code in (401, 403) else "open"
    except OSError:
        return "away"
    return "open"


def _run_probe_job(client: JobClient) -> dict[str, Any]:
    """Run this module as a job of the cluster. It brings the package, which need not be installed there."""
    with tempfile.TemporaryDirectory() as folder:
        write_working_dir(Path(folder), "")
        command = "python -m ipcnn_ray.on_ray.cluster_probe"
        job = client.run("doctor", command, Path(folder), {}, JOB_TIMEOUT_S)
    log = "".join(client.logs(job.id))
    line = next((line for line in log.splitlines() if line.startswith(MARK)), None)
    if line is None:
        last = [line for line in log.splitlines() if line.strip()][-1:] or ["its log is empty"]
        raise ResourceError(
            f"a small job failed on the cluster at {client.address}: {last[0].strip()[:300]}\n"
            "Its Python must have the packages of ipcnn: use the image of the Dockerfile on every node."
        )
    facts: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return facts


def cluster_facts(paths: Paths) -> dict[str, Any]:
    """Return the facts about every node of the Ray that this process is connected to, and about the tracker."""
    rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    pending = [(row, _start_node_tasks(row, paths)) for row in rows if row["Alive"]]
    nodes = [_collect(row, facts, clock) for row, (facts, clock) in pending]
    return {
        "version": __version__,
        "ray": ray.__version__,
        "python": platform.python_version(),
        "time": time.time(),
        "storage": paths.storage,
        "tracking_uri": paths.tracking_uri,
        "record": probe_record(paths.tracking_uri, paths.artifacts, f"doctor-{secrets.token_hex(8)}"),
        "nodes": nodes,
    }


def _start_node_tasks(row: dict[str, Any], paths: Paths) -> tuple[Any, Any]:
    """Start the probe on a node. Returns the reference of its facts, and a remote function that reads its clock."""
    strategy = NodeAffinitySchedulingStrategy(node_id=row["NodeID"], soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": strategy, "max_retries": 0}
    return ray.remote(node_facts).options(**options).remote(paths), ray.remote(read_clock).options(**options)


def _collect(row: dict[str, Any], facts: Any, clock: Any) -> dict[str, Any]:
    """Wait for the facts of a node."""
    resources = row["Resources"]
    known = {
        "address": row["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "cores": resources.get("CPU", 0),
        "gpus": resources.get("GPU", 0),
    }
    try:
        measured = ray.get(facts, timeout=NODE_TIMEOUT_S)
        skew = clock_skew(lambda: ray.get(clock.remote(), timeout=NODE_TIMEOUT_S))
        return {**known, **measured, "skew": skew, "error": ""}
    except GetTimeoutError:
        return {**known, "error": f"no answer within {NODE_TIMEOUT_S:.0f} s"}
    except RayError as error:
        return {**known, "error": str(error).strip().splitlines()[-1]}


def read_clock() -> float:
    return time.time()


def clock_skew(other_clock: Callable[[], float], tries: int = 3) -> float:
    """Return a lower bound in seconds on how far another clock is ahead of ours, negative if it is behind.

    A reading between our times before and after the request counts as no difference, however slow the answer was.
    """
    bounds = []
    for _ in range(tries):
        before = time.time()
        reading = other_clock()
        after = time.time()
        bounds.append(reading - before if reading < before else max(0.0, reading - after))
    return min(bounds, key=abs)


def node_facts(paths: Paths) -> dict[str, Any]:
    """Return the software, GPUs and disks of this machine, and its access to storage, data and weights."""
    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": cuda_devices(),
        "disk": {str(path): free_bytes(path) for path in {paths.home, paths.cache, Path("/tmp")}},
        "storage": probe_storage(paths.storage),
        "data": data_facts(paths),
        "weights": weights_facts(paths),
    }


def probe_storage(url: str) -> dict[str, Any]:
    """Write, read, compare and delete 1 MiB. Returns the result as `_timed` does, and whether the server of a bucket
    knows conditional requests."""
    conditional = True

    def test() -> None:
        nonlocal conditional
        preflight(url)
        if is_url(url):
            from ipcnn_ray.tracking.s3_storage import S3Storage

            conditional = S3Storage(url).conditional_writes()

    return {**_timed(test), "conditional": conditional}


def probe_record(uri: str, artifacts: str | None, run_id: str) -> dict[str, Any]:
    """Write, read, compare and delete a run with a metric and a file. `run_id` must be unique. Returns as `_timed`."""
    return _timed(lambda: check_record(uri, artifacts, run_id))


def _timed(test: Callable[[], object]) -> dict[str, Any]:
    """Return the seconds that a self-test took, and its error with advice on the next line; empty if it passed."""
    start, error = time.monotonic(), ""
    try:
        test()
    except TrackingError as failure:
        error = str(failure)
    return {"seconds": time.monotonic() - start, "error": error}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def cuda_devices() -> list[str] | None:
    """Return the names of all GPUs of this machine that torch can use; None without torch."""
    visible = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides them from a task that requests no GPU
    try:
        import torch
    except ImportError:
        return None
    finally:
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def free_bytes(path: Path) -> int | None:
    """Return the free bytes of the disk that holds `path`, or would hold it; None if they cannot be read."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def data_facts(paths: Paths) -> dict[str, Any]:
    """Return which datasets are in IPCNN_DATA, a folder or a bucket, and how much of each."""
    if paths.data is None and not paths.data_url:
        return {"folder": None}
    keys = _keys(paths.data_url) if paths.data_url else []
    listing = Listing(paths.data, keys)
    return {
        "folder": paths.data_url or str(paths.data),
        "there": bool(keys) if paths.data is None else paths.data.is_dir(),
        "empty": paths.data is not None and paths.data.is_dir() and not any(paths.data.iterdir()),
        "datasets": {kind: dataset.facts(listing) for kind, dataset in registered().items() if dataset.folders},
    }


def weights_facts(paths: Paths) -> dict[str, Any]:
    """Return the weight files in IPCNN_WEIGHTS and which of them are damaged. Files in a bucket are not opened."""
    if paths.weights_url:
        keys = _keys(paths.weights_url)
        files = [key for key in keys if PurePosixPath(key).suffix in WEIGHTS]
        return {"folder": paths.weights_url, "there": bool(keys), "files": files, "broken": {}}
    folder = paths.weights
    if folder is None:
        return {"folder": None}
    local = sorted(path for path in folder.glob("*") if path.suffix in WEIGHTS) if folder.is_dir() else []
    return {
        "folder": str(folder),
        "there": folder.is_dir(),
        "files": [path.name for path in local],
        "broken": {path.name: damage for path in local if (damage := damage_of(path))},
    }


def _keys(url: str) -> list[str]:
    """Return the keys below a URL; none if it cannot be read."""
    try:
        return open_storage(url).list()
    except TrackingError:
        return []


def damage_of(file: Path) -> str:
    """Return why a .npz or .safetensors file cannot be complete, by its directory alone; empty if it may be.

    The arrays are not read. Other kinds of files are checked when they are loaded.
    """
    if file.suffix not in (".npz", ".safetensors"):
        return ""
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return "" if archive.namelist() else "it holds no array"
        with file.open("rb") as source:
            size = int.from_bytes(source.read(SAFETENSORS_HEADER), "little")
            if not 2 <= size <= file.stat().st_size - SAFETENSORS_HEADER:
                return "its header is cut off"
            tensors = json.loads(source.read(size))
        end = max((entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"), default=0)
        complete = SAFETENSORS_HEADER + size + end == file.stat().st_size
        return "" if complete and end else "its length is not that of its arrays"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        return f"cannot be read: {error}"


def main() -> None:
    """Entry point of the job: its driver is a process of the cluster, and RAY_ADDRESS is set."""
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    sys.stdout.write(f"\n{MARK}{json.dumps(cluster_facts(Paths.from_environment()))}\n")


if __name__ == "__main__":
    main()
