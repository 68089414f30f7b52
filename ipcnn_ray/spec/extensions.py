"""Registries of what other packages can add, each with a group of entry points; CONTRIBUTING.md has examples.

The objects are subclasses of `spec.template.PartTemplate` (``ipcnn.templates``), `data.datasets.dataset.Dataset`
(``ipcnn.datasets``) and `core.metrics.filter_metric.FilterMetric` (``ipcnn.metrics``).
"""

from __future__ import annotations

from typing import NamedTuple

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
        "table": f"{_DATASETS}.image_table:ImageTable",
        "folder": f"{_DATASETS}.image_folder:ImageFolder",
    },
)
"""Data section of each dataset."""
INSTABILITY = "instability"
"""Location instability, by which a run without a search is ranked."""


class Baseline(NamedTuple):
    """What a metric gives for a filter or a prediction that knows nothing."""

    metric: str
    """Name of the metric that it is compared with."""
    label: str
    """Name of its row in a table."""


BASELINES = {
    "instability_center": Baseline(INSTABILITY, "peak at the centre"),
    "instability_best_constant": Baseline(INSTABILITY, "best constant place"),
    "instability_random": Baseline(INSTABILITY, "random cell"),
    "landmark_tracking_shuffled": Baseline("landmark_tracking", "shuffled images"),
    "following_share_shuffled": Baseline("following_share", "shuffled images"),
    "keypoint_error_mean": Baseline("keypoint_error", "mean position"),
}
"""Metrics that are the baseline of another one."""
EVERY_RUN = (
    *(INSTABILITY, "instability_center", "instability_best_constant", "instability_random"),
    *("landmark_tracking", "landmark_tracking_few", "landmark_tracking_shuffled"),
    *("following_share", "following_share_few", "following_share_shuffled"),
    *("landmarks_followed", "landmark_coverage", "peak_distance", "peak_spread"),
    *("keypoint_error", "keypoint_error_mean"),
)
"""Metrics that every run records, without `eval.measures`."""
_METRICS = "ipcnn_ray.core.metrics"
METRICS = Registry(
    "ipcnn.metrics",
    {
        INSTABILITY: f"{_METRICS}.location_instability:LocationInstability",
        "instability_center": f"{_METRICS}.instability_baselines:InstabilityCenter",
        "instability_best_constant": f"{_METRICS}.instability_baselines:InstabilityBestConstant",
        "instability_random": f"{_METRICS}.instability_baselines:InstabilityRandom",
        "landmark_tracking": f"{_METRICS}.landmark_tracking:LandmarkTracking",
        "landmark_tracking_few": f"{_METRICS}.landmark_tracking:LandmarkTrackingFew",
        "landmark_tracking_shuffled": f"{_METRICS}.landmark_tracking:LandmarkTrackingShuffled",
        "following_share": f"{_METRICS}.landmark_tracking:FollowingShare",
        "following_share_few": f"{_METRICS}.landmark_tracking:FollowingShareFew",
        "following_share_shuffled": f"{_METRICS}.landmark_tracking:FollowingShareShuffled",
        "landmarks_followed": f"{_METRICS}.landmark_tracking:LandmarksFollowed",
        "landmark_coverage": f"{_METRICS}.landmark_tracking:LandmarkCoverage",
        "peak_distance": f"{_METRICS}.peak_distance:PeakDistance",
        "peak_spread": f"{_METRICS}.peak_distance:PeakSpread",
        "keypoint_error": f"{_METRICS}.keypoint_error:KeypointError",
        "keypoint_error_mean": f"{_METRICS}.keypoint_error:KeypointErrorMean",
        "part_interpretability": f"{_METRICS}.part_interpretability:PartInterpretability",
        "consistency": f"{_METRICS}.consistency:Consistency",
        "stability": f"{_METRICS}.stability:Stability",
        "peak_stability": f"{_METRICS}.stability:PeakStability",
        "purity": f"{_METRICS}.purity:Purity",
        "mutual_information_score": f"{_METRICS}.mutual_information_score:MutualInformationScore",
        "ablation_own": f"{_METRICS}.ablation:AblationOwn",
        "ablation_others": f"{_METRICS}.ablation:AblationOthers",
        "activation_entropy": f"{_METRICS}.activation_entropy:ActivationEntropy",
    },
    base=f"{_METRICS}.filter_metric:FilterMetric",
)
"""Metrics of interpretability: subclasses of `FilterMetric`."""
FOLLOWING = "following_"
"""Prefix of the numbers of filters that follow a landmark; its name follows."""
RECORDED = (
    *("epoch", "train_loss", "val_loss", "filter_loss", "train_error", "val_error", "val_images", "combined"),
    *("learning_rate", "images_per_second", "seconds", "best_val_error", "epochs_to_converge", "area_under_error"),
    *("cpu_hours", "gpu_hours", "template_widening", "diversity_loss"),
)
"""Names of the other numbers in the record of a run, which a metric cannot have."""
