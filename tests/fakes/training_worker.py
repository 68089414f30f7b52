"""What a spawned worker does; imported by name in its own process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from fakes.training import Bench, timeless, tiny
from ipcnn_ray.data.batches import Batch
from ipcnn_ray.train.diversity_term import diversity_term
from ipcnn_ray.train.filter_term import filter_terms
from ipcnn_ray.train.runtime import ProcessGroup, Runtime, StopRun
from ipcnn_ray.train.train_epoch import step_loss

SPEC = tiny(
    train={
        "epochs": 2,
        "batch_size": 12,
        "learning_rate": 0.005,
        "final_learning_rate": 0.002,
        "precision": "float32",
    },
    loss={"filter": {"weight": 1.0}, "diversity": {"weight": 2.0}},
    template={"narrowing": {"scale": 2.0, "epochs": 2}},
    model={"new_weights": "lsuv"},
)


class Worker(ProcessGroup):
    """A worker that may be told to raise in `report`, once."""

    raises: Mapping[int, BaseException] = {}

    def report(self, metrics: Mapping[str, float]) -> None:
        error = self.raises.get(int(metrics["epoch"]))
        if error is not None:
            self.raises = {}
            raise error


FORMS: dict[str, dict[str, Any]] = {
    "exact": {"loss": {"filter": {"weight": 10.0, "schedule": "paper"}}},
    "zconst": {"loss": {"filter": {"form": "zconst", "weight": 10.0}}},
    "single": {"loss": {"filter": {"form": "single", "weight": 10.0}}},
    "learned": {"loss": {"filter": {"weight": 10.0, "learn_beta": True}}},
    "released": {"template": {"shape": "released"}, "loss": {"filter": {"weight": 1e5}}},
    "centroid": {"loss": {"filter": {"form": "released", "weight": 1e5}}},
    "exact, centroid": {"template": {"mask": "centroid"}, "loss": {"filter": {"weight": 10.0}}},
    "released, peak": {"template": {"mask": "peak"}, "loss": {"filter": {"form": "released", "weight": 1e5}}},
    "released, no mask": {"template": {"mask": "none"}, "loss": {"filter": {"form": "released", "weight": 1e5}}},
    "overlap": {"loss": {"filter": None, "diversity": {"weight": 300.0}}},
    "largest": {
        "template": {"shape": "none"},
        "model": {"appended_mask": "pooled"},
        "loss": {"diversity": {"weight": 300.0, "form": "largest", "margin": 0.001}},
    },
}
"""Every kind of filter loss, heavy enough to show in the gradients."""


def one_step(bench: Bench, runtime: Runtime, form: str) -> dict[str, Any]:
    """Loss, filter loss, gradients averaged by DDP, and those set by hand, of one step on eight training items."""
    spec = tiny(**FORMS[form])
    inputs = bench.inputs(spec)
    model, net = runtime.wrap(inputs.net), inputs.net
    terms = filter_terms(spec, spec.template, net, torch.tensor([0.75]))
    local = 8 // runtime.world_size
    items = inputs.store.train_items[::3][runtime.rank * local : (runtime.rank + 1) * local]
    net.train().set_step(0, 1, 0, runtime.rank * local, 8)
    with inputs.loader([items]) as loader:
        batch: Batch = next(loader)
        output = model(inputs.net_input(batch), from_features=True, full=True)
        losses = step_loss(output, batch.labels, terms, 1, 8, runtime, diversity=diversity_term(spec.loss))
        losses.total.backward()
    for term in terms.values():
        term.after_backward(runtime)
    return {
        "loss": runtime.gather(losses.classification).sum() / 8,
        "information": losses.filter,
        "diversity": losses.diversity,
        "gradients": {name: p.grad.clone() for name, p in net.named_parameters()},
    }


def trained(bench: Bench, runtime: Runtime, name: str) -> dict[str, Any]:
    """Return what the record and the caller get of a run of two epochs."""
    result = bench.run(SPEC, name, runtime)
    return {
        "history": bench.record.history,
        "result": timeless([result.metrics])[0],
        "ended": (result.state, result.cause, result.metrics["epoch"]),
        "system": {epoch: sorted(row) for epoch, row in bench.record.system.items()},
    }


def alone(bench: Bench) -> dict[str, Any]:
    """Take one step, and train a run, with one worker in this process."""
    runtime = Runtime()
    return {"step": {form: one_step(bench, runtime, form) for form in FORMS}, "whole": trained(bench, runtime, "alone")}


def worker(rank: int, folder: str, cache: str) -> None:
    """The same with two and with four workers; then runs that are cut or stopped after an epoch, and resumed."""
    torch.set_num_threads(1)
    bench, found = Bench(Path(folder), Path(cache)), {}
    for world in (2, 4):
        if rank >= world:
            continue
        distributed.init_process_group("gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world)
        runtime = Worker(torch.device("cpu"))
        found[world] = {"whole": trained(bench, runtime, f"whole-{world}")}
        found[world]["step"] = {form: one_step(bench, runtime, form) for form in FORMS}
        if world == 2:
            runtime.raises = {1: StopRun("asked", resumable=True)} if rank == 1 else {}
            found[world]["stopped"] = trained(bench, runtime, "stopped-2")["ended"]
            trained(bench, runtime, "stopped-2")
        else:
            runtime.raises = {1: KeyError("cut")}
            try:
                trained(bench, runtime, "cut-4")
            except KeyError:
                trained(bench, runtime, "cut-4")
        distributed.destroy_process_group()
    torch.save(found, f"{folder}/rank{rank}.pt")
