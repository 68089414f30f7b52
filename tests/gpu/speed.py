"""Speed on the device: the layer, a whole step, images per second, the input pipeline, several runs on one device."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_tools import alternate, spec_of, training_step
from filter_loss_cost import candidates
from input_pipeline import make_store, rates, stored, trainer
from rows import goal, number
from steps import graphs_of
from training_step_cost import TEMPLATES

NETWORKS = {"alexnet": ("conv3", 128), "vgg16": ("conv5_2", 32)}
"""Network -> the layer that is frozen through when features are cached, and the batch size."""


def measure(calls: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of each call over alternating rounds."""
    times = alternate(calls, rounds, torch.device(device), warm_up=2)
    return {name: statistics.median(values) for name, values in times.items()}


def layer_cost(device: str, small: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Mask and filter loss against the 3x3 convolution of the same map, alternating rounds: each as it is, and replayed
    from a graph, without the time of its launches."""
    for images, channels, n in [(4, 16, 6)] if small else [(128, 256, 13), (32, 512, 14)]:
        shape, calls = f"[{images}, {channels}, {n}, {n}]", candidates(images, channels, n, torch.device(device))
        convolution, *_ = calls
        compared = {name: calls[name] for name in (convolution, "layer, exact", "layer, released")}
        ways = {"": compared, ", replayed": {name: replayed(call, device) for name, call in compared.items()}}
        for way, of_way in ways.items():
            medians = measure(of_way, 3 if small else 25, device)
            unit = medians.pop(convolution)
            yield number(f"{shape} convolution{way}", f"{unit * 1e3:.3f} ms")
            for name, median in medians.items():
                yield goal(f"{shape} {name} / convolution{way}", median / unit, 0.20, at_most=True)


def replayed(call: Callable[[], None], device: str) -> Callable[[], None]:
    """A call that replays another from a graph."""
    graphs, nothing = graphs_of(device), torch.zeros(1, device=device)

    def run() -> torch.Tensor:
        call()
        return nothing

    for _ in range(3):
        graphs.beside(run)
    return graphs.capture(run)[0]


def step_cost(device: str, small: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A whole training step with templates against the plain network's, alternating rounds."""
    for network, batch in [("compact", 8)] if small else [("alexnet", 128), ("vgg16", 32)]:
        specs = {name: spec_of(network, 400, batch, **template) for name, template in TEMPLATES.items()}
        steps = {name: training_step(spec, torch.device(device)) for name, spec in specs.items()}
        medians = measure(steps, 3 if small else 9, device)
        yield number(f"{network} batch {batch}: plain step", f"{medians['plain'] * 1e3:.2f} ms")
        for name in ("exact", "released"):
            yield goal(f"{network} {name} / plain", medians[name] / medians["plain"], 1.03, at_most=True)
        del steps
        if device == "cuda":
            torch.cuda.empty_cache()


def throughput(device: str, small: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Images per second of `train_epoch`, whole from crops on disk, and behind frozen layers read from a cache;
    beside a bare loop of the plain network on one batch that stays on the device."""
    from epochs import epoch_rate, store_of

    for network, (frozen, batch) in {"compact": ("conv2", 8)}.items() if small else NETWORKS.items():
        images = 32 if small else 8 * batch
        with tempfile.TemporaryDirectory() as folder:
            store = store_of(network, images, Path(folder))
            whole = epoch_rate(network, store, batch, device, Path(folder), frozen=None)
            cached = epoch_rate(network, store, batch, device, Path(folder), frozen=frozen)
        step = {"bare": trainer(batch, 1, torch.device(device), None, network)}
        times = alternate(step, 2 if small else 12, torch.device(device), warm_up=3)
        bare = batch / statistics.median(times["bare"])
        yield number(f"{network} whole, batch {batch}", f"{whole:.0f} images/s")
        yield goal(f"{network} whole / bare loop", whole / bare, 0.60, at_most=False)
        yield number(f"{network} from cached {frozen}", f"{cached:.0f} images/s")
        yield number(f"{network} bare loop, bfloat16 where there is any", f"{bare:.0f} images/s")


def pipeline(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """The input pipeline against what AlexNet consumes."""
    batch, steps, rounds = (8, 1, 1) if small else (128, 8, 5)
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), 24 if small else 1024)
        by_name = rates(stored(Path(folder)), batch, steps, rounds, torch.device(device))
    medians = {name: statistics.median(values) for name, values in by_name.items()}
    given = medians["input pipeline"]
    rows = [number(name, f"{value:.0f} images/s") for name, value in medians.items()]
    return rows + [
        goal(f"input pipeline / {name}", given / value, 5.0, at_most=False)
        for name, value in medians.items()
        if name.startswith("AlexNet")
    ]


def concurrency(device: str, small: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Images per second of 1, 2 and 4 equal runs at the same time on one device, all together."""
    alone = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for runs in (1, 2) if small else (1, 2, 4):
            start = time.time() + (12 if small else 8)
            script = Path(__file__).with_name("epochs.py")
            command = [sys.executable, script, device, str(int(small)), folder, str(start)]
            children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(runs)]
            rates = [float(child.communicate(timeout=seconds)[0].split()[-1]) for child in children]
            alone = alone or sum(rates)
            yield number(f"compact, {runs} at a time: images/s in all", f"{sum(rates):.0f}")
            if runs > 1:
                yield number(f"compact, {runs} at a time / one", f"{sum(rates) / alone:.2f}")
