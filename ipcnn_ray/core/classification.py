"""Classification losses and errors; and how fast a run converges.

N images, L categories. A label is the index of an image's category, 0 .. L - 1, or -1 for none (a negative).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

Form = Literal["logistic", "softmax"]
"""`logistic`: each category against the rest. `softmax`: one category of all, for images that have one."""


def classification_loss(logit_NL: Tensor, label_N: Tensor, form: Form = "logistic") -> Tensor:
    """Return the loss of each image, [N], nats.

    logistic: log(1 + exp(-c * s)) summed over categories, c = +1 for the image's category and -1 for the others.
    softmax: cross entropy; every image must have a category.

    Source: Zhang et al., CVPR 2018, section 5; released `our_vl_nnloss`, which sums over categories alike.
    """
    if form == "softmax":
        return cross_entropy(logit_NL, label_N, reduction="none")
    return softplus(-_signs(logit_NL, label_N) * logit_NL).sum(1)


def wrong_share(logit_NL: Tensor, label_N: Tensor, form: Form = "logistic") -> Tensor:
    """Return the classification error of each image, [N], from 0 to 1.

    logistic: the share of the categories whose score has the wrong sign. softmax: 1 where the highest score is not
    that of the image's category.

    Source: released `our_cnn_train`, `error_binary` and `error_multiclass`.
    Deviations: a score of exactly 0 counts as negative (released: as right, whatever the label, so that a dead network
    makes no error). Among equal highest scores the first category counts.
    """
    if form == "softmax":
        return (logit_NL.argmax(1) != label_N).to(logit_NL.dtype)
    return ((logit_NL > 0) != (_signs(logit_NL, label_N) > 0)).to(logit_NL.dtype).mean(1)


def _signs(logit_NL: Tensor, label_N: Tensor) -> Tensor:
    """Return +1 at the category of an image and -1 at the others, [N, L]."""
    category_L = torch.arange(logit_NL.shape[1], device=label_N.device)
    return 2 * (label_N[:, None] == category_L).to(logit_NL.dtype) - 1


@dataclass(frozen=True)
class ClassificationCounts:
    """Weighted sums over images; they add up over batches and workers."""

    wrong: float = 0.0
    """Sum of `wrong_share`."""
    seen: float = 0.0
    loss_sum: float = 0.0

    @classmethod
    def of(
        cls, logit_NL: Tensor, label_N: Tensor, weight_N: Tensor | None = None, form: Form = "logistic"
    ) -> ClassificationCounts:
        """Return the counts of one batch. `weight_N` 0 leaves an image (padding) out, 2 counts it twice.

        Raises ValueError for shapes that do not fit and labels outside the categories.
        """
        if logit_NL.ndim != 2 or label_N.shape != logit_NL.shape[:1]:
            shapes = f"logit_NL has shape {tuple(logit_NL.shape)} and label_N {tuple(label_N.shape)}"
            raise ValueError(f"{shapes}: expected [N, L] and [N]")
        last, least = logit_NL.shape[1] - 1, 0 if form == "softmax" else -1
        if label_N.dtype != torch.int64 or not bool(((label_N >= least) & (label_N <= last)).all()):
            values = f"{label_N.dtype} values {sorted(set(label_N.tolist()))}"
            raise ValueError(f"label_N has {values}: expected int64 from {least} to {last}")
        if weight_N is not None and weight_N.shape != label_N.shape:
            raise ValueError(f"weight_N has shape {tuple(weight_N.shape)}: expected {list(label_N.shape)}")
        logits = logit_NL.double()
        weight = torch.ones_like(logits[:, 0]) if weight_N is None else weight_N.double()
        return cls(
            float((wrong_share(logits, label_N, form) * weight).sum()),
            float(weight.sum()),
            float((classification_loss(logits, label_N, form) * weight).sum()),
        )

    def __add__(self, other: ClassificationCounts) -> ClassificationCounts:
        return ClassificationCounts(self.wrong + other.wrong, self.seen + other.seen, self.loss_sum + other.loss_sum)

    @property
    def error(self) -> float:
        """Mean of `wrong_share`; NaN when no image was seen."""
        return self.wrong / self.seen if self.seen else float("nan")

    @property
    def loss(self) -> float:
        """Mean classification loss, nats; NaN when no image was seen."""
        return self.loss_sum / self.seen if self.seen else float("nan")


def epochs_to_converge(error_by_epoch: Sequence[tuple[int, float]], share: float) -> int | None:
    """Return the first evaluated epoch whose error is at most (best error / share); None without an evaluation.

    error_by_epoch: (epoch, validation error) in the order of epochs. share: in (0, 1]; 1 for the best error itself,
    0.9 for an error at most a ninth above it. With a best error of 0 only an error of 0 counts.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: expected a number above 0, at most 1")
    if not error_by_epoch:
        return None
    bound = min(error for _, error in error_by_epoch) / share
    return next(epoch for epoch, error in error_by_epoch if error <= bound)


def area_under_error(error_by_epoch: Sequence[tuple[int, float]]) -> float | None:
    """Return the mean height of the error curve over the evaluated epochs (trapezoids); None without an evaluation."""
    if not error_by_epoch:
        return None
    first, last = error_by_epoch[0], error_by_epoch[-1]
    if first[0] == last[0]:
        return first[1]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(error_by_epoch))
    return area / (last[0] - first[0])
