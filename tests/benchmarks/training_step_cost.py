"""What templates and filter losses add to a whole training step, relative to the plain network.

    python tests/benchmarks/training_step_cost.py [--network alexnet] [--device cuda] [--threads 1] [--rounds 9]

A step: forward, losses, backward, and SGD with momentum, on one batch that stays in memory. Medians over
alternating rounds.
"""

from __future__ import annotations

import statistics

from bench_tools import alternate, arguments, device_of, machine, spec_of, training_step

TEMPLATES = {
    "plain": {"shape": "none"},
    "exact": {"shape": "gradient", "norm": "l1", "beta": 2},
    "released": {"shape": "released"},
}


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--network", default="alexnet")
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args()
    device = device_of(parser, args)
    specs = {name: spec_of(args.network, 400, args.images, **template) for name, template in TEMPLATES.items()}
    steps = {name: training_step(spec, device) for name, spec in specs.items()}
    times = alternate(steps, args.rounds, device, warm_up=2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{args.network}, batch {args.images}, float32, {machine(device)},")
    print(f"whole training steps, median of {args.rounds} alternating rounds")
    for label, median in medians.items():
        print(f"  {label:<10}{median * 1e3:>10.1f} ms{median / medians['plain']:>8.3f} x")


if __name__ == "__main__":
    main()
