"""One epoch of training as the package runs it, timed.

python epochs.py DEVICE SMALL FOLDER START     # a child of the part `concurrency`: waits until START, prints images/s
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.models.build import build
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.filter_term import filter_terms
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.train_epoch import train_epoch
from ipcnn_ray.utils.paths import Paths


def spec_of(network: str, images: int, batch: int) -> ExperimentSpec:
    """Drawn cows and as many negatives, the paper's L1 template."""
    return ExperimentSpec.model_validate(
        {
            "name": "speed",
            "data": {"kind": "drawn_animals", "objects": max(10, images // 2), "negatives": max(10, images // 2)},
            "model": {"network": network},
            "template": {"shape": "gradient", "norm": "l1", "beta": 2},
            "train": {"epochs": 1, "batch_size": batch, "learning_rate": 1e-6},
        }
    )


def store_of(network: str, images: int, folder: Path) -> CropStore:
    """A store of drawn crops at the network's image size."""
    spec = spec_of(network, images, 2)
    paths = Paths.from_environment({"IPCNN_HOME": str(folder)})
    return prepare(spec.data, spec.model.table.image_size, paths)


def epoch_rate(network: str, store: CropStore, batch: int, device: str, folder: Path, frozen: str | None) -> float:
    """Images per second of the second of two epochs; `frozen`: layers up to here are frozen, their outputs cached."""
    spec = spec_of(network, len(store.labels_N), batch)
    net = build(spec.model, spec.template, 0, 1, spec.loss.filter)
    if frozen:
        net.freeze_through(frozen)
    net.to(device)
    inputs = InputPipeline(store, net, spec.model.table.input_scale, torch.device(device))
    if frozen:
        inputs.use_cache(folder, distinct_items(store.train_items))
    optimizer = torch.optim.SGD(net.parameter_groups(5e-4), lr=1e-6, momentum=0.9)
    terms = filter_terms(spec, spec.template, net, torch.tensor([0.5]))
    bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported()
    for epoch in (1, 2):
        metrics = train_epoch(net, inputs, optimizer, terms, Runtime(device), spec, epoch, bfloat16=bfloat16)
    return metrics["images_per_second"]


def main() -> None:
    device, small, folder, start = sys.argv[1], sys.argv[2] == "1", Path(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    images = 40 if small else 4000
    store = store_of("compact", images, folder)
    time.sleep(max(0.0, start - time.time()))
    print(epoch_rate("compact", store, 8 if small else 64, device, folder, frozen=None))


if __name__ == "__main__":
    main()
