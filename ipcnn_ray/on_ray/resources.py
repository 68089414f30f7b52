"""What an experiment needs against what the cluster has, before anything starts: Ray itself waits for ever."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from ipcnn_ray.errors import ResourceError
from ipcnn_ray.spec.training import Compute

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
    cpus = compute.cpus_per_worker
    room = _room(nodes, cpus, gpus)
    fit = room // compute.workers
    asked = f"{_count(compute.workers, 'worker')} of {_count(cpus, 'core')}"
    asked += f" and {_count(gpus, 'GPU')}" if gpus else ""
    here = f"This cluster has {_described(nodes)}: room for {_count(room, 'such worker')}."
    if not fit:
        fewer = {
            f"compute.workers={room}": room > 0,
            "compute.cpus_per_worker=1": _room(nodes, 1, gpus) >= compute.workers,
            "compute.gpus_per_worker=0": _room(nodes, cpus, 0) >= compute.workers,
        }
        ways = [f"--set {setting}" for setting, helps in fewer.items() if helps]
        raise ResourceError(
            f"a run asks for {asked}; it would wait for ever\n{here}\nWays out: {', '.join([*ways, 'or more nodes'])}."
        )
    if compute.concurrent_runs is not None and compute.concurrent_runs > fit:
        raise ResourceError(
            f"compute.concurrent_runs = {compute.concurrent_runs}, each run of {asked}\n"
            f"{here} At the same time {_count(fit, 'such run')} can go on.\n"
            f"Ways out: --set compute.concurrent_runs={fit}, or null for as many as fit."
        )
    return compute.concurrent_runs or fit


def _room(nodes: Nodes, cpus: int, gpus: float) -> int:
    """Workers that fit, each on one node."""
    return sum(_workers_on(node, cpus, gpus) for node in nodes)


def _count(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def _workers_on(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    room = int(node.get("CPU", 0) // cpus)
    return min(room, int(node.get("GPU", 0) / gpus)) if gpus else room


def _described(nodes: Nodes) -> str:
    kinds = Counter(f"{_count(node.get('CPU', 0), 'core')} and {_count(node.get('GPU', 0), 'GPU')}" for node in nodes)
    return ", ".join(f"{_count(number, 'node')} of {kind}" for kind, number in kinds.items())
