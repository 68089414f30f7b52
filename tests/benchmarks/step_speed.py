"""How much each way to a faster training step gives on a device: memory that is kept, a fused optimizer, channels_last,
bfloat16.

    python tests/benchmarks/step_speed.py [--network vgg16] [--freeze-through conv5_2] [--device cuda] [--threads 1]
        [--images 32] [--rounds 9] [--emulated]

A step is that of training_step_cost.py, with the L1 template and the filter loss, on one batch that stays in memory;
behind frozen layers, on a batch of their outputs. `exact` and `fast` are `compute.speed` with float32. bfloat16 is
left out where the processor emulates it, but for --emulated. Medians over alternating rounds, and the time relative to
`exact`. All steps keep freed memory, as training does; last, eight exact steps that begin with it, and eight that
return it to the system.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from bench_tools import alternate, arguments, device_of, initialized, machine, spec_of, training_step

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.training import Compute
from ipcnn_ray.train.speed import has_bfloat16
from ipcnn_ray.utils.memory import keep_freed_memory

REPEATS = 8
"""Steps of each round in which memory is kept or returned."""


def optimizer_step(
    spec: ExperimentSpec, device: torch.device, freeze_through: str | None, fused: bool
) -> Callable[[], object]:
    """Return a step of SGD alone, on gradients that stay."""
    net, _, _ = initialized(spec, device, freeze_through)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    groups = net.parameter_groups(5e-4)
    return torch.optim.SGD(groups, lr=1e-6, momentum=0.9, fused=fused or None).step


def repeated(
    step: Callable[[], object], context: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Callable[[], None]:
    def run() -> None:
        with context():
            for _ in range(REPEATS):
                step()

    return run


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--network", default="alexnet")
    parser.add_argument("--freeze-through", help="the layers up to this one are frozen, their outputs cached")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--emulated", action="store_true", help="bfloat16 even where the processor has none")
    args = parser.parse_args()
    device = device_of(parser, args)
    exact = spec_of(args.network, 400, args.images)
    specs = {"exact": exact, "fast": exact.model_copy(update={"compute": Compute(speed="fast")})}
    frozen = args.freeze_through
    steps = {name: training_step(spec, device, freeze_through=frozen) for name, spec in specs.items()}
    if has_bfloat16(device) or args.emulated:
        for name, spec in specs.items():
            steps[f"{name}, bfloat16"] = training_step(spec, device, bfloat16=True, freeze_through=frozen)
    for name, fused in (("optimizer alone", False), ("fused optimizer alone", True)):
        steps[name] = optimizer_step(exact, device, frozen, fused)
    with keep_freed_memory():
        times = alternate(steps, args.rounds, device, warm_up=2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{args.network}{f' behind {frozen}' if frozen else ''}, batch {args.images}, {machine(device)},")
    print(f"training steps, median of {args.rounds} alternating rounds")
    for label, median in medians.items():
        print(f"  {label:<22}{median * 1e3:>10.1f} ms{median / medians['exact']:>8.3f} x")
    ways = {"memory kept": repeated(steps["exact"], keep_freed_memory), "memory returned": repeated(steps["exact"])}
    times = alternate(ways, args.rounds, device)
    kept, returned = (statistics.median(values) / REPEATS for values in times.values())
    print(f"  memory kept {kept * 1e3:.1f} ms, returned {returned * 1e3:.1f} ms a step, {returned / kept:.3f} x")


if __name__ == "__main__":
    main()
