"""How many items there are, as far as a spec alone says it."""

from __future__ import annotations

from ipcnn_ray.spec.data import Data, DrawnAnimals


def in_training(n: int, share: float) -> int:
    """How many of n are in the training split: as many indices as round(linspace(1, n, round(share n))) has.

    Half rounds up, as MATLAB does.
    """
    return int(share * n + 0.5)


def train_items(data: Data) -> int | None:
    """Training items: objects twice (mirrored too) and negatives once. None where the data itself must be counted."""
    if not isinstance(data, DrawnAnimals):
        return None
    objects = len(data.categories) * in_training(data.objects, data.train_share)
    return 2 * objects + in_training(data.negatives, data.train_share)
