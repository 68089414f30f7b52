"""How much faster several processes fill a feature cache together than one: AlexNet frozen through conv3.

    python tests/benchmarks/feature_cache_build.py [--processes 2] [--threads 1] [--images 240] [--rounds 5]

Every round fills an empty cache twice: by one process, while the others wait, and by all of them. The time is from a
barrier, when all processes have loaded the network, until the last one can read the features. The two files are
compared byte by byte. Weights are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from torch import multiprocessing

from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.models.build import build
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import GradientTemplate
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.utils.paths import Paths

MODEL = Model(network="alexnet")


def fill(rank: int, folder: Path, images: int, threads: int, rounds: int, barrier: Barrier) -> None:
    """Fill the caches of all rounds; rank 0 fills those of one process, and prints."""
    torch.set_num_threads(threads)
    data = DrawnAnimals(kind="drawn_animals", objects=images // 3, negatives=images // 3)
    store = prepare(data, MODEL.table.image_size, Paths.from_environment({"IPCNN_HOME": str(folder)}))
    net = build(MODEL, GradientTemplate(shape="gradient"), 0)
    net.freeze_through("conv3")
    items = distinct_items(store.train_items)
    seconds: dict[str, list[float]] = {"one": [], "all": []}
    for round_ in range(rounds + 1):
        for name in seconds:
            cache = folder / f"{name}-{round_}"
            barrier.wait()
            start = time.perf_counter()
            if name == "all" or rank == 0:
                inputs = InputPipeline(store, net, MODEL.table.input_scale, torch.device("cpu"))
                inputs.use_cache(cache, items)
            barrier.wait()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
        if rank == 0:
            one, together = (next((folder / f"{name}-{round_}").rglob("features.npy")) for name in seconds)
            assert one.read_bytes() == together.read_bytes()
            one.unlink()
            together.unlink()
    if rank == 0:
        print(f"{len(items)} items, {threads} threads per process, torch {torch.__version__}; median and range in s")
        for name, taken in seconds.items():
            print(f"{name:<4} {statistics.median(taken):7.2f}   {min(taken):7.2f} to {max(taken):7.2f}")
        ratios = [one / together for one, together in zip(*seconds.values(), strict=True)]
        print(f"ratio of each round: {statistics.median(ratios):.2f}   {min(ratios):.2f} to {max(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("processes", 2), ("threads", 1), ("images", 240), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    barrier = multiprocessing.get_context("spawn").Barrier(options.processes)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder), options.images, options.threads, options.rounds, barrier)
        multiprocessing.spawn(fill, arguments, nprocs=options.processes)


if __name__ == "__main__":
    main()
