"""Training on the device: NCCL with one rank, resuming bit for bit, replayed steps, and Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from fakes.recorded_graph import RecordedGraphs
from fakes.training import Bench, tiny
from input_pipeline import Pageable, make_store, parts_of, stored
from rows import check
from torch import distributed, nn

from ipcnn_ray.models.build import build
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.spec.training import Compute
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.runtime import ProcessGroup, Runtime, StopRun
from ipcnn_ray.train.speed import kernels
from ipcnn_ray.train.step_graph import CudaGraphs, StepGraph
from ipcnn_ray.train.train_epoch import train_epoch
from ipcnn_ray.train.trainer import Trainer

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "exact, float32": {"train": {"precision": "float32"}},
    "exact, auto precision, dropout": {},
    "exact, learned beta": {"loss": {"filter": {"learn_beta": True}}},
    "zconst, AdamW": {"loss": {"filter": {"form": "zconst"}}, "train": {"optimizer": "adamw", "learning_rate": 1e-3}},
    "single": {"loss": {"filter": {"form": "single"}}},
    "released": {"template": {"shape": "released"}},
}
SEVERAL = {"data": {"category": ["cow", "dog"]}}
MORE: dict[str, dict[str, dict[str, Any]]] = {
    "single, two categories": {**SEVERAL, **CASES["single"]},
    "released, two categories": {**SEVERAL, **CASES["released"]},
    "diversity": {"loss": {"diversity": {"form": "overlap"}}},
    "diversity, largest": {"loss": {"diversity": {"form": "largest"}}},
    "paper's schedule": {"loss": {"filter": {"schedule": "paper"}}},
    "augmented": {"data": {"augment": {"mirror": True, "crop": [0.6, 1.0], "color": 0.3}}},
}


class StopAfterOne(Runtime):
    """A worker that is asked to stop after the first epoch, to be resumed."""

    def report(self, metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] == 1:
            raise StopRun("asked to", resumable=True)


def nccl(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """One rank of NCCL (gloo on a CPU): collectives, DDP, and a run that equals the one without a process group."""
    backend = "nccl" if device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), Path(folder))
        bench.run(tiny(), "plain", Runtime(device))
        distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            group = ProcessGroup(torch.device(device))
            x = torch.arange(6.0, device=device).view(2, 3)
            rows = [check(f"{backend} gather", "equal", torch.equal(group.gather(x), x[None]))]
            rows.append(_ddp(device, backend))
            bench.run(tiny(), "group", group)
            same = bench.weights("group") == bench.weights("plain")
            rows.append(check(f"run with {backend}, final weights", "same bytes", same))
        finally:
            distributed.destroy_process_group()
    return rows


def _ddp(device: str, backend: str) -> dict[str, Any]:
    """Gradients of a network under DistributedDataParallel are those without it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)).to(device)
    x = torch.randn(4, 3, 8, 8, device=device)
    gradients = []
    for module in (net, nn.parallel.DistributedDataParallel(net, device_ids=[0] if device == "cuda" else None)):
        net.zero_grad(set_to_none=True)
        module(x).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    return check(f"DDP over {backend}, gradients", "equal", all(map(torch.equal, *gradients)))


def resume(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Runs that are stopped after an epoch and resumed have the weights of the runs that were not."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), Path(folder))
        for case, sections in list(CASES.items())[: 2 if small else None]:
            for part, runtime in (("whole", Runtime), ("cut", StopAfterOne), ("cut", Runtime)):
                bench.run(tiny(**sections), f"{case} {part}", runtime(device))
            same = bench.weights(f"{case} whole") == bench.weights(f"{case} cut")
            rows.append(check(f"resumed, {case}", "same bytes", same))
    return [*rows, _batches(device, small)]


def _batches(device: str, small: bool) -> dict[str, Any]:
    """Batches that are selected on the device, copied from pinned memory, and copied while everything waits, each
    while the device is busy with the one before, hold the same numbers."""
    count, batch, where = (24, 8, torch.device(device)) if small else (1024, 64, torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), count)
        store = stored(Path(folder))
        net = build(Model(network="alexnet"), NoTemplate(shape="none"), 0).to(where)
        arguments = store, net, 1.0, where
        ways = InputPipeline(*arguments, room=1 << 40), InputPipeline(*arguments, room=0), Pageable(*arguments)
        busy = torch.ones(256, 256, device=where) if small else torch.ones(8192, 8192, device=where)
        sums = []
        for inputs in ways:
            with inputs.loader(parts_of(store, batch, 1)) as loader:
                found = []
                for part in loader:
                    rows_NCHW = inputs.net_input(part).double()
                    cell_CHW = torch.arange(rows_NCHW[0].numel(), device=where).view(rows_NCHW[0].shape)
                    weighted_N = (rows_NCHW * cell_CHW).sum((1, 2, 3))
                    found.append(torch.stack([weighted_N, part.labels.double(), part.mirrored.double()]))
                    busy @ busy
            sums.append(torch.cat(found, 1).cpu())
    same = all(torch.equal(sums[0], other) for other in sums[1:]) and sums[0].shape == (3, count)
    return check("batches kept, from pinned memory, pageable", "same numbers", same)


def graphs(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Two epochs whose steps a graph replays have the numbers of those without a graph, for every form of the losses,
    with exact kernels. A CPU selects images of a category, in numbers that a graph cannot hold: it has fewer cases."""
    cases = CASES if device == "cpu" else CASES | MORE
    rows = []
    for case, sections in list(cases.items())[: 2 if small else None]:
        train = {"batch_size": 4, "learning_rate": 0.01, "final_learning_rate": 1e-3, **sections.get("train", {})}
        spec = tiny(**{**sections, "train": train, "compute": {"speed": "fast"}})  # AdamW is fused, its state there
        exact = spec.model_copy(update={"compute": Compute()})
        found = []
        for graphs in (None, CudaGraphs(torch.device(device, 0)) if device == "cuda" else RecordedGraphs()):
            with tempfile.TemporaryDirectory() as folder, kernels(exact):
                trainer = Trainer(Bench(Path(folder), Path(folder)).request(spec), Runtime(device))
                graph = StepGraph(trainer.net, trainer.optimizer, trainer.filter_terms, graphs) if graphs else None
                arguments = trainer.net, trainer.inputs, trainer.optimizer, trainer.filter_terms, Runtime(device), spec
                more: dict[str, Any] = {"diversity": trainer.diversity, "bfloat16": trainer.bfloat16, "graph": graph}
                losses = [train_epoch(*arguments, epoch, **more)["train_loss"] for epoch in (1, 2)]
            found.append((losses, [tensor.clone() for tensor in trainer.net.state_dict().values()]))
        assert graph is not None
        same = found[0][0] == found[1][0] and all(map(torch.equal, found[0][1], found[1][1]))
        said = graph.given_up or ("same bytes" if same else f"losses {found[0][0]}, {found[1][0]}")
        rows.append(check(f"{graph.replayed} replayed steps: {case}", said, same and not graph.given_up))
    return rows


def ray(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """A submission of two runs at the same time, which share a GPU by default, through Ray and MLflow."""
    spec = {
        "name": "gpu_ray",
        "data": {"kind": "drawn_animals", "objects": 20, "negatives": 20},
        "model": {"network": "compact"},
        "template": {"shape": "gradient"},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "search": {
            "kind": "named",
            "runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}, {"name": "l1"}],
            "objective": {"control": "plain"},
        },
    }
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "spec.yaml"
        file.write_text(yaml.safe_dump(spec))
        command = [sys.executable, "-m", "ipcnn_ray.cli.app", "submit", str(file), "--json"]
        env = {**os.environ, "IPCNN_HOME": name}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds, check=False)
        print(done.stderr)
        if done.returncode:
            print(done.stdout)
            return [check("ipcnn submit", f"exit code {done.returncode}", False)]
        runs = json.loads(done.stdout)["runs"]
        used = "gpu_hours" if device == "cuda" else "cpu_hours"
        succeeded = all(run["state"] == "succeeded" for run in runs)
        shared = next((line for line in done.stderr.splitlines() if line.startswith("GPUs: ")), "GPUs: not shared")
        here = torch.cuda.device_count() if device == "cuda" else 0
        return [
            check("ipcnn submit, two runs at a time", f"{len(runs)} runs", succeeded),
            check(f"{used} are recorded", "all", all(used in run["metrics"] for run in runs)),
            check("runs on each GPU", shared[6:30], here != 1 or shared.startswith("GPUs: 2 runs on each")),
        ]
