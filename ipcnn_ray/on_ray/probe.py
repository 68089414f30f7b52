"""What every node of a cluster is and can reach, as it says itself. Facts only: `ipcnn doctor` judges them.

Run as a job of a cluster (`python -m ipcnn_ray.on_ray.probe`) it writes the facts as one line behind MARK.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import secrets
import shutil
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ipcnn_ray import __version__
from ipcnn_ray.errors import TrackingError
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.probe import probe_record, probe_storage
from ipcnn_ray.tracking.storage import open_storage

MARK = "ipcnn-doctor-facts:"
NODE_S = 120.0
"""Seconds that a node has to answer; the first task of a node imports what it needs."""
PACKAGES = ("torch", "torchvision", "mlflow", "boto3", "numpy")
SAFETENSORS_HEADER = 8
WEIGHTS = {".npz", ".safetensors", ".mat", ".pth", ".pt"}
"""Endings of weight files."""


def gather(places: Places) -> dict[str, Any]:
    """The facts about every node of the Ray that this process is connected to."""
    rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [row for row in rows if row["Alive"]]
    pending = [(row, _ask(row, places)) for row in alive]
    shared = secrets.token_hex(8)
    nodes = [_answer(row, look, clock) for row, (look, clock) in pending]
    record = probe_record(places.tracking_uri, places.artifacts, f"doctor-{shared}")
    return {
        "version": __version__,
        "ray": ray.__version__,
        "python": platform.python_version(),
        "time": time.time(),
        "storage": places.storage,
        "tracking_uri": places.tracking_uri,
        "record": dataclasses.asdict(record),
        "nodes": nodes,
    }


def _ask(row: dict[str, Any], places: Places) -> tuple[Any, Any]:
    there = NodeAffinitySchedulingStrategy(node_id=row["NodeID"], soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": there, "max_retries": 0}
    return ray.remote(look_around).options(**options).remote(places), ray.remote(clock).options(**options)


def _answer(row: dict[str, Any], look: Any, there: Any) -> dict[str, Any]:
    resources = row["Resources"]
    known = {
        "address": row["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "cores": resources.get("CPU", 0),
        "gpus": resources.get("GPU", 0),
    }
    try:
        facts = ray.get(look, timeout=NODE_S)
        return {**known, **facts, "skew": skew(lambda: ray.get(there.remote(), timeout=NODE_S)), "error": ""}
    except GetTimeoutError:
        return {**known, "error": f"no answer within {NODE_S:.0f} s"}
    except RayError as error:
        return {**known, "error": str(error).strip().splitlines()[-1]}


def clock() -> float:
    return time.time()


def skew(ask: Callable[[], float], tries: int = 3) -> float:
    """Seconds by which another clock is certainly ahead of ours (behind: negative). What it says lies between asking
    and hearing if it agrees with ours, so a slow answer never counts as a difference."""
    found = []
    for _ in range(tries):
        before = time.time()
        there = ask()
        after = time.time()
        found.append(there - before if there < before else max(0.0, there - after))
    return min(found, key=abs)


def look_around(places: Places) -> dict[str, Any]:
    """What this machine has, and whether the storage works from here."""
    storage = probe_storage(places.storage)
    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": cuda_devices(),
        "disk": {str(place): free_bytes(place) for place in {places.home, places.cache, Path("/tmp")}},
        "storage": dataclasses.asdict(storage),
        "data": bucket_data(places.data_url) if places.data_url else data_facts(places.data),
        "weights": bucket_weights(places.weights_url) if places.weights_url else weights_facts(places.weights),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def cuda_devices() -> list[str] | None:
    """Names of the GPUs that torch can use here, whatever this task was given; None without torch."""
    visible = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # a task without a GPU would see none
    try:
        import torch
    except ImportError:
        return None
    finally:
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def free_bytes(place: Path) -> int | None:
    """Free bytes of the disk that `place` lies on, or would lie on; None where that cannot be told."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def data_facts(folder: Path | None) -> dict[str, Any]:
    """The real photographs: where they should be, how many there are, and which categories have landmarks."""
    if folder is None:
        return {"folder": None}
    voc = folder / "voc"
    images = voc / "VOCdevkit" / "VOC2010" / "JPEGImages"
    landmarks = voc / "landmarks"
    marked = {one.parent.name for one in landmarks.glob("*/truth_part*.mat")} if landmarks.is_dir() else set()
    masks = voc / "VOCdevkit" / "VOC2010" / "Annotations_Part"
    return {
        "folder": str(folder),
        "there": folder.is_dir(),
        "images": sum(1 for _ in images.glob("*.jpg")) if images.is_dir() else 0,
        "negatives": sum(1 for _ in (voc / "neg").glob("*.JPEG")),
        "categories": sorted(marked),
        "part_masks": sum(1 for _ in masks.glob("*.mat")) if masks.is_dir() else 0,
    }


def bucket_data(url: str) -> dict[str, Any]:
    """The same of photographs in a bucket, told from its list of files."""
    files = [PurePosixPath(key) for key in _listed(url)]
    names = Counter(str(file.parent) + file.suffix for file in files)
    marked = {file.parent.name for file in files if file.match("voc/landmarks/*/truth_part*.mat")}
    return {
        "folder": url,
        "there": bool(files),
        "images": names["voc/VOCdevkit/VOC2010/JPEGImages.jpg"],
        "negatives": names["voc/neg.JPEG"],
        "categories": sorted(marked),
        "part_masks": names["voc/VOCdevkit/VOC2010/Annotations_Part.mat"],
    }


def bucket_weights(url: str) -> dict[str, Any]:
    """The weight files in a bucket. Whether they are whole is not looked at."""
    files = _listed(url)
    found = [key for key in files if PurePosixPath(key).suffix in WEIGHTS]
    return {"folder": url, "there": bool(files), "files": found, "broken": {}}


def _listed(url: str) -> list[str]:
    """Keys below a URL; none where it cannot be read."""
    try:
        return open_storage(url).list()
    except TrackingError:
        return []


def weights_facts(folder: Path | None) -> dict[str, Any]:
    """The weight files, and which of them are not whole."""
    if folder is None:
        return {"folder": None}
    files = sorted(one for one in folder.glob("*") if one.suffix in WEIGHTS) if folder.is_dir() else []
    broken = {one.name: why for one in files if (why := broken_file(one))}
    return {
        "folder": str(folder),
        "there": folder.is_dir(),
        "files": [one.name for one in files],
        "broken": broken,
    }


def broken_file(file: Path) -> str:
    """Why a weight file cannot be whole, told from its directory without reading the arrays; empty where it may be.
    Files of other kinds than .npz and .safetensors are told when they are loaded."""
    if file.suffix not in (".npz", ".safetensors"):
        return ""
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return "" if archive.namelist() else "it holds no array"
        with file.open("rb") as source:
            size = int.from_bytes(source.read(SAFETENSORS_HEADER), "little")
            if not 2 <= size <= file.stat().st_size - SAFETENSORS_HEADER:
                return "its head is cut off"
            tensors = json.loads(source.read(size))
        end = max((one["data_offsets"][1] for name, one in tensors.items() if name != "__metadata__"), default=0)
        whole = SAFETENSORS_HEADER + size + end == file.stat().st_size
        return "" if whole and end else "its length is not that of its arrays"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        return f"cannot be read: {error}"


def main() -> None:
    """As a job: its driver is a process of the cluster, and RAY_ADDRESS leads to it."""
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    sys.stdout.write(f"\n{MARK}{json.dumps(gather(Places.from_environment()))}\n")


if __name__ == "__main__":
    main()
