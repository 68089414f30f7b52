"""All images of a spec of drawn animals at once, for tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.datasets.drawn.drawn_animals import contents, draw_one
from ipcnn_ray.spec.data import DrawnAnimals


@dataclass(frozen=True)
class Drawn:
    """Those with an animal first."""

    images_N3SS: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    landmarks_NK2: NDArray[np.float32]
    names: list[str]


def draw(spec: DrawnAnimals, size: int) -> Drawn:
    labels_N, names = contents(spec)
    each = [draw_one(spec, size, number) for number in range(len(labels_N))]
    images_N3SS = np.stack([one.image.transpose(2, 0, 1) for one in each])
    return Drawn(images_N3SS, labels_N, np.stack([one.landmarks_K2 for one in each]), names)
