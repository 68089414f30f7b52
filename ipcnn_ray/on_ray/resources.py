"""What an experiment needs against what the cluster has, before anything starts: Ray itself waits for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ipcnn_ray.errors import ResourceError
from ipcnn_ray.spec.experiment import Compute


def gpus_per_worker(compute: Compute, nodes: Sequence[Mapping[str, float]]) -> float:
    """The spec's GPUs per worker; by default 1 where the cluster has any."""
    if compute.gpus_per_worker is not None:
        return compute.gpus_per_worker
    return 1.0 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0


def runs_that_fit(compute: Compute, gpus: float, nodes: Sequence[Mapping[str, float]]) -> int:
    """Runs that the nodes ({"CPU": cores, "GPU": gpus} each) can train at the same time.

    Raises ResourceError when not even one fits.
    """
    workers = sum(_workers_on(node, compute.cpus_per_worker, gpus) for node in nodes)
    if workers >= compute.workers:
        return workers // compute.workers
    cores = [int(node.get("CPU", 0)) for node in nodes]
    graphics = [node.get("GPU", 0) for node in nodes]
    raise ResourceError(
        f"{compute.workers} workers with {compute.cpus_per_worker} cores and {gpus:g} GPUs each do not fit: "
        f"the nodes have {cores} cores and {graphics} GPUs, which is room for {workers}\n"
        f"Lower them: --set compute.workers={max(1, workers)}, --set compute.cpus_per_worker=1, "
        "--set compute.gpus_per_worker=0; or use a larger machine."
    )


def _workers_on(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    room = int(node.get("CPU", 0) // cpus)
    return min(room, int(node.get("GPU", 0) / gpus)) if gpus else room
