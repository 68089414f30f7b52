"""Split into training and validation items, with the repeats of the released code.

An item is (index of an object or negative, mirrored or not). Source: released `getImdb`, and `produceIMDB` of
`learn_icnn_multiclass` for several categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.int64]
"""[I, 2]: index in the store, and 1 for the mirror image."""
Pairs = list[tuple[int, int]]


def _round(x: float) -> int:
    """Round half up, as MATLAB does for x >= 0."""
    return math.floor(x + 0.5)


def train_indices(n: int, share: float) -> list[int]:
    """Return the 0-based indices of n that are in training: those in round(linspace(1, n, round(share * n)))."""
    count = _round(share * n)
    if count <= 0:
        return []
    if count == 1:
        return [n - 1]  # MATLAB's linspace(1, n, 1) is n
    return sorted({_round(1 + (n - 1) * i / (count - 1)) - 1 for i in range(count)})


def _repeated(first: int, objects: int, wanted: int) -> Pairs:
    """Return `wanted` items: both mirror images of the objects from index `first` on, in order, repeated."""
    return [(first + i % (2 * objects) // 2, i % 2) for i in range(wanted)]


def _divided(everything: Pairs, trained: Sequence[bool]) -> tuple[Items, Items]:
    items_I2, trained_I = np.array(everything, np.int64).reshape(-1, 2), np.array(trained, np.bool_)
    return items_I2[trained_I], items_I2[~trained_I]


def items(objects: int, negatives: int, train_share: float, positive_share: float) -> tuple[Items, Items]:
    """Return the training and validation items of one category. In the store negatives follow the objects.

    Both mirror images of all objects are repeated, in order, until they are `positive_share` of all items (released:
    three positives to one negative).
    """
    wanted = _round(positive_share / (1 - positive_share) * negatives)
    positives = _repeated(0, objects, wanted) if objects else []
    return _by_object(positives, [objects], negatives, train_share)


def items_of_categories(
    objects_L: Sequence[int],
    negatives: int,
    train_share: float,
    *,
    repeat: bool,
    split: Literal["objects", "items"] = "objects",
) -> tuple[Items, Items]:
    """Return the training and validation items of several categories.

    In the store the objects come category by category, then the negatives, which are taken once each.

    Args:
        objects_L: Number of objects of each category.
        negatives: Number of negatives.
        train_share: Share in training.
        repeat: Repeat both mirror images of a category's objects, in order, to at least 1,500 items, with more than
            ten categories to at least 100 and at most 400 (released). Otherwise take every item once.
        split: `objects` splits the objects of each category. `items` splits all items of all categories as they stand
            (released), so that a validation item is mostly the repeat or mirror image of a training item.
    """
    least, most = (100, 400) if len(objects_L) > 10 else (1500, math.inf)
    positives: Pairs = []
    for label, objects in enumerate(objects_L):
        wanted = int(min(max(2 * objects, least), most)) if repeat else 2 * objects
        positives += _repeated(sum(objects_L[:label]), objects, wanted) if objects else []
    if split == "objects":
        return _by_object(positives, objects_L, negatives, train_share)
    everything = positives + [(sum(objects_L) + j, 0) for j in range(negatives)]
    trained = set(train_indices(len(everything), train_share))
    return _divided(everything, [i in trained for i in range(len(everything))])


def items_as_given(in_training_N: Sequence[bool], negatives: int, repeats: int) -> tuple[Items, Items]:
    """Return the training and validation items of objects that the dataset itself splits, each once and not mirrored.

    Each negative is repeated `repeats` times in a row, and the first half of them is in training.

    Source: released `getImdb_cub200`.
    Deviations: with an odd number of negatives the released half can cut through the repeats of one; ours does not.
    """
    objects = len(in_training_N)
    repeated = [(objects + j, 0) for j in range(negatives) for _ in range(repeats)]
    half = _round(negatives * 0.5) * repeats
    everything = [(i, 0) for i in range(objects)] + repeated
    return _divided(everything, [*in_training_N, *(j < half for j in range(len(repeated)))])


def items_once(in_training_N: Sequence[bool], objects: int, *, mirror: bool) -> tuple[Items, Items]:
    """Return the training and validation items of crops of which the split is known, each once.

    Args:
        in_training_N: Whether a crop is in training: the objects, then the negatives.
        objects: Number of objects.
        mirror: Add the mirror image of each object.
    """
    everything = [(i, flip) for i in range(len(in_training_N)) for flip in ((0, 1) if mirror and i < objects else (0,))]
    return _divided(everything, [in_training_N[i] for i, _ in everything])


def share_in_training(counts: Sequence[int], share: float) -> list[bool]:
    """Return whether each crop is in training, if in every one of several groups `train_indices` are.

    counts: Number of crops of each group, such as the objects of each category and the negatives.
    """
    return [i in trained for count in counts for trained in [set(train_indices(count, share))] for i in range(count)]


def _by_object(positives: Pairs, objects_L: Sequence[int], negatives: int, train_share: float) -> tuple[Items, Items]:
    """Split the objects of each category, and the negatives; all items of an object are in the same split."""
    trained, first = set(), 0
    for count in (*objects_L, negatives):
        trained |= {first + i for i in train_indices(count, train_share)}
        first += count
    everything = positives + [(sum(objects_L) + j, 0) for j in range(negatives)]
    return _divided(everything, [index in trained for index, _ in everything])
