"""What the benchmarks share: timing in alternating rounds, common options, networks and searches to time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.models.build import build
from ipcnn_ray.models.layer_loss import FilterTerm
from ipcnn_ray.models.layers import SampleDropout
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.tracking.tracker import Tracker
from ipcnn_ray.train.filter_term import filter_terms
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.speed import kernels, laid_out
from ipcnn_ray.train.train_epoch import step_loss
from ipcnn_ray.utils.paths import Paths


def arguments(doc: str, *, rounds: int, threads: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with --device, --threads and --rounds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=threads, help="default: torch's own choice")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def device_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """Check the common options, set the number of threads, and return the device."""
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return torch.device(options.device)


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of a call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round.

    Every round runs all calls, one after the other, so that a slow minute of a shared machine hits all of them. The
    first `warm_up` rounds do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + warm_up):
        for name, call in calls.items():
            taken = seconds(call, device)
            if number >= warm_up:
                times[name].append(taken)
    return times


def spec_of(network: str, images: int, batch: int, **template: Any) -> ExperimentSpec:
    """Return the spec of an epoch on drawn cows and as many negatives. template: default the paper's L1 template."""
    return ExperimentSpec.model_validate(
        {
            "name": "speed",
            "data": {"kind": "drawn_animals", "objects": max(10, images // 2), "negatives": max(10, images // 2)},
            "model": {"network": network},
            "template": template or {"shape": "gradient", "norm": "l1", "beta": 2},
            "train": {"epochs": 1, "batch_size": batch, "learning_rate": 1e-6},
        }
    )


def initialized(
    spec: ExperimentSpec, device: torch.device, freeze_through: str | None = None
) -> tuple[InterpretableNet, dict[str, FilterTerm], torch.optim.Optimizer]:
    """Return the network of a spec on the device, its filter terms, and SGD."""
    net = laid_out(build(spec.model, spec.template, 0, 1, spec.loss.filter).to(device).train(), spec)
    if freeze_through:
        net.freeze_through(freeze_through)
    terms = filter_terms(spec, spec.template, net, torch.tensor([0.5]))
    fused, rate = True if spec.compute.speed == "fast" else None, spec.train.learning_rate
    return net, terms, torch.optim.SGD(net.parameter_groups(5e-4), lr=rate, momentum=0.9, fused=fused)


def training_step(
    spec: ExperimentSpec,
    device: torch.device,
    *,
    bfloat16: bool = False,
    dropout: bool = True,
    freeze_through: str | None = None,
) -> Callable[[], None]:
    """Return a training step as in `train_epoch`, on one batch that stays on the device; behind frozen layers, one of
    their outputs."""
    batch = spec.train.batch_size
    net, terms, optimizer = initialized(spec, device, freeze_through)
    for module in net.modules():
        if isinstance(module, SampleDropout) and not dropout:
            module.p = 0.0
    runtime = Runtime(device)
    x = torch.randn(batch, *net.feature_shape(), generator=torch.Generator().manual_seed(0)).to(device)
    label_N = (torch.arange(batch, device=device) % 2) - 1

    def run() -> None:
        with kernels(spec):
            net.set_step(0, 1, 0, 0, batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                output = net(x, from_features=True, full=True)
            loss = step_loss(output, label_N, terms, 1, batch, runtime).total
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            for term in terms.values():
                term.after_backward(runtime)
            optimizer.step()

    return run


def nearly_empty(search: Mapping[str, Any], **compute: Any) -> ExperimentSpec:
    """Return a search with a plain run beside it; each run trains `compact` on ten drawn objects for one epoch."""
    return ExperimentSpec.model_validate(
        {
            "name": "nearly_empty",
            "data": {"kind": "drawn_animals", "objects": 10, "negatives": 10},
            "model": {"network": "compact"},
            "template": {"shape": "gradient"},
            "train": {"epochs": 1, "batch_size": 8},
            "compute": compute,
            "search": {"runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}], **search},
        }
    )


def prepared(spec: ExperimentSpec, home: str | Path) -> tuple[Paths, Tracker]:
    """Prepare the data, and a record in SQLite, in a folder."""
    from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker  # the GPU checks do not need MLflow

    paths = Paths.from_environment({"IPCNN_HOME": str(home)})
    prepare(spec.data, spec.model.table.image_size, paths)
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    tracker.prepare(spec.name)
    return paths, tracker
