"""Counts behind the classification error and loss; they add up over batches and workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus


def logistic_loss(logit_N: Tensor, label_N: Tensor) -> Tensor:
    """log(1 + exp(-c * s)) per image as [N], with c = +1 for label 1 (the category) and -1 for label 0.

    Source: Zhang et al., CVPR 2018, one-category classification.
    """
    return softplus(-(2 * label_N - 1) * logit_N)


@dataclass(frozen=True)
class BinaryCounts:
    """Weighted sums over images."""

    wrong: float = 0.0
    """Images whose score has the wrong sign; a score of exactly 0 counts as negative (released code: as right,
    whatever the label, so that a dead network makes no error)."""
    seen: float = 0.0
    loss_sum: float = 0.0

    @classmethod
    def of(cls, logit_N: Tensor, label_N: Tensor, weight_N: Tensor | None = None) -> BinaryCounts:
        """Counts of one batch; `weight_N` 0 leaves an image (padding) out, 2 counts it twice."""
        if logit_N.shape != label_N.shape or logit_N.ndim != 1:
            raise ValueError(
                f"logit_N has shape {tuple(logit_N.shape)} and label_N {tuple(label_N.shape)}: expected [N] and [N]"
            )
        if not bool(((label_N == 0) | (label_N == 1)).all()):
            raise ValueError(f"label_N has values {sorted(set(label_N.tolist()))}: expected 0 and 1")
        if weight_N is not None and weight_N.shape != logit_N.shape:
            raise ValueError(f"weight_N has shape {tuple(weight_N.shape)}: expected {list(logit_N.shape)}")
        weight = torch.ones_like(logit_N, dtype=torch.float64) if weight_N is None else weight_N.double()
        wrong = (logit_N > 0) != (label_N > 0.5)
        return cls(
            float((wrong * weight).sum()),
            float(weight.sum()),
            float((logistic_loss(logit_N.double(), label_N.double()) * weight).sum()),
        )

    def __add__(self, other: BinaryCounts) -> BinaryCounts:
        return BinaryCounts(self.wrong + other.wrong, self.seen + other.seen, self.loss_sum + other.loss_sum)

    @property
    def error(self) -> float:
        """Share of images that were classified wrongly; NaN when none was seen."""
        return self.wrong / self.seen if self.seen else float("nan")

    @property
    def loss(self) -> float:
        """Mean logistic loss, nats; NaN when no image was seen."""
        return self.loss_sum / self.seen if self.seen else float("nan")
