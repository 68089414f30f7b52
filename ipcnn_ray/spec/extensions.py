"""Registries of what other packages can add, each with a group of entry points.

A package adds a dataset with an entry point in ``ipcnn.datasets``, named as the dataset's `kind`. Its object is a
subclass of `data.datasets.dataset.Dataset`, which describes what it declares.
"""

from __future__ import annotations

from ipcnn_ray.utils.registry import Registry

_DATASETS = "ipcnn_ray.data.datasets"
DATASETS = Registry(
    "ipcnn.datasets",
    {
        "drawn_animals": f"{_DATASETS}.drawn.drawn_animals:DrawnAnimals",
        "voc_part": f"{_DATASETS}.voc_part:VocPart",
        "ilsvrc_animal_part": f"{_DATASETS}.ilsvrc_animal_part:IlsvrcAnimalPart",
        "cub200": f"{_DATASETS}.cub200:Cub200",
    },
)
"""Data section of each dataset."""
