"""Measures of interpretability that a run may take beside location instability, by the names that they have in a spec,
in an objective and in the record."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

MeasureName = Literal[
    "part_interpretability",
    "consistency",
    "stability",
    "purity",
    "mutual_information_score",
    "ablation_own",
    "ablation_others",
    "activation_entropy",
]


class Measure(NamedTuple):
    """What a person needs to know of a measure to choose it, and to rank runs by it."""

    unit: str
    better: Literal["higher", "lower"]
    what: str
    """One line."""


MEASURES: dict[MeasureName, Measure] = {
    "part_interpretability": Measure(
        "share of images",
        "higher",
        "how often the filter's strongest region covers its best part, IoU > 0.2 (P_f; Zhang et al., CVPR 2018)",
    ),
    "consistency": Measure(
        "share of filters",
        "higher",
        "filters whose peak lies at the same part in at least 80 % of the images (EvalProtoPNet, arXiv 2212.05946)",
    ),
    "stability": Measure(
        "share of images",
        "higher",
        "images in which noise does not move the peak to other parts (EvalProtoPNet, arXiv 2212.05946)",
    ),
    "purity": Measure(
        "share of images",
        "higher",
        "of the filter's 10 strongest images, those whose peak lies at its best part (PIP-Net, CVPR 2023)",
    ),
    "mutual_information_score": Measure(
        "nats",
        "higher",
        "mutual information of the filter's mean activation and the class (CSG, arXiv 2007.08194)",
    ),
    "ablation_own": Measure(
        "nats per image",
        "higher",
        "rise of the classification loss on images of the filter's class without the filter (after arXiv 1806.02891)",
    ),
    "ablation_others": Measure(
        "nats per image",
        "lower",
        "change of the classification loss on images of other classes without the filter (after arXiv 1806.02891)",
    ),
    "activation_entropy": Measure(
        "share of log n^2",
        "lower",
        "entropy of the filter's map as a distribution over its cells; 0 is a single cell, 1 is flat",
    ),
}
"""Every measure: its unit, whether higher or lower is better, and what it is."""

assert set(MEASURES) == set(get_args(MeasureName))

ABLATIONS: tuple[MeasureName, ...] = ("ablation_own", "ablation_others")
"""Measures that run the network's upper layers once more for every filter."""
