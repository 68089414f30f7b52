"""What templates and filter losses add to a whole training step, relative to the plain network.

    python tests/benchmarks/training_step_cost.py [--network alexnet] [--device cuda] [--threads 1] [--rounds 9]

A step: forward, losses, backward, and SGD with momentum, on one batch that stays in memory. Medians over
alternating rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from bench_tools import alternate, arguments, device_of, initialized, machine, spec_of

from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.train_epoch import step_loss

TEMPLATES = {
    "plain": {"shape": "none"},
    "exact": {"shape": "gradient", "norm": "l1", "beta": 2},
    "released": {"shape": "released"},
}


def step(network: str, template: dict[str, Any], images: int, device: torch.device) -> Callable[[], None]:
    """One training step of a network, to be called again and again."""
    spec = spec_of(network, 400, images, **template)
    net, terms, optimizer = initialized(spec, device)
    runtime, size = Runtime(device), spec.model.table.image_size
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    label_N = (torch.arange(images, device=device) % 2) - 1

    def run() -> None:
        net.set_step(0, 1, 0, 0, images)
        output = net(x, full=True)
        loss = step_loss(output, label_N, terms, 1, images, runtime).total
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for term in terms.values():
            term.after_backward(runtime)
        optimizer.step()

    return run


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--network", default="alexnet")
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args()
    device = device_of(parser, args)
    steps = {name: step(args.network, template, args.images, device) for name, template in TEMPLATES.items()}
    times = alternate(steps, args.rounds, device, warm_up=2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{args.network}, batch {args.images}, float32, {machine(device)},")
    print(f"whole training steps, median of {args.rounds} alternating rounds")
    for label, median in medians.items():
        print(f"  {label:<10}{median * 1e3:>10.1f} ms{median / medians['plain']:>8.3f} x")


if __name__ == "__main__":
    main()
