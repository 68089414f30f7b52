"""Registries of what other packages can add, each with a group of entry points.

A package adds a template shape with an entry point in ``ipcnn.templates``, named as the shape. Its object is a
subclass of `spec.template.PartTemplate`, which describes what it declares.

A package adds a dataset with an entry point in ``ipcnn.datasets``, named as the dataset's `kind`. Its object is a
subclass of `data.datasets.dataset.Dataset`, which describes what it declares.
"""

from __future__ import annotations

from ipcnn_ray.utils.registry import Registry

_TEMPLATE = "ipcnn_ray.spec.template"
TEMPLATES = Registry(
    "ipcnn.templates",
    {
        "gradient": f"{_TEMPLATE}:GradientTemplate",
        "uniform": f"{_TEMPLATE}:UniformTemplate",
        "released": f"{_TEMPLATE}:ReleasedTemplate",
        "gaussian": f"{_TEMPLATE}:GaussianTemplate",
        "ellipse": f"{_TEMPLATE}:EllipseTemplate",
        "ring": f"{_TEMPLATE}:RingTemplate",
        "mask": f"{_TEMPLATE}:MaskTemplate",
        "tailored": f"{_TEMPLATE}:TailoredTemplate",
        "none": f"{_TEMPLATE}:NoTemplate",
    },
)
"""Section of each template shape."""

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
