"""One epoch of training: the classification loss and the filter loss over the global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ipcnn_ray.core.classification import logistic_loss
from ipcnn_ray.core.filter_loss import exact_filter_loss, filter_weight
from ipcnn_ray.data.batches import Batch, Read, batches, epoch_order, shares
from ipcnn_ray.data.store import CropStore
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.net import InterpretableNet, Output
from ipcnn_ray.train.runtime import Runtime


@dataclass(frozen=True)
class LayerLoss:
    """The filter loss of one interpretable layer."""

    bank_Tnn: Tensor
    log_prior_T: Tensor
    weight: float
    schedule: Literal["paper", "constant"]


@dataclass(frozen=True)
class EpochSums:
    """What an epoch of training cost and reached."""

    train_loss: float
    """Mean classification loss, nats per image."""
    filter_loss: float
    """Filter loss, nats, summed over filters and layers, mean over steps, not weighted."""
    train_error: float
    images: int
    """Images of all workers."""


def step_loss(
    output: Output,
    label_N: Tensor,
    losses: Mapping[str, LayerLoss],
    epoch: int,
    batch_size: int,
    runtime: Runtime,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss to differentiate, sum of the local images' classification losses, global filter loss).

    Averaged over the workers (as DDP averages gradients), the gradient of the first is the gradient of
    [mean over the global batch of the classification loss] + sum over layers and filters of lambda * filter loss.
    """
    classification = logistic_loss(output.logits_N.float(), label_N).sum()
    weighted = classification / batch_size
    information = torch.zeros((), device=label_N.device)
    for layer, loss in losses.items():
        maps = output.maps[layer].float()
        lambda_C = filter_weight(maps, loss.weight, epoch, loss.schedule, gather=runtime.gather)
        loss_C = exact_filter_loss(maps, loss.bank_Tnn, loss.log_prior_T, gather=runtime.gather)
        weighted = weighted + (lambda_C * loss_C).sum()
        information = information + loss_C.detach().sum()
    return weighted * runtime.world_size, classification.detach(), information


def train_epoch(
    net: InterpretableNet,
    model: nn.Module,
    run: Callable[[nn.Module, Batch], Output],
    read: Read,
    store: CropStore,
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, LayerLoss],
    runtime: Runtime,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
) -> EpochSums:
    """Train one epoch; `model` is `net` as the runtime wraps it, `run` its full output for a batch.

    Raises TrainingError when a loss is not finite.
    """
    order = epoch_order(len(store.train_items), seed, epoch)
    parts = [store.train_items[share] for share in shares(order, batch_size, runtime.rank, runtime.world_size)]
    if not parts:
        raise TrainingError(
            f"the training split has {len(order)} items, fewer than one batch of {batch_size}: "
            "use more data or a smaller train.batch_size"
        )
    local = batch_size // runtime.world_size
    net.train()
    steps: list[Tensor] = []
    for step, batch in enumerate(batches(parts, store.labels_N, read)):
        net.set_step(seed, epoch, step, runtime.rank * local, batch_size)
        label_N = batch.labels.to(runtime.device)
        output = run(model, batch)
        loss, classification, information = step_loss(output, label_N, losses, epoch, batch_size, runtime)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        wrong = ((output.logits_N > 0) != (label_N > 0.5)).sum()
        steps.append(torch.stack([classification.double(), wrong.double(), information.double()]))
    sums_S3 = torch.stack(steps)
    all_WS3 = runtime.gather(sums_S3)
    if not bool(torch.isfinite(all_WS3).all()):
        first = int((~torch.isfinite(all_WS3)).any(0).any(1).nonzero()[0]) + 1
        raise TrainingError(
            f"the loss is not finite in epoch {epoch}, step {first} of {len(parts)}: "
            "lower train.learning_rate or loss.filter.weight"
        )
    images = len(parts) * batch_size
    classification_sum, wrong_sum = all_WS3[:, :, :2].sum((0, 1)).tolist()
    return EpochSums(
        classification_sum / images, float(all_WS3[0, :, 2].mean()), wrong_sum / images, images
    )
