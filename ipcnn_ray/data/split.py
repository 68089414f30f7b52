"""Which items are trained on: the split and the repeats of the released code.

An item is (object or negative, mirrored or not). Source: released `getImdb`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.int64]
"""[I, 2]: index in the store, and 1 for the mirror image."""


def _round(x: float) -> int:
    """Half away from zero, as MATLAB rounds (x >= 0)."""
    return math.floor(x + 0.5)


def train_indices(n: int, share: float) -> list[int]:
    """0-based indices of the training split of n things: every index in round(linspace(1, n, round(share * n)))."""
    count = _round(share * n)
    if count <= 0:
        return []
    if count == 1:
        return [n - 1]  # MATLAB's linspace(1, n, 1) is its end
    return sorted({_round(1 + (n - 1) * i / (count - 1)) - 1 for i in range(count)})


def items(objects: int, negatives: int, train_share: float, positive_share: float | None) -> tuple[Items, Items]:
    """Training and validation items; objects come first in the store, negatives behind them.

    With `positive_share`, both mirror images of all objects are repeated, in order, until they are that share of all
    items (released: three positives to one negative); None takes every item once.
    """
    pair_count = 2 * objects
    wanted = pair_count if positive_share is None else _round(positive_share / (1 - positive_share) * negatives)
    trained_objects = set(train_indices(objects, train_share))
    trained_negatives = set(train_indices(negatives, train_share))
    train: list[tuple[int, int]] = []
    validation: list[tuple[int, int]] = []
    for i in range(wanted):
        index, mirrored = divmod(i % pair_count, 2)
        (train if index in trained_objects else validation).append((index, mirrored))
    for j in range(negatives):
        (train if j in trained_negatives else validation).append((objects + j, 0))
    return np.array(train, np.int64).reshape(-1, 2), np.array(validation, np.int64).reshape(-1, 2)
