"""Dropout that does not depend on how a batch is spread over workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """Which part of which global batch a worker is about to see."""

    seed: int
    epoch: int
    step: int
    first_row: int
    """Index in the global batch of this worker's first image."""
    rows_total: int
    """Images of the global batch."""


class SampleDropout(nn.Module):
    """Drops each unit with probability p when training and scales the rest by 1 / (1 - p).

    The decisions for the whole global batch are drawn on every worker from (seed, epoch, step, position in the
    network), and each worker takes its own rows: one worker and eight drop the same units, and a resumed run drops
    what the uninterrupted one would have.
    """

    def __init__(self, p: float, position: int) -> None:
        super().__init__()
        self.p = p
        self.position = position
        self.now: Step | None = None

    def forward(self, x_NF: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x_NF
        if self.now is None:
            raise RuntimeError("call set_step on the network before a training step: dropout is drawn per global batch")
        now = self.now
        seed = hash((now.seed, now.epoch, now.step, self.position)) & (2**63 - 1)
        drawn = torch.rand(now.rows_total, x_NF.shape[1], generator=torch.Generator().manual_seed(seed))
        keep = drawn[now.first_row : now.first_row + len(x_NF)].to(x_NF.device) >= self.p
        return x_NF * keep / (1 - self.p)
