"""Resources of an experiment and of a cluster, compared before anything starts: Ray itself would wait for ever."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from ipcnn_ray.errors import ResourceError
from ipcnn_ray.spec.training import Compute

Nodes = Sequence[Mapping[str, float]]
"""Resources of each node by Ray's names: {"CPU": cores, "GPU": gpus}."""


def this_machine() -> Nodes:
    """Return the resources of an embedded Ray."""
    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def gpus_per_worker(compute: Compute, nodes: Nodes) -> float:
    """Return the GPUs per worker of the spec; by default 1 if the cluster has any, else 0."""
    if compute.gpus_per_worker is not None:
        return compute.gpus_per_worker
    return 1.0 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0


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
