"""Optimizers without torch's compiler: the bytes of torch's own, also of a resumed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ipcnn_ray.train.optimizers import make_optimizer

KINDS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    "fused": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
}


def steps(optimizer: torch.optim.Optimizer, weights: nn.Linear, first: int, count: int) -> None:
    for step in range(first, first + count):
        rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(weights(rows).square().sum())
        optimizer.step()


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def groups_of(weights: nn.Linear) -> list[dict[str, object]]:
    return [{"params": [weights.weight], "weight_decay": 0.1}, {"params": [weights.bias], "lr": 0.05}]


@pytest.mark.parametrize("name", KINDS)
def test_it_computes_the_bytes_of_torch(name):
    (kind, settings), found = KINDS[name], list[list[Tensor]]()
    for make in (kind, lambda groups, **settings: make_optimizer(kind, groups, **settings)):
        weights = layer()
        optimizer = make(groups_of(weights), **settings)
        steps(optimizer, weights, 0, 3)
        resumed = make(groups_of(weights), **settings)
        resumed.load_state_dict(optimizer.state_dict())
        steps(resumed, weights, 3, 2)
        found.append([weights.weight, weights.bias])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], layer().weight)


UNUSED = """
import sys
from pathlib import Path
from fakes.training import Bench, tiny

for optimizer in ("sgd", "adamw"):
    Bench(Path(sys.argv[1]), Path(sys.argv[1])).run(tiny(train={"epochs": 1, "optimizer": optimizer}), optimizer)
print([name for name in ("torch._dynamo", "sympy", "torchvision") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_run_does_not_import_what_takes_seconds(tmp_path):
    tests = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))}
    command = [sys.executable, "-c", UNUSED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
