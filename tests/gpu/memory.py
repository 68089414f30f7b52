"""What runs take of the device's memory, against the estimate by which runs share a GPU."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import torch
from fakes.training import Bench, tiny
from rows import check, number

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.device_memory import GIB, run_bytes
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.speed import kernels
from ipcnn_ray.train.trainer import Trainer

CASES = (("compact", 32, "exact"), ("alexnet", 128, "exact"), ("vgg16", 32, "exact"), ("vgg16", 32, "fast"))
"""Network, batch size and `compute.speed`."""


def memory(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Three epochs with their evaluations, as the package runs them, of some networks: context, reserved and allocated
    memory of this process, all together at most what was estimated."""
    rows = []
    for network, batch, speed in CASES[:1] if small else CASES:
        batch = 8 if small else batch
        name, spec = f"{network}, batch {batch}, {speed}", spec_of(network, batch, speed)
        with kernels(spec), tempfile.TemporaryDirectory() as folder:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            trainer = Trainer(Bench(Path(folder), Path(folder)).request(spec), Runtime(device))
            trainer.fit()
            estimated = run_bytes(spec, len(trainer.evaluation_plan.items)).of_process
            kept = trainer.store.images_N3SS.nbytes  # the estimate is without crops, which stay on the device
        rows.append(number(f"{name}: estimated", f"{estimated / GIB:.2f} GiB"))
        if device == "cuda":
            rows += _measured(name, estimated + kept)
        else:
            rows.append({"what": name, "value": "ran; only a GPU counts its memory", "state": "skipped"})
        del trainer
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def spec_of(network: str, batch: int, speed: str) -> ExperimentSpec:
    """Two steps an epoch."""
    return tiny(
        data={"objects": max(10, batch), "negatives": max(10, batch)},
        model={"network": network, "dropout": None},
        train={"batch_size": batch, "learning_rate": 1e-6, "final_learning_rate": None},
        compute={"speed": speed},
    )


def _measured(name: str, bound: int) -> list[dict[str, Any]]:
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()  # and what other processes take, of which there are none
    reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    taken = context + reserved
    return [
        number(f"{name}: context", f"{context / GIB:.2f} GiB"),
        number(f"{name}: allocated, reserved", f"{allocated / GIB:.2f}, {reserved / GIB:.2f} GiB"),
        check(f"{name}: context and reserved", f"{taken / GIB:.2f} of {bound / GIB:.2f} GiB", taken <= bound),
    ]
