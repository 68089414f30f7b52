"""One epoch of training: the loss of a step over the global batch, the loop over batches, the learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ipcnn_ray.core.classification import Form, classification_loss, wrong_share
from ipcnn_ray.data.augmentation import draws
from ipcnn_ray.data.batches import epoch_order, shares
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.layer_loss import FilterTerm, StepContext
from ipcnn_ray.models.net import NetOutput
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.training import Train
from ipcnn_ray.train.diversity_term import DiversityTerm
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.step_graph import StepGraph


class StepLoss(NamedTuple):
    """Losses of one step."""

    total: Tensor
    """Loss to differentiate."""
    classification: Tensor
    """Sum of the local classification losses."""
    filter: Tensor
    """Filter loss of the global batch; 0 without one."""
    diversity: Tensor
    """Diversity loss of the global batch; 0 without one."""


def step_loss(
    output: NetOutput,
    label_N: Tensor,
    terms: Mapping[str, FilterTerm],
    epoch: int,
    batch_size: int,
    runtime: Runtime,
    form: Form = "logistic",
    diversity: DiversityTerm | None = None,
) -> StepLoss:
    """Return the losses of a step.

    The gradient of the total, averaged over the workers by DDP, is the gradient of
    [mean over the global batch of the classification loss] + [sum over layers and filters of lambda * filter loss]
    + [weight * diversity loss].
    Each worker differentiates with respect to its own images; DDP divides the sum of these gradients by the number of
    workers, hence the factor `world_size`.

    Args:
        label_N: Categories of the local images, -1 for none.
        batch_size: Size of the global batch.
        form: Form of the classification loss.
    """
    classification = classification_loss(output.logits_NL.float(), label_N, form).sum()
    total = classification / batch_size
    information = torch.zeros((), device=label_N.device)
    step = StepContext(label_N, epoch, batch_size, runtime)
    for layer, term in terms.items():
        value = term(output.maps[layer].float(), output.masked.get(layer), step)
        total = total + value.loss
        information = information + (0 if value.filter_loss is None else value.filter_loss)
    overlap = torch.zeros((), device=label_N.device)
    if diversity is not None:
        added, overlap = diversity(output.maps, label_N, runtime)
        total = total + added
    return StepLoss(total * runtime.world_size, classification.detach(), information, overlap)


def warm_up_ddp(model: nn.Module, inputs: InputPipeline) -> None:
    """Run one backward pass on zeros, without an update, if `model` is wrapped in DDP.

    DDP rebuilds its buckets after the first backward pass, and the rounding of the gradients of three or more workers
    depends on the buckets. Without this pass a resumed run would differ from an uninterrupted one in the last bits.
    """
    if model is not inputs.net:
        inputs.net.train().set_step(0, 0, 0, 0, 1)
        rows = torch.zeros(1, *inputs.net.feature_shape(), device=inputs.device)
        torch.autograd.backward(model(rows, from_features=True).sum())
        inputs.net.zero_grad(set_to_none=True)


def train_epoch(
    model: nn.Module,
    inputs: InputPipeline,
    optimizer: torch.optim.Optimizer,
    terms: Mapping[str, FilterTerm],
    runtime: Runtime,
    spec: ExperimentSpec,
    epoch: int,
    *,
    diversity: DiversityTerm | None = None,
    bfloat16: bool = False,
    graph: StepGraph | None = None,
) -> dict[str, float]:
    """Train one epoch and return its metrics, computed before each step's update: see `run_metrics`.

    Args:
        model: The network of `inputs` as the runtime wraps it.
        bfloat16: Run the trained layers under autocast. Losses are always float32.
        graph: Replays steps.

    Raises TrainingError if the training split is smaller than a batch, or a loss is not finite.
    """
    start, rate = time.perf_counter(), learning_rate(spec.train, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    batch_size, form = spec.train.batch_size, spec.loss.classification
    net, items = inputs.net, inputs.store.train_items
    order = epoch_order(len(items), spec.seed, epoch)
    numbers = shares(order, batch_size, runtime.rank, runtime.world_size)
    parts = [items[share] for share in numbers]
    if not parts:
        raise TrainingError(
            f"the training split has {len(order)} items, fewer than one batch of {batch_size}: "
            "use more data or a smaller train.batch_size"
        )
    first_row = runtime.rank * (batch_size // runtime.world_size)
    augment = spec.data.augment if spec.data.augment and spec.data.augment.active else None
    draws_ID = draws(len(items), spec.seed, epoch) if augment else None

    def train_step(rows: Tensor, label_N: Tensor) -> Tensor:
        """Update the parameters, and return the last three of `StepLoss` and the sum of the wrong shares, float64."""
        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=bfloat16):
            output = model(rows, from_features=True, full=True)
        loss = step_loss(output, label_N, terms, epoch, batch_size, runtime, form, diversity)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        for term in terms.values():
            term.after_backward(runtime)
        optimizer.step()
        wrong = wrong_share(output.logits_NL.detach().float(), label_N, form).sum()
        return torch.stack([*loss[1:], wrong]).double()

    steps: list[Tensor] = []
    net.train()
    with graph.epoch(train_step) if graph else nullcontext(train_step) as run:
        with inputs.loader(parts, crops=augment is not None) as loader:
            for step, batch in enumerate(loader):
                runtime.report_progress(f"training epoch {epoch}", step, len(parts), "steps")
                net.set_step(spec.seed, epoch, step, first_row, batch_size)
                if augment and draws_ID is not None:
                    rows = inputs.augmented_input(batch, draws_ID[numbers[step]], augment)
                else:
                    rows = inputs.net_input(batch)
                steps.append(run(rows, batch.labels))
        all_WS4 = runtime.gather(torch.stack(steps)).cpu()
    means = _epoch_means(all_WS4, epoch, batch_size, optimizer, terms, diversity)
    images_per_second = len(parts) * batch_size / (time.perf_counter() - start)
    return {"epoch": float(epoch), **means, "learning_rate": rate, "images_per_second": images_per_second}


def _epoch_means(
    all_WS4: Tensor,
    epoch: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    terms: Mapping[str, FilterTerm],
    diversity: DiversityTerm | None,
) -> dict[str, float]:
    """Reduce [W, S, 4]: for each worker and step the classification loss, the filter and the diversity loss (equal on
    all), and the wrong share."""
    classification_S, wrong_S = all_WS4[:, :, 0].sum(0), all_WS4[:, :, 3].sum(0)
    information_S, diversity_S = all_WS4[0, :, 1], all_WS4[0, :, 2]
    steps = len(wrong_S)
    broken_S = ~(classification_S.isfinite() & information_S.isfinite() & diversity_S.isfinite())
    if bool(broken_S.any()):
        step = int(broken_S.nonzero()[0])
        advice = f"lower train.learning_rate (here {optimizer.param_groups[0]['lr']:g})"
        if terms:
            advice += f" or loss.filter.weight ({next(iter(terms.values())).weight:g})"
        values = f"classification {float(classification_S[step]) / batch_size:g}, filter {float(information_S[step]):g}"
        if diversity:
            values += f", diversity {float(diversity_S[step]):g}"
            advice += f" or loss.diversity.weight ({diversity.weight:g})"
        raise TrainingError(f"the loss is not finite in epoch {epoch}, step {step + 1} of {steps}: {values}; {advice}")
    images = steps * batch_size
    has_value = all(term.has_value for term in terms.values())
    return {
        "train_loss": float(classification_S.sum()) / images,
        **({"filter_loss": float(information_S.mean())} if has_value else {}),
        **({"diversity_loss": float(diversity_S.mean())} if diversity else {}),
        "train_error": float(wrong_S.sum()) / images,
    }


def learning_rate(train: Train, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 1.

    It rises linearly over `warmup_epochs`; the epoch after them has `learning_rate`. Then it decays, in equal
    logarithmic steps or along half a cosine, to `final_learning_rate` in epoch `decay_epochs` (default: the last), and
    stays there.
    """
    first, last = train.learning_rate, train.final_learning_rate or train.learning_rate
    if epoch <= train.warmup_epochs:
        return first * epoch / (train.warmup_epochs + 1)
    start, end = train.warmup_epochs + 1, train.decay_epochs or train.epochs
    share = min(1.0, (epoch - start) / max(1, end - start))
    if train.decay == "cosine":
        return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
    return float(first * (last / first) ** share)
