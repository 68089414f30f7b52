"""What the cache of frozen layers saves: AlexNet frozen through conv3, trained from conv4 up.

    python tests/benchmarks/frozen_cache.py [--device cuda] [--threads 1] [--images 160] [--batch 60] [--rounds 5]

Two things are timed, each from the cache and from the crops: obtaining conv4's inputs for one epoch (the frozen
part), and the whole epoch of training with the filter loss. Medians over alternating rounds. Features and crops are
read from files that the machine has in its page cache. Weights are random: they do not change the time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bench_tools import alternate, arguments, device_of, initialized, machine, spec_of

from ipcnn_ray.data.batches import epoch_order, shares
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.speed import has_bfloat16
from ipcnn_ray.train.train_epoch import train_epoch
from ipcnn_ray.utils.paths import Paths


def candidates(folder: Path, images: int, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Name -> one epoch of it; building the cache is done before."""
    spec = spec_of("alexnet", 2 * images // 3, batch)
    scale = spec.model.table.input_scale
    store = prepare(spec.data, spec.model.table.image_size, Paths.from_environment({"IPCNN_HOME": str(folder)}))
    found: dict[str, Callable[[], object]] = {}
    for name in ("crops", "cache"):
        net, terms, optimizer = initialized(spec, device, "conv3")
        inputs = InputPipeline(store, net, scale, device)
        if name == "cache":
            start = time.perf_counter()
            inputs.use_cache(folder, distinct_items(store.train_items))
            size = sum(file.stat().st_size for file in folder.glob("features/*/features.npy"))
            print(f"cache built in {time.perf_counter() - start:.1f} s, {size / 1e6:.0f} MB")
        order = epoch_order(len(store.train_items), 0, 1)
        parts = [store.train_items[share] for share in shares(order, batch, 0, 1)]

        def frozen(inputs: InputPipeline = inputs, parts: list = parts) -> None:
            with inputs.loader(parts) as loader:
                for one in loader:
                    inputs.net_input(one)

        bfloat16 = has_bfloat16(device)
        of_epoch = net, inputs, optimizer, terms, Runtime(device), spec, 1

        found[f"frozen part from {name}"] = frozen
        found[f"whole epoch from {name}"] = partial(train_epoch, *of_epoch, bfloat16=bfloat16)
    print(f"{len(parts)} steps of {batch} images")
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=5, threads=1)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--batch", type=int, default=60)
    options = parser.parse_args()
    device = device_of(parser, options)
    with tempfile.TemporaryDirectory() as folder:
        calls = candidates(Path(folder), options.images, options.batch, device)
        times = alternate(calls, options.rounds, device)
    print(f"{machine(device)}, median of {options.rounds} alternating rounds, and their range")
    median = {name: statistics.median(taken) for name, taken in times.items()}
    for name, value in median.items():
        print(f"{name:<26} {value * 1000:9.1f} ms   {min(times[name]) * 1000:9.1f} to {max(times[name]) * 1000:9.1f}")
    for what in ("frozen part", "whole epoch"):
        print(f"{what}: {median[f'{what} from crops'] / median[f'{what} from cache']:.2f} times cheaper from the cache")


if __name__ == "__main__":
    main()
