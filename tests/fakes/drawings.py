"""All images of a spec of drawn animals at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals


@dataclass(frozen=True)
class Drawn:
    """Those with an animal first."""

    images_N3SS: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    landmarks_NK2: NDArray[np.float32]
    names: list[str]


def draw(spec: DrawnAnimals, size: int) -> Drawn:
    names = spec.names()
    images = [spec.draw(number, size) for number in range(len(names))]
    images_N3SS = np.stack([image.pixels.transpose(2, 0, 1) for image in images])
    labels_N = np.array([label for label in range(len(spec.categories)) for _ in range(spec.objects)], np.int64)
    labels_N = np.append(labels_N, [-1] * spec.negatives)
    return Drawn(images_N3SS, labels_N, np.stack([image.landmarks_K2 for image in images]), list(names))
