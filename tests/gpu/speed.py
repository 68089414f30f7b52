"""Speed on the device: the layer, a whole step, images per second, the input pipeline, several runs on one device."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from filter_loss_cost import candidates, measure
from input_pipeline import loader, make_store, rate, stored, trainer
from rows import goal, number
from training_step_cost import TEMPLATES, step

from ipcnn_ray.data.crop_store import CropStore

NETWORKS = {"alexnet": ("conv3", 128), "vgg16": ("conv5_2", 32)}
"""Network -> the layer that is frozen through when features are cached, and the batch size."""


def layer_cost(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Mask and filter loss against the 3x3 convolution of the same map, alternating rounds."""
    rows = []
    for images, channels, n in [(4, 16, 6)] if small else [(128, 256, 13), (32, 512, 14)]:
        medians = measure(
            candidates(images, channels, n, torch.device(device)), 3 if small else 25, torch.device(device)
        )
        unit = next(iter(medians.values()))
        shape = f"[{images}, {channels}, {n}, {n}]"
        rows.append(number(f"{shape} convolution", f"{unit * 1e3:.3f} ms"))
        for name in ("layer, exact", "layer, released"):
            rows.append(goal(f"{shape} {name} / convolution", medians[name] / unit, 0.20, at_most=True))
    return rows


def step_cost(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """A whole training step with templates against the plain network's, alternating rounds."""
    rows = []
    for network, batch in [("compact", 8)] if small else [("alexnet", 128), ("vgg16", 32)]:
        steps = {name: step(network, template, batch, torch.device(device)) for name, template in TEMPLATES.items()}
        medians = measure(steps, 3 if small else 9, torch.device(device))
        rows.append(number(f"{network} batch {batch}: plain step", f"{medians['plain'] * 1e3:.2f} ms"))
        for name in ("exact", "released"):
            rows.append(goal(f"{network} {name} / plain", medians[name] / medians["plain"], 1.03, at_most=True))
        del steps
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def throughput(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Images per second of `train_epoch`, whole from crops on disk, and behind frozen layers read from a cache;
    beside a bare loop of the plain network on one batch that stays on the device."""
    from epochs import epoch_rate, store_of

    rows = []
    for network, (frozen, batch) in {"compact": ("conv2", 8)}.items() if small else NETWORKS.items():
        images = 32 if small else 8 * batch
        with tempfile.TemporaryDirectory() as folder:
            store = store_of(network, images, Path(folder))
            whole = epoch_rate(network, store, batch, device, Path(folder), frozen=None)
            cached = epoch_rate(network, store, batch, device, Path(folder), frozen=frozen)
        bare = bare_rate(network, batch, device, rounds=2 if small else 12)
        rows.append(number(f"{network} whole, batch {batch}", f"{whole:.0f} images/s"))
        rows.append(goal(f"{network} whole / bare loop", whole / bare, 0.60, at_most=False))
        rows.append(number(f"{network} from cached {frozen}", f"{cached:.0f} images/s"))
        rows.append(number(f"{network} bare loop, bfloat16 where there is any", f"{bare:.0f} images/s"))
    return rows


def bare_rate(network: str, batch: int, device: str, rounds: int) -> float:
    """Images per second of forward, backward and SGD on a resident batch, plain network."""
    from ipcnn_ray.core.classification import classification_loss
    from ipcnn_ray.models.build import build
    from ipcnn_ray.spec.model import Model
    from ipcnn_ray.spec.template import NoTemplate

    model = Model.model_validate({"network": network})
    net = build(model, NoTemplate(shape="none"), 0).to(device).train()
    optimizer = torch.optim.SGD(net.parameter_groups(5e-4), lr=1e-6, momentum=0.9)
    size = model.table.image_size
    x = torch.randn(batch, 3, size, size, device=device)
    label_N = torch.arange(batch, device=device) % 2 - 1
    times = []
    for turn in range(rounds + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        net.set_step(0, 1, turn, 0, batch)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits_NL = net(x, full=True).logits_NL
        optimizer.zero_grad(set_to_none=True)
        classification_loss(logits_NL.float(), label_N).mean().backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= 3:
            times.append(time.perf_counter() - began)
    return batch / statistics.median(times)


def pipeline(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """The input pipeline against what AlexNet consumes."""
    batch, steps, rounds = (8, 1, 1) if small else (128, 8, 5)
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), 24 if small else 1024)
        store: CropStore = stored(Path(folder))
        calls = {
            "input pipeline": loader(store, batch, torch.device(device)),
            "AlexNet, whole": trainer(batch, steps, torch.device(device), None),
            "AlexNet, conv4 up": trainer(batch, steps, torch.device(device), "conv3"),
        }
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 1):
            for name, call in calls.items():
                images_per_second = rate(call, torch.device(device))
                if turn:
                    rates[name].append(images_per_second)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [number(name, f"{value:.0f} images/s") for name, value in medians.items()]
    for name in ("AlexNet, whole", "AlexNet, conv4 up"):
        rows.append(goal(f"input pipeline / {name}", medians["input pipeline"] / medians[name], 5.0, at_most=False))
    return rows


def concurrency(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Images per second of 1, 2 and 4 equal runs at the same time on one device, all together."""
    rows, alone = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for runs in (1, 2) if small else (1, 2, 4):
            start = time.time() + (12 if small else 15)
            command = [
                sys.executable,
                str(Path(__file__).with_name("epochs.py")),
                device,
                str(int(small)),
                folder,
                str(start),
            ]
            children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(runs)]
            rates = [float(child.communicate(timeout=seconds)[0].split()[-1]) for child in children]
            alone = alone or sum(rates)
            rows.append(number(f"compact, {runs} at a time: images/s in all", f"{sum(rates):.0f}"))
            if runs > 1:
                rows.append(number(f"compact, {runs} at a time / one", f"{sum(rates) / alone:.2f}"))
    return rows
