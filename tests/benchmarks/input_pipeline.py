"""What the input pipeline delivers against what AlexNet consumes, and what it keeps in memory.

    python tests/benchmarks/input_pipeline.py [--device cuda] [--threads 2] [--rounds 5] [--batch 32]

Speed: crops of 227 x 227 pixels in random order from a store on disk (in the page cache after the first round),
through `InputPipeline` until they lie on the device flipped and normalised (on a GPU three times: crops that stay in
its memory, as the package has it where they fit; copied from pinned memory; and from memory that is not); against
training steps of the plain AlexNet with random weights on an input that is there already (forward, backward, SGD,
classification loss alone: the filter loss would only slow it down), once the whole network and once from conv4 up.
Medians over alternating rounds. Goal: 5 times.

Memory: a fresh process each reads one epoch from stores of N and 4 N crops; the growth of its private memory
(RssAnon) and of the pages it maps from files (RssFile, which the system takes back when it needs them), at their
highest. Beside it, the same through the mapping. Goal: independent of N.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from bench_tools import alternate, arguments, device_of, machine

from ipcnn_ray.core.classification import classification_loss
from ipcnn_ray.data.batches import Batch, Read, batches, crops_reader, epoch_order, shares, to_input
from ipcnn_ray.data.crop_store import Contents, CropStore, open_store, write_store
from ipcnn_ray.data.split import Items
from ipcnn_ray.models.build import build
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.speed import has_bfloat16

SIZE = 227
DIGEST = "0" * 16


def make_store(cache: Path, count: int, size: int = SIZE) -> None:
    """A store of `count` random crops, half of them objects, all of them in training."""
    index = np.arange(count)
    contents = Contents(
        labels_N=np.where(index < count // 2, 0, -1),
        categories=("object",),
        landmarks_NK2=np.zeros((count, 1, 2), np.float32),
        train_items=np.stack([index, index % 2], 1),
        val_items=np.stack([index, index * 0], 1)[:1],
        names=tuple(map(str, index)),
        landmark_names=("head",),
        tags={},
    )
    rng = np.random.default_rng(0)

    def fill(images: np.ndarray) -> None:
        for i in range(count):
            images[i] = rng.integers(0, 256, images.shape[1:], np.uint8)

    write_store(cache, DIGEST, size, contents, fill)


def stored(cache: Path) -> CropStore:
    store = open_store(cache, DIGEST)
    assert store is not None
    return store


def parts_of(store: CropStore, batch: int, epoch: int) -> list[np.ndarray]:
    order = epoch_order(len(store.train_items), 0, epoch)
    return [store.train_items[part] for part in shares(order, batch, 0, 1)]


class Pageable(InputPipeline):
    """Batches are read into memory that is not pinned, and the step waits for their copy."""

    def loader(self, parts: list[Items], *, crops: bool = False) -> closing[Generator[Batch, None, None]]:
        def copied() -> Generator[Batch, None, None]:
            for batch in batches(parts, self.store.labels_N, crops_reader(self.store.images_N3SS)):
                yield Batch(*(tensor.to(self.device) for tensor in vars(batch).values()))

        return closing(copied())


def pipelines(store: CropStore, net: InterpretableNet, scale: float, device: torch.device) -> dict[str, InputPipeline]:
    """Name -> the pipeline of the package and, on a GPU, others to compare it with."""
    found = {"input pipeline": InputPipeline(store, net, scale, device)}
    if device.type == "cuda":
        found["input, pinned memory"] = InputPipeline(store, net, scale, device, room=0)
        found["input, pageable memory"] = Pageable(store, net, scale, device)
    return found


def loader(inputs: InputPipeline, batch: int) -> Callable[[], None]:
    """Return a call that reads one epoch."""

    def epoch() -> None:
        with inputs.loader(parts_of(inputs.store, batch, 1)) as found:
            for part in found:
                inputs.net_input(part)

    return epoch


def trainer(
    batch: int, steps: int, device: torch.device, frozen: str | None, network: str = "alexnet"
) -> Callable[[], None]:
    """Return a call that takes training steps of the plain network on one batch, which stays on the device."""
    model = Model.model_validate({"network": network})
    net = build(model, NoTemplate(shape="none"), 0).to(device).train()
    if frozen:
        net.freeze_through(frozen)
    optimizer = torch.optim.SGD(net.parameter_groups(5e-4), lr=1e-5, momentum=0.9)
    x = torch.randn(batch, 3, model.table.image_size, model.table.image_size, device=device)
    labels = torch.arange(batch, device=device) % 2 - 1

    def train() -> None:
        for step in range(steps):
            net.set_step(0, 1, step, 0, batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                logits_NL = net(x, full=True).logits_NL
            optimizer.zero_grad(set_to_none=True)
            classification_loss(logits_NL.float(), labels).mean().backward()
            optimizer.step()

    return train


def rates(store: CropStore, batch: int, steps: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the images per second of the input pipeline and of what AlexNet consumes, in each round."""
    net = build(Model.model_validate({"network": "alexnet"}), NoTemplate(shape="none"), 0).to(device)
    inputs = {name: loader(one, batch) for name, one in pipelines(store, net, 1.0, device).items()}
    calls = {
        **inputs,
        "AlexNet, whole network": trainer(batch, steps, device, None),
        "AlexNet, conv4 up": trainer(batch, steps, device, "conv3"),
    }
    read = len(parts_of(store, batch, 1)) * batch
    images = {name: read if name in inputs else steps * batch for name in calls}
    times = alternate(calls, rounds, device)
    return {name: [images[name] / taken for taken in values] for name, values in times.items()}


def speeds(store: CropStore, args: argparse.Namespace, device: torch.device) -> None:
    by_name = rates(store, args.batch, args.steps, args.rounds, device)
    given = by_name["input pipeline"]
    for name, values in by_name.items():
        ratios = [one / other for one, other in zip(given, values, strict=True)]
        spread = f"{statistics.median(ratios):8.1f} x ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"  {name:<26}{statistics.median(values):>10.0f} images/s" + ("" if values is given else spread))


def resident() -> dict[str, int]:
    """MiB of this process: RssAnon and RssFile."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) // 1024 for words in lines if words[0] in ("RssAnon:", "RssFile:")}


def memory_child(cache: Path, batch: int, how: str) -> None:
    """One epoch in this process; prints the highest growth of each kind of memory."""
    store = stored(cache)
    mean = torch.from_numpy(store.mean_3SS)
    images = store.images_N3SS
    read: Read = crops_reader(images)
    if how == "mapped":
        read = lambda part: torch.from_numpy(np.asarray(images[part[:, 0]]))  # noqa: E731
    warm = [part % 8 for part in parts_of(store, batch, 1)[:4]]  # allocators and threads, on the first crops alone
    for one in batches(warm, store.labels_N, read):
        to_input(one.rows, one.mirrored, mean, 1.0, torch.device("cpu"))
    before, highest = resident(), {"RssAnon": 0, "RssFile": 0}
    for one in batches(parts_of(store, batch, 2), store.labels_N, read):
        to_input(one.rows, one.mirrored, mean, 1.0, torch.device("cpu"))
        highest = {kind: max(highest[kind], now - before[kind]) for kind, now in resident().items()}
    print(json.dumps(highest))


def memory(caches: dict[int, Path], batch: int) -> None:
    for how, label in (("read", "as the package reads"), ("mapped", "through the mapping")):
        for count, cache in caches.items():
            command = [sys.executable, __file__, "--child", str(cache), "--how", how, "--batch", str(batch)]
            grown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            size = count * 3 * SIZE * SIZE / 2**20
            print(
                f"  {label:<22}{count:>6} crops,{size:>6.0f} MiB: RssAnon +{grown['RssAnon']} MiB, "
                f"RssFile +{grown['RssFile']} MiB"
            )


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="training steps a round")
    parser.add_argument("--crops", type=int, default=500, help="N")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="read", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = device_of(parser, args)
    if args.child:
        memory_child(args.child, args.batch, args.how)
        return
    if args.crops < args.batch:
        parser.error("--crops: expected at least --batch")
    with tempfile.TemporaryDirectory() as folder:
        caches = {count: Path(folder) / str(count) for count in (args.crops, 4 * args.crops)}
        for count, cache in caches.items():
            make_store(cache, count)
        print(f"{machine(device)}, batch {args.batch}, {args.rounds} alternating rounds")
        speeds(stored(caches[4 * args.crops]), args, device)
        print("growth of resident memory over one epoch")
        memory(caches, args.batch)


if __name__ == "__main__":
    main()
