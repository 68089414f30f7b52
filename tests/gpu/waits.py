"""Where the CPU waits for the GPU in an epoch of training, for every form of the losses."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from fakes.training import Bench, tiny
from rows import goal, number
from training import CASES, MORE

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.train_epoch import train_epoch
from ipcnn_ray.train.trainer import Trainer


def waits(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Waits in an epoch of some steps, as torch warns of them; the metrics at its end are one."""
    rows = []
    for case, sections in (CASES | MORE).items():
        with tempfile.TemporaryDirectory() as folder:
            places, steps = _waits(tiny(**sections), Bench(Path(folder), Path(folder)), device)
        if device != "cuda":
            rows.append({"what": f"{steps} steps: {case}", "value": "ran; a CPU waits for nobody", "state": "skipped"})
            continue
        rows.append(goal(f"waits in {steps} steps: {case}", sum(places.values()), 1, at_most=True))
        if sum(places.values()) > 1:
            rows += [number(f"  {place}", f"{count}") for place, count in places.most_common(5)]
    return rows


def _waits(spec: ExperimentSpec, bench: Bench, device: str) -> tuple[Counter[str], int]:
    """The places of the waits in the second of two epochs, and its number of steps."""
    runtime = Runtime(device)
    trainer = Trainer(bench.request(spec), runtime)
    arguments = trainer.net, trainer.inputs, trainer.optimizer, trainer.filter_terms, runtime, spec
    more: dict[str, Any] = {"diversity": trainer.diversity, "bfloat16": trainer.bfloat16}
    train_epoch(*arguments, 1, **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            train_epoch(*arguments, 2, **more)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    places = Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in found)
    return places, len(trainer.store.train_items) // spec.train.batch_size
