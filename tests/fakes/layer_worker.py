"""A network of one's own with an interpretable layer: a step and its metrics, alone and in two processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from ipcnn_ray.core.metrics import streaming
from ipcnn_ray.core.metrics.filter_metric import MetricResult
from ipcnn_ray.core.metrics.streaming import FilterMetrics, StreamingMetric
from ipcnn_ray.models.interpretable_layer import InterpretableLayer

L2: dict[str, Any] = {"shape": "gradient", "norm": "l2", "beta": 3}
SEVERAL = {"filters": 5, "categories": 2}
STEPS: dict[str, tuple[dict[str, Any], float]] = {
    "exact": ({}, 1000.0),
    "zconst": ({"form": "zconst"}, 1000.0),
    "single": ({"form": "single", **SEVERAL}, 1000.0),
    "learned": ({"learn_beta": True, "filters": 5}, 1000.0),
    "released": ({"form": "released", **SEVERAL, "density": [0.5, 0.25]}, 1e5),
    "released, peak": ({"form": "released", "mask": "peak", **SEVERAL}, 1e5),
}
"""Arguments of a layer, and a weight that is heavy enough to show in the gradients."""


class Net(nn.Module):
    """A convolution, the layer, and a linear head."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 2)
        self.layer = InterpretableLayer(n=6, **L2, **arguments)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(torch.relu(self.conv(images))).mean((2, 3)))


def steps(rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Two steps of SGD for each layer of STEPS on eight images: gradients, loss and state of the second."""
    generator = torch.Generator().manual_seed(1)
    images, label_N = torch.randn(8, 3, 6, 6, generator=generator), torch.tensor([0, 1, -1, 0, 1, 1, 0, -1])
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    results = {}
    for name, (arguments, weight) in STEPS.items():
        net = Net(**arguments)
        model = nn.parallel.DistributedDataParallel(net) if world > 1 else net
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            logits_NL = model(images[mine])
            filter_loss = net.layer.filter_loss(label_N[mine])
            target_N = label_N[mine].clamp(min=0)
            (nn.functional.cross_entropy(logits_NL, target_N) + weight * filter_loss).backward()
            gradients = {key: parameter.grad.clone() for key, parameter in net.named_parameters()}
            optimizer.step()
        results[name] = {"loss": filter_loss.detach(), "gradients": gradients, "state": net.layer.state_dict()}
    return results


METRICS = [
    value
    for value in vars(streaming).values()
    if isinstance(value, type) and issubclass(value, StreamingMetric) and hasattr(value, "measured")
]


def metrics(rank: int = 0, world: int = 1) -> dict[str, MetricResult]:
    """Every metric of eleven images, of which a rank sees those that a DistributedSampler gives it."""
    generator = torch.Generator().manual_seed(2)
    N, C = 11, 5
    landmarks_NK2 = 32 * torch.rand(N, 3, 2, generator=generator)
    landmarks_NK2[torch.rand(N, 3, generator=generator) < 0.2] = torch.nan
    everything = {
        "maps_NCHW": torch.randn(N, C, 4, 4, generator=generator).round(decimals=1),  # with equal activations
        "landmarks_NK2": landmarks_NK2,
        "labels": torch.tensor([0, 1, -1, 0, 1, 1, 0, -1, 0, 1, 0]),
        "in_training": torch.arange(N) % 3 > 0,
        "masked_maps_NCHW": torch.randn(N, C, 4, 4, generator=generator).relu(),
        "noisy_maps_NCHW": torch.randn(N, C, 4, 4, generator=generator),
        "part_sizes_NK2": 8 + 8 * torch.rand(N, 3, 2, generator=generator),
        "loss_change_NC": torch.randn(N, C, generator=generator),
    }
    mine = torch.arange(rank, N + (-N) % world, world) % N
    measured = FilterMetrics(METRICS, 32, top_images=4, few_images=3)
    for part in torch.split(mine, 2):
        measured.update(**{name: value[part] for name, value in everything.items()}, index=part)
    return measured.compute()


def worker(rank: int, folder: str) -> None:
    """One of two processes; what it found is in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    found: dict[str, Any] = {"steps": steps(rank, 2)}
    found["metrics"] = {name: result.per_filter_C for name, result in metrics(rank, 2).items()}
    layer = InterpretableLayer(n=6, **L2)
    try:
        layer.filter_loss(maps_NCHW=torch.ones(2 + rank, 5, 6, 6))
    except ValueError as error:
        found["unequal"] = str(error)
    own = InterpretableLayer(n=6, **L2, sync=False)
    maps_NCHW = torch.rand(4, 5, 6, 6, generator=torch.Generator().manual_seed(rank), requires_grad=True)
    found["own"] = [(loss := own.filter_loss(maps_NCHW=maps_NCHW)).detach(), *torch.autograd.grad(loss, maps_NCHW)]
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()
