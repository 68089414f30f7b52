"""Train the interpretable ResNet-18 in a Ray Train loop, on two workers.

python tests/examples/train_ray.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from resnet18 import InterpretableResNet, pictures
from torch import nn

from ipcnn_ray import LandmarkTracking, receptive_field


def loop(config: dict[str, Any]) -> None:
    """The loop of one worker, which takes every W-th picture of a batch."""
    torch.manual_seed(0)
    context, image_size = ray.train.get_context(), config["image_size"]
    rank, workers = context.get_world_rank(), context.get_world_size()
    data, other = pictures(config["images"], image_size=image_size), pictures(48, image_size=image_size, seed=1)
    net, device = InterpretableResNet(classes=3, image_size=image_size), get_device()
    model = prepare_model(net)  # DistributedDataParallel
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    tracking = LandmarkTracking(image_size, field=receptive_field(nn.Sequential(net.body, net.conv)), top_images=20)
    for epoch in range(config["epochs"]):
        net.train()
        order = torch.randperm(config["images"], generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(config["batch_size"]):
            rows = batch[rank::workers]
            images, labels = data.images[rows].to(device), data.labels[rows].to(device)
            loss = nn.functional.cross_entropy(model(images), labels)
            filter_loss = net.layer.filter_loss()  # of the batches of all workers
            optimizer.zero_grad()
            (loss + 0.01 * filter_loss).backward()
            optimizer.step()
        net.eval()
        tracking.reset()
        rows = torch.arange(len(other.labels))[rank::workers]
        with torch.no_grad():
            maps = net.maps(other.images[rows].to(device))
        tracking.update(maps, other.landmarks[rows], other.labels[rows], index=rows)
        followed = tracking.compute().mean  # of the pictures of all workers
        metrics = {"loss": loss.item(), "filter_loss": filter_loss.item(), "landmark_tracking": followed}
        with tempfile.TemporaryDirectory() as folder:
            torch.save(net.state_dict(), f"{folder}/model.pt")
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)


def main(
    images: int = 192, epochs: int = 3, image_size: int = 96, batch_size: int = 16, workers: int = 2, gpu: bool = False
) -> dict[str, float]:
    """Train and return the metrics of the last epoch."""
    config = {"images": images, "epochs": epochs, "image_size": image_size, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as folder:
        scaling = ScalingConfig(num_workers=workers, use_gpu=gpu)
        run = RunConfig(name="interpretable_resnet18", storage_path=folder)
        metrics = TorchTrainer(loop, train_loop_config=config, scaling_config=scaling, run_config=run).fit().metrics
    return dict(metrics or {})


if __name__ == "__main__":
    print(main())
