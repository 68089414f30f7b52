"""What the benchmarks share: timing in alternating rounds, common options, searches of nearly empty runs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.utils.paths import Paths


def arguments(doc: str, *, rounds: int, threads: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with --device, --threads and --rounds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=threads, help="default: torch's own choice")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def device_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """Check the common options, set the number of threads, and return the device."""
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return torch.device(options.device)


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of a call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round.

    Every round runs all calls, one after the other, so that a slow minute of a shared machine hits all of them. The
    first `warm_up` rounds do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + warm_up):
        for name, call in calls.items():
            taken = seconds(call, device)
            if number >= warm_up:
                times[name].append(taken)
    return times


def nearly_empty(search: Mapping[str, Any], **compute: Any) -> ExperimentSpec:
    """Return a search with a plain run beside it; each run trains `compact` on ten drawn objects for one epoch."""
    return ExperimentSpec.model_validate(
        {
            "name": "nearly_empty",
            "data": {"kind": "drawn_animals", "objects": 10, "negatives": 10},
            "model": {"network": "compact"},
            "template": {"shape": "gradient"},
            "train": {"epochs": 1, "batch_size": 8},
            "compute": compute,
            "search": {"runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}], **search},
        }
    )


def prepared(spec: ExperimentSpec, home: str | Path) -> tuple[Paths, MlflowTracker]:
    """Prepare the data, and a record in SQLite, in a folder."""
    paths = Paths.from_environment({"IPCNN_HOME": str(home)})
    prepare(spec.data, spec.model.table.image_size, paths)
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    tracker.prepare(spec.name)
    return paths, tracker
