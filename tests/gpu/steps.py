"""What a training step does on the device, what makes it faster (fast kernels, replayed graphs), and how long the
paper's grid would take."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_tools import alternate, initialized, spec_of
from fakes.recorded_graph import RecordedGraphs
from fakes.training import Bench, tiny
from input_pipeline import make_store, stored
from rows import goal, number, within
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from ipcnn_ray.spec.training import Compute
from ipcnn_ray.train.distributed_inference import EvaluationPlan
from ipcnn_ray.train.evaluate import evaluate
from ipcnn_ray.train.feature_cache import InputPipeline, distinct_items
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.speed import has_bfloat16, kernels
from ipcnn_ray.train.step_graph import CudaGraphs, Graphs, StepGraph
from ipcnn_ray.train.train_epoch import train_epoch

OUT = "IPCNN_GPU_OUT"
"""Environment variable with the folder of the tables and traces of the profiler; without it they are not kept."""
CASES = {
    "alexnet": ("alexnet", 128, None),
    "vgg16": ("vgg16", 32, None),
    "vgg16 from conv5_2": ("vgg16", 32, "conv5_2"),
    "compact": ("compact", 32, None),
}
"""Name -> network, batch size, and the layer that is frozen through, whose outputs are cached."""
FAST_CASES = {
    "alexnet": ("alexnet", 128, None, 10),
    "alexnet from conv3": ("alexnet", 128, "conv3", 28),
    "vgg16": ("vgg16", 32, None, 10),
    "vgg16 from conv5_2": ("vgg16", 32, "conv5_2", 28),
    "compact": ("compact", 32, None, 56),
}
"""As `CASES`, with the steps of an epoch."""
HEAVIEST = 10
FAST_BOUND = 2e-2
"""Largest relative difference of the losses of a tiny run in float32 with `compute.speed: fast`."""
GRID_BATCHES = {"alexnet": 128, "vgg_m": 128, "vgg_s": 128, "vgg16": 32}
ANIMALS, GRID_TEMPLATES, GRID_EPOCHS = 6, 5, 50
TRAINED, EVALUATED = 3600, 800
"""Images of an epoch on one animal of Pascal VOC Part: .9 of 3,000 object and 1,000 negative items; about 400 items of
validation and 400 objects."""


def profile(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Ten training steps of `train_epoch` for each of `CASES`, with the L1 template and the filter loss: milliseconds
    of a step, what the GPU and the CPU do in it, and the heaviest kernels and operators."""
    steps, rows = (2 if small else 10), []
    cases = {"compact": ("compact", 8, None), "compact from conv2": ("compact", 8, "conv2")} if small else CASES
    end = time.monotonic() + seconds
    for number_of_case, (name, (network, batch, frozen)) in enumerate(cases.items()):
        if number_of_case and time.monotonic() > end - seconds / len(cases):
            rows.append({"what": name, "value": "no time left", "state": "skipped"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            train = epochs(network, batch, steps, device, Path(folder), frozen)
            train()  # kernels are loaded, data placed
            wall = timed(train, device) / steps
            rows += _profiled(name, train, steps, wall, device)
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def epochs(
    network: str,
    batch: int,
    steps: int,
    device: str,
    folder: Path,
    frozen: str | None = None,
    *,
    speed: str = "exact",
    graphs: Graphs | None = None,
    plain: bool = False,
) -> Callable[[], None]:
    """A call that trains one epoch of so many steps, as the package runs it. It raises RuntimeError if the steps of
    `graphs` were given up. plain: without templates."""
    spec = spec_of(network, 400, batch, **({"shape": "none"} if plain else {}))
    spec = spec.model_copy(update={"compute": Compute(speed=speed)})
    make_store(folder, batch * steps, spec.model.table.image_size)
    store = stored(folder)
    net, terms, optimizer = initialized(spec, torch.device(device), frozen)
    inputs = InputPipeline(store, net, spec.model.table.input_scale, torch.device(device))
    if frozen:
        inputs.use_cache(folder, distinct_items(store.train_items))
    bfloat16 = has_bfloat16(torch.device(device))
    graph = StepGraph(net, optimizer, terms, graphs) if graphs else None

    def train() -> None:
        with kernels(spec):
            train_epoch(net, inputs, optimizer, terms, Runtime(device), spec, 1, bfloat16=bfloat16, graph=graph)
        if graph and graph.given_up:
            raise RuntimeError(graph.given_up)

    return train


def timed(call: Callable[[], object], device: str) -> float:
    """Wall seconds of a call, until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _profiled(name: str, train: Callable[[], None], steps: int, wall: float, device: str) -> list[dict[str, Any]]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        timed(train, device)
    averages = profiler.key_averages()
    _keep_tables(name, profiler, averages, device)
    # An annotation, such as that of a step of the optimizer, spans kernels that are listed by themselves.
    annotations = {event.name for event in profiler.events() if getattr(event, "is_user_annotation", False)}
    on_gpu = [entry for entry in averages if entry.device_type == DeviceType.CUDA and entry.key not in annotations]
    kernels = [entry for entry in on_gpu if not entry.key.startswith(("Memcpy", "Memset"))]
    copies = [entry for entry in on_gpu if entry.key.startswith("Memcpy")]
    on_cpu = [entry for entry in averages if entry.device_type == DeviceType.CPU]
    calls = {
        what: sum(entry.count for entry in on_cpu if entry.key.startswith(prefixes)) / steps
        for what, prefixes in {
            "launches": ("cudaLaunchKernel", "cuLaunchKernel"),
            "synchronisations": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
            "copies": ("cudaMemcpy",),
        }.items()
    }
    busy = sum(entry.self_device_time_total for entry in on_gpu) / steps / 1e3
    cpu = sum(entry.self_cpu_time_total for entry in on_cpu) / steps / 1e3
    rows = [
        number(f"{name}: wall of a step, not profiled", f"{wall * 1e3:.2f} ms"),
        number(f"{name}: GPU busy (sum of its work)", f"{busy:.2f} ms"),
        number(f"{name}: CPU time (profiled, all threads)", f"{cpu:.2f} ms"),
        number(f"{name}: kernels / launches", f"{sum(e.count for e in kernels) / steps:.0f} / {calls['launches']:.0f}"),
        number(f"{name}: waits for the GPU (an epoch has one)", f"{calls['synchronisations']:.1f}"),
        number(f"{name}: copies", f"{calls['copies']:.1f}"),
    ]
    rows += [number(f"{name}: {entry.key[:30]}", f"{entry.count / steps:.1f} a step") for entry in copies]
    for entry in sorted(kernels, key=lambda entry: -entry.self_device_time_total)[:HEAVIEST]:
        rows.append(_heavy(f"GPU {_short(entry.key)}", entry.self_device_time_total, entry.count, steps))
    for entry in sorted(on_cpu, key=lambda entry: -entry.self_cpu_time_total)[:HEAVIEST]:
        rows.append(_heavy(f"CPU {_short(entry.key)}", entry.self_cpu_time_total, entry.count, steps))
    return rows


def _heavy(what: str, microseconds: float, count: int, steps: int) -> dict[str, Any]:
    return number(f"  {what[:48]}", f"{microseconds / steps / 1e3:.3f} ms, {count / steps:.0f} x")


def _short(kernel: str) -> str:
    """The name of a kernel without what most of them begin with."""
    for prefix in ("void ", "at::native::", "(anonymous namespace)::", "at_cuda_detail::"):
        kernel = kernel.replace(prefix, "")
    return kernel


def _keep_tables(name: str, profiler: torch.profiler.profile, averages: Any, device: str) -> None:
    if not os.environ.get(OUT):
        return
    folder, stem = Path(os.environ[OUT]), f"profile_{name.replace(' ', '_')}"
    folder.mkdir(parents=True, exist_ok=True)
    orders = ["self_cpu_time_total", *(["self_device_time_total"] if device == "cuda" else [])]
    tables = [averages.table(sort_by=order, row_limit=200, max_name_column_width=100) for order in reversed(orders)]
    (folder / f"{stem}.txt").write_text("\n\n".join(tables))
    profiler.export_chrome_trace(str(folder / f"{stem}.json.gz"))


def fast(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """`compute.speed: fast` against `exact`: the losses of a tiny run, and the time of a step in an epoch, with a graph
    and without it. On a CPU a graph repeats operators of Python: its time says nothing."""
    rows = _fast_losses(device)
    cases = {"compact": ("compact", 8, None, 6)} if small else FAST_CASES
    for name, (network, batch, frozen, steps) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            calls = {
                what: epochs(
                    network, batch, steps, device, Path(folder), frozen, speed=speed, graphs=graphs, plain=plain
                )
                for what, speed, graphs, plain in (
                    ("exact", "exact", None, False),
                    ("fast without a graph", "fast", None, False),
                    ("fast", "fast", graphs_of(device), False),
                    ("fast, plain", "fast", graphs_of(device), True),
                )
            }
            times = alternate(calls, 1 if small else 5, torch.device(device), warm_up=1)
        medians = {what: statistics.median(values) / steps for what, values in times.items()}
        for what, median in medians.items():
            rows.append(number(f"{name}, batch {batch}: step, {what}", f"{median * 1e3:.3f} ms"))
            if what != "exact":
                rows.append(number(f"{name}, batch {batch}: exact / {what}", f"{medians['exact'] / median:.3f}"))
        rows.append(goal(f"{name}: fast / fast, plain", medians["fast"] / medians["fast, plain"], 1.03, at_most=True))
        del calls
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def graphs_of(device: str) -> Graphs:
    """Graphs of the device; of a CPU the stand-in."""
    return CudaGraphs(torch.device(device, 0)) if device == "cuda" else RecordedGraphs()


def _fast_losses(device: str) -> list[dict[str, Any]]:
    train = {"precision": "float32", "learning_rate": 0.01, "final_learning_rate": None}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), Path(folder))
        exact, fast = (
            bench.run(tiny(train=train, compute={"speed": speed}), speed, Runtime(device)).metrics
            for speed in ("exact", "fast")
        )
    names = ("train_loss", "filter_loss", "val_loss", "instability")
    return [within(f"fast: {name}", abs(fast[name] / exact[name] - 1), FAST_BOUND) for name in names]


def grid(device: str, small: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """The paper's grid (4 networks, 6 animals, 5 templates), one run after the other, from measured images per second
    of training and evaluation: whole networks, L1 template and filter loss."""
    networks = {"compact": 8} if small else GRID_BATCHES
    for speed in ("exact", "fast"):
        total = 0.0
        for network, batch in networks.items():
            trained, evaluated = _rates(network, batch, 1 if small else 10, device, speed)
            taken = ANIMALS * GRID_TEMPLATES * GRID_EPOCHS * (TRAINED / trained + EVALUATED / evaluated) / 60
            total += taken
            rates = f"{trained:.0f}, {evaluated:.0f} images/s"
            yield number(f"{speed}, {network}, batch {batch}: trained, evaluated", rates)
            yield number(f"{speed}, {network}: 30 runs of {GRID_EPOCHS} epochs", f"{taken:.1f} min")
        yield goal(f"the paper's grid, {speed}, one run at a time", total, 60, unit=" min", at_most=True)


def _rates(network: str, batch: int, steps: int, device: str, speed: str) -> tuple[float, float]:
    """Images per second of training, and of evaluation."""
    graphs = graphs_of(device) if speed == "fast" else None
    with tempfile.TemporaryDirectory() as folder:
        train = epochs(network, batch, steps, device, Path(folder), speed=speed, graphs=graphs)
        train()
        trained = batch * steps / timed(train, device)
        spec = spec_of(network, 400, batch).model_copy(update={"compute": Compute(speed=speed)})
        store = stored(Path(folder))
        net, _, _ = initialized(spec, torch.device(device))
        inputs = InputPipeline(store, net, spec.model.table.input_scale, torch.device(device), fast=speed == "fast")
        plan = EvaluationPlan.of(store, "all")
        measure = partial(evaluate, inputs, plan, spec, Runtime(device), epoch=1)
        with kernels(spec):
            measure()
            evaluated = len(plan.items) / timed(measure, device)
    if device == "cuda":
        torch.cuda.empty_cache()
    return trained, evaluated
