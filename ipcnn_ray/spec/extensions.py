"""Registries of what other packages can add, each with a group of entry points; CONTRIBUTING.md has examples.

The objects are subclasses of `spec.template.PartTemplate` (``ipcnn.templates``), `data.datasets.dataset.Dataset`
(``ipcnn.datasets``) and `core.metrics.filter_metric.FilterMetric` (``ipcnn.metrics``).
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
INSTABILITY = "instability"
"""The metric that every run is measured by."""
_METRICS = "ipcnn_ray.core.metrics"
METRICS = Registry(
    "ipcnn.metrics",
    {
        INSTABILITY: f"{_METRICS}.location_instability:LocationInstability",
        "part_interpretability": f"{_METRICS}.part_interpretability:PartInterpretability",
        "consistency": f"{_METRICS}.consistency:Consistency",
        "stability": f"{_METRICS}.stability:Stability",
        "purity": f"{_METRICS}.purity:Purity",
        "mutual_information_score": f"{_METRICS}.mutual_information_score:MutualInformationScore",
        "ablation_own": f"{_METRICS}.ablation:AblationOwn",
        "ablation_others": f"{_METRICS}.ablation:AblationOthers",
        "activation_entropy": f"{_METRICS}.activation_entropy:ActivationEntropy",
    },
    base=f"{_METRICS}.filter_metric:FilterMetric",
)
"""Metrics of interpretability: subclasses of `FilterMetric`."""
RECORDED = (
    *("epoch", "train_loss", "val_loss", "filter_loss", "train_error", "val_error", "val_images", "combined"),
    *("learning_rate", "images_per_second", "seconds", "best_val_error", "epochs_to_converge", "area_under_error"),
    *("cpu_hours", "gpu_hours"),
)
"""Names of the other numbers in the record of a run, which a metric cannot have."""
