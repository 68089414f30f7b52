"""The learning rate of an epoch."""

from __future__ import annotations

import math

from ipcnn_ray.spec.training import Train


def learning_rate(train: Train, epoch: int) -> float:
    """Rate of an epoch (from 1).

    Over `warmup_epochs` it rises in equal steps to the first rate, which the epoch behind them has. From there it goes
    to the final rate, in equal logarithmic steps or along half a cosine, which `decay_epochs` (the last epoch, if it is
    not given) and all epochs after it have.
    """
    first, last = train.learning_rate, train.final_learning_rate or train.learning_rate
    if epoch <= train.warmup_epochs:
        return first * epoch / (train.warmup_epochs + 1)
    start, end = train.warmup_epochs + 1, train.decay_epochs or train.epochs
    share = min(1.0, (epoch - start) / max(1, end - start))
    if train.decay == "cosine":
        return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
    return float(first * (last / first) ** share)
