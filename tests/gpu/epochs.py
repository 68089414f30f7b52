"""One epoch of training as the package runs it, timed.

python epochs.py DEVICE SMALL FOLDER START     # a child of the part `concurrency`: waits until START, prints images/s
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from bench_tools import initialized, spec_of

from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.speed import has_bfloat16
from ipcnn_ray.train.train_epoch import train_epoch
from ipcnn_ray.utils.paths import Paths


def store_of(network: str, images: int, folder: Path) -> CropStore:
    """A store of drawn crops at the network's image size."""
    spec = spec_of(network, images, 2)
    paths = Paths.from_environment({"IPCNN_HOME": str(folder)})
    return prepare(spec.data, spec.model.table.image_size, paths)


def epoch_rate(network: str, store: CropStore, batch: int, device: str, folder: Path, frozen: str | None) -> float:
    """Images per second of the second of two epochs; `frozen`: layers up to here are frozen, their outputs cached."""
    spec = spec_of(network, len(store.labels_N), batch)
    net, terms, optimizer = initialized(spec, torch.device(device), frozen)
    inputs = InputPipeline(store, net, spec.model.table.input_scale, torch.device(device))
    if frozen:
        inputs.use_cache(folder, distinct_items(store.train_items))
    bfloat16 = has_bfloat16(torch.device(device))
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
