"""Train the interpretable ResNet-18 in plain PyTorch, and measure what its filters follow.

python tests/examples/train_pytorch.py
"""

from __future__ import annotations

import torch
from resnet18 import InterpretableResNet, pictures
from torch import nn

from ipcnn_ray import FilterMetrics, InstabilityBestConstant, LandmarkTracking, LocationInstability, receptive_field


def main(images: int = 192, epochs: int = 3, image_size: int = 96, batch_size: int = 16) -> dict[str, float]:
    """Train and return the last loss, and the metrics on other pictures."""
    torch.manual_seed(0)
    data, other = pictures(images, image_size=image_size), pictures(48, image_size=image_size, seed=1)
    net = InterpretableResNet(classes=3, image_size=image_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(images).split(batch_size):
            scores = net(data.images[rows])
            loss = nn.functional.cross_entropy(scores, data.labels[rows]) + 0.01 * net.layer.filter_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    net.eval()
    field = receptive_field(nn.Sequential(net.body, net.conv))
    chosen = [LocationInstability, InstabilityBestConstant, LandmarkTracking]
    metrics = FilterMetrics(chosen, image_size, field=field, top_images=20)
    with torch.no_grad():
        for rows in torch.arange(len(other.labels)).split(batch_size):
            metrics.update(net.maps(other.images[rows]), other.landmarks[rows], other.labels[rows])
    return {"loss": loss.item(), **{name: result.mean for name, result in metrics.compute().items()}}


if __name__ == "__main__":
    print(main())
