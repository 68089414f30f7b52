"""VGG-16 with its real weights on cows of Pascal VOC Part: plain, L1, a narrow L2; as many epochs as there is time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from fakes.training import MemoryTracker
from rows import number

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime, StopRun
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths

TEMPLATES: dict[str, dict[str, Any]] = {
    "plain": {"shape": "none"},
    "L1 beta 2": {"shape": "gradient", "norm": "l1", "beta": 2},
    "L2 beta 10": {"shape": "gradient", "norm": "l2", "beta": 10},
}


class Deadline(Runtime):
    """A worker that ends its run when the time is up."""

    def __init__(self, device: str, end: float) -> None:
        super().__init__(device)
        self.end = end
        self.epochs: list[float] = []

    def report(self, metrics: Mapping[str, float]) -> None:
        super().report(metrics)
        self.epochs.append(metrics["images_per_second"])
        if time.monotonic() + metrics["seconds"] > self.end:
            raise StopRun("the time is up")


def spec_of(template: dict[str, Any], small: bool) -> ExperimentSpec:
    """Trained from conv5_3 up; the outputs of conv5_2 are cached."""
    return ExperimentSpec.model_validate(
        {
            "name": "voc",
            "data": {"kind": "voc_part", "category": "cow", "negatives": 20 if small else 400},
            "model": {"network": "vgg16", "weights": {"file": "vgg16_conv.npz"}},
            "template": template,
            "train": {
                "epochs": 1 if small else 30,
                "batch_size": 32,
                "learning_rate": 1e-3,
                "freeze_through": "conv5_2",
            },
            "eval": {"every": 1},
        }
    )


def voc(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Rows of each template: epochs, error, instability of both layers, images per second."""
    for variable in ("IPCNN_DATA", "IPCNN_WEIGHTS"):
        if not os.environ.get(variable):
            return [{"what": "not run", "value": f"{variable} is not set", "state": "skipped"}]
    if small and device == "cpu":
        return [{"what": "not run", "value": "minutes an epoch on a CPU", "state": "skipped"}]
    end, rows = time.monotonic() + seconds - 15, []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, template) in enumerate(TEMPLATES.items()):
            share = (end - time.monotonic()) / (len(TEMPLATES) - index)
            runtime = Deadline(device, time.monotonic() + share)
            paths = Paths.from_environment({**os.environ, "IPCNN_HOME": folder})
            spec = spec_of(template, small)
            request = RunRequest(RunSummary(name, name), spec, paths, "handle", f"{folder}/{index}")
            metrics = train_run(request, runtime, MemoryTracker()).metrics
            layers = ", ".join(f"{layer} {metrics[f'instability_{layer}']:.4f}" for layer in ("conv5_3", "conv6"))
            rows.append(number(f"{name}: instability of {layers}; error", f"{100 * metrics['val_error']:.1f} %"))
            rate = sorted(runtime.epochs)[len(runtime.epochs) // 2]
            rows.append(number(f"{name}: {metrics['epoch']:.0f} epochs, median", f"{rate:.0f} images/s"))
            if device == "cuda":
                torch.cuda.empty_cache()
    return rows
