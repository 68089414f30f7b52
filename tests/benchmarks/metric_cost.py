"""What the metrics that every run records cost, of one layer, beside location instability.

    python tests/benchmarks/metric_cost.py [--threads 1] [--rounds 5] [--filters 512] [--objects 2000] [--side 14]

Medians over alternating rounds, on random peaks of which a fifth of the landmarks is not shown. The metrics that share
landmark tracking are one candidate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from bench_tools import alternate, arguments, device_of, machine

from ipcnn_ray.core.metrics.filter_metric import FILTER_INPUTS, LayerContext
from ipcnn_ray.core.metrics.landmark_tracking import tracking_of_categories
from ipcnn_ray.core.receptive_field import Field, peak_positions
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS


def candidates(filters: int, objects: int, side: int, landmarks: int) -> dict[str, Callable[[], object]]:
    """Name -> one computation."""
    generator, size = torch.Generator().manual_seed(0), 16 * side
    layer = LayerContext(size, side, Field(16, 195, 7.5))
    landmarks_NK2 = torch.rand(objects, landmarks, 2, generator=generator) * size
    landmarks_NK2[torch.rand(objects, landmarks, generator=generator) < 0.2] = torch.nan
    inputs = {
        "peaks_NC2": peak_positions(torch.randint(side**2, (objects, filters), generator=generator), layer.field, side),
        "activation_NC": torch.randn(objects, filters, generator=generator),
        "landmarks_NK2": landmarks_NK2,
        "label_N": torch.zeros(objects, dtype=torch.int64),
        "in_training_N": torch.arange(objects) % 4 > 0,
    }

    def tracking() -> object:
        given = [inputs[name] for name in ("peaks_NC2", "activation_NC", "landmarks_NK2", "label_N")]
        category_C = torch.zeros(filters, dtype=torch.int64)
        return tracking_of_categories(*given, category_C, top_images=100, few_images=30)

    calls: dict[str, Callable[[], object]] = {}
    for name in EVERY_RUN:
        metric = METRICS.load(name)(layer)
        if not FILTER_INPUTS & set(metric.compute_inputs()):
            given = {key: inputs[key] for key in metric.compute_inputs()}
            calls[name] = lambda metric=metric, given=given: metric.compute(**given)
    return calls | {"landmark tracking, with shuffles": tracking}


def main() -> None:
    parser = arguments(__doc__, rounds=5, threads=1)
    parser.add_argument("--filters", type=int, default=512)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--side", type=int, default=14, help="side of the map, cells")
    parser.add_argument("--landmarks", type=int, default=3)
    args = parser.parse_args()
    device = device_of(parser, args)
    times = alternate(candidates(args.filters, args.objects, args.side, args.landmarks), args.rounds, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    unit = next(iter(medians.values()))
    print(f"{args.objects} objects, {args.filters} filters, {args.side} x {args.side} cells, {machine(device)},")
    print(f"median of {args.rounds} alternating rounds, relative to location instability")
    for label, median in medians.items():
        print(f"  {label:<34}{median * 1e3:>10.1f} ms{median / unit:>8.2f} x")


if __name__ == "__main__":
    main()
