"""How many runs share a GPU where `compute.gpus_per_worker` says nothing. Imports torch only to answer, and no ray.

Ray counts the GPUs that runs take and does not keep their memory apart, so a run must stay within its share of it by
itself: `train/device_memory.py` estimates from above what it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import grid_runs, named_runs, run_for
from ipcnn_ray.spec.search import MAX_CORNERS, Choice, SpaceSearch, points
from ipcnn_ray.spec.training import Compute

Nodes = Sequence[Mapping[str, float]]
"""Resources of each node by Ray's names: {"CPU": cores, "GPU": gpus}. Of the node of this process also GPU_MEMORY."""
GPU_MEMORY = "gpu_memory"
"""Bytes of the smallest GPU of a node."""
TYPE = "accelerator_type:"
"""What the resource begins with by which Ray names the type of a node's GPUs."""
GIB = 1 << 30
MEMORY_GIB = {
    "B200": 178, "H200": 139, "H100": 79, "A100": 39, "A100-40G": 39, "A100-80G": 79, "L40S": 44, "L40": 44, "L4": 22,
    "A40": 44, "A10": 22, "A10G": 22, "V100": 15, "T4": 14, "P100": 15, "RTX-A6000": 47, "GeForce-RTX-4090": 23,
    "GeForce-RTX-3090": 23,
}  # fmt: skip
"""Usable memory of a GPU by its type, of the smallest model of that name. Ray does not tell parts of a GPU (MIG)."""
SHARING = (4, 2, 1)
"""Numbers of runs that may share a GPU: shares that add up to 1 exactly. More than four were not measured."""
IMAGES_PER_ITEM = 4
"""Images of an evaluation, at most, for each training item."""
PHOTOGRAPHS = 25_000
"""Images of an evaluation, at most, if the data are not there to count them."""


@dataclass(frozen=True)
class GpuShare:
    """GPUs of each worker of a run."""

    gpus: float
    reason: str = ""
    """In a few words, after `GPUs:`; empty where there is nothing to decide."""


def gpu_share(compute: Compute, nodes: Nodes, runs: int, memory: Callable[[], int | None]) -> GpuShare:
    """Return the GPUs of each worker: those of the spec, else none without GPUs, else one, or a part of one.

    Runs of one worker share a GPU if there are more of them than GPUs, every GPU has as many cores as they take, and
    they fit into its memory beside the data that stay there. The decision goes by the nodes that are there now.

    Args:
        compute: Section of the spec.
        nodes: Of the cluster.
        runs: Number of runs that are to be trained.
        memory: Returns the most bytes that one of the runs takes on a GPU, None if unknown. Called if it matters.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) > 0]
    if compute.gpus_per_worker is not None:
        return GpuShare(compute.gpus_per_worker)
    if not with_gpus:
        return GpuShare(0.0)
    gpus = int(sum(node["GPU"] for node in with_gpus))
    wanted = next((k for k in reversed(SHARING) if k * gpus >= (compute.concurrent_runs or runs)), SHARING[0])
    if compute.workers > 1 or wanted == 1:
        return GpuShare(1.0)
    cores = min(node.get("CPU", 0) // node["GPU"] for node in with_gpus)
    by_cores = next((k for k in SHARING if k <= wanted and k * compute.cpus_per_worker <= cores), 1)
    if by_cores == 1:
        taken = 2 * compute.cpus_per_worker
        return GpuShare(1.0, f"one run on each: two take {taken} cores, each GPU has {int(cores)}")
    size = _smallest_gpu(with_gpus)
    if size is None:
        return GpuShare(1.0, "one run on each, as its memory is unknown: set gpus_per_worker")
    needed = memory()
    if needed is None:
        return GpuShare(1.0, "one run on each: the memory that a run takes is unknown")
    k = next((k for k in SHARING if k <= by_cores and needed <= room(size, k)), 1)
    runs_on_each = f"{k} runs" if k > 1 else "one run"
    reason = f"{runs_on_each} on each ({size / GIB:.0f} GiB): a run takes up to {needed / GIB:.1f} GiB, estimated"
    return GpuShare(1 / k, reason)


def room(size: int, runs: int) -> int:
    """Return the bytes of each of several runs on a GPU of `size` bytes, without the data that they keep there."""
    from ipcnn_ray.train.feature_cache import KEPT_SHARE

    return int((1 - KEPT_SHARE) * size / runs)


def _smallest_gpu(nodes: Nodes) -> int | None:
    """Return the bytes of the smallest GPU; None if those of a node are unknown."""
    sizes = []
    for node in nodes:
        kinds = [name.removeprefix(TYPE) for name in node if name.startswith(TYPE)]
        of_type = MEMORY_GIB.get(kinds[0]) if len(kinds) == 1 else None
        size = node.get(GPU_MEMORY) or (of_type and of_type * GIB)
        if not size:
            return None
        sizes.append(int(size))
    return min(sizes)


def largest_run(spec: ExperimentSpec, data: Path | None) -> int | None:
    """Return the most bytes that a run of an experiment takes on a GPU. None if that is unknown: for a search over too
    many kinds of runs, and for a network that torch cannot run on the meta device.

    data: The folder IPCNN_DATA, whose annotations are counted.
    """
    from ipcnn_ray.data.datasets.dataset import as_dataset
    from ipcnn_ray.train.device_memory import run_bytes

    @cache
    def images_of(section: Data) -> int:
        items = as_dataset(section).count_train_items(data)
        return PHOTOGRAPHS if items is None else IMAGES_PER_ITEM * items

    try:
        sizes = [run_bytes(run, images_of(run.data)).of_process for run in _kinds_of_runs(spec)]
    except RuntimeError:  # an operation that torch does not have for the meta device
        return None
    return max(sizes, default=None)


def _kinds_of_runs(spec: ExperimentSpec) -> list[ExperimentSpec]:
    """Return the specs of the runs of an experiment, one of those that differ in their seed or in numbers of a range;
    none for a space of more than MAX_CORNERS."""
    search = spec.search
    if search is None:
        return [spec]
    once = spec.model_copy(update={"search": search.model_copy(update={"repeats": 1})})
    runs = [*named_runs(once), *grid_runs(once)]
    if isinstance(search, SpaceSearch):
        space = {
            path: drawn if isinstance(drawn, Choice) else Choice(choice=drawn.values[:1], when=drawn.when)
            for path, drawn in search.space.items()
        }
        if prod(len(choice.values) for choice in space.values()) > MAX_CORNERS:
            return []
        runs += [run_for(spec, values) for values in points(search.model_copy(update={"space": space}))]
    return [run.spec for run in runs]


def own_gpus() -> dict[str, float]:
    """Return the GPUs of this machine, as resources of a node."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return {"GPU": 0.0}
    try:
        sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    except (RuntimeError, AssertionError):  # a run will say what is wrong with them
        return {"GPU": float(count)}
    return {"GPU": float(count), GPU_MEMORY: float(min(sizes))}
