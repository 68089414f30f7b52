"""What an experiment needs against what the cluster has, before anything starts: Ray itself waits for ever."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from ipcnn_ray.errors import ResourceError
from ipcnn_ray.spec.experiment import Compute

Nodes = Sequence[Mapping[str, float]]
"""Of each node its resources, by Ray's names: {"CPU": cores, "GPU": gpus}."""


def this_machine() -> Nodes:
    """The resources that an embedded Ray has."""
    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def gpus_per_worker(compute: Compute, nodes: Nodes) -> float:
    """The spec's GPUs per worker; by default 1 where the cluster has any."""
    if compute.gpus_per_worker is not None:
        return compute.gpus_per_worker
    return 1.0 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0


def runs_at_once(compute: Compute, gpus: float, nodes: Nodes) -> int:
    """How many runs are trained at the same time, `gpus` for each worker of a run.

    Raises ResourceError when not even one fits, or fewer than `compute.concurrent_runs` asks for.
    """
    workers = sum(_workers_on(node, compute.cpus_per_worker, gpus) for node in nodes)
    fit = workers // compute.workers
    each = f"{compute.cpus_per_worker} {'core' if compute.cpus_per_worker == 1 else 'cores'}"
    each += f" and {gpus:g} {'GPU' if gpus == 1 else 'GPUs'}" if gpus else ""
    here = f"This cluster has {_described(nodes)}: room for {workers} such workers."
    if not fit:
        ways = [f"--set compute.workers={workers}"] if workers else []
        if compute.cpus_per_worker > 1:
            ways.append("--set compute.cpus_per_worker=1")
        if gpus:
            ways.append("--set compute.gpus_per_worker=0")
        raise ResourceError(
            f"a run asks for {compute.workers} workers of {each}; it would wait for ever\n{here}\n"
            f"Ways out: {', '.join([*ways, 'or more nodes'])}."
        )
    if compute.concurrent_runs is not None and compute.concurrent_runs > fit:
        raise ResourceError(
            f"compute.concurrent_runs = {compute.concurrent_runs}, each of {compute.workers} workers of {each}\n"
            f"{here} At the same time {fit} of these runs fit.\n"
            f"Ways out: --set compute.concurrent_runs={fit}, or null for as many as fit."
        )
    return compute.concurrent_runs or fit


def _workers_on(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    room = int(node.get("CPU", 0) // cpus)
    return min(room, int(node.get("GPU", 0) / gpus)) if gpus else room


def _described(nodes: Nodes) -> str:
    kinds: dict[str, int] = {}
    for node in nodes:
        kind = f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} {'node' if count == 1 else 'nodes'} of {kind}" for kind, count in kinds.items())
