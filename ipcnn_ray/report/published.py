"""The published numbers, as printed; the only place where they stand.

Sources: the part-template paper (Ong and Liu, Experimenting with Part Templates in Interpretable Convolutional Neural
Networks), its tables 1 to 5 and section 5.3; Zhang, Wu and Zhu, Interpretable Convolutional Neural Networks, CVPR 2018.
Location instability is a share of the image diagonal, accuracy per cent.
"""

from __future__ import annotations

from typing import NamedTuple

CATEGORIES = ("bird", "cat", "cow", "dog", "horse", "sheep")
"""The six animals of VOC Part, in the order of the tables."""
NETWORKS = {"alexnet": "AlexNet", "vgg16": "VGG-16", "vgg_m": "VGG-M", "vgg_s": "VGG-S"}
"""Our name -> the papers'."""
TEMPLATES = {"none": "", "l1": "L1", "uniform_l1": "Uni-L1", "l2": "L2", "uniform_l2": "Uni-L2"}
"""Our key -> the part-template paper's word; a plain network has none."""
BETA, GAMMA = 2.0, 2.0
"""Section 4.2: of every template of the part-template paper."""
ZHANG_BETA = 4.0
"""Of the template of Zhang et al."""

Six = tuple[float, float, float, float, float, float]


class Printed(NamedTuple):
    """One row of tables 1 and 2, or of tables 3 and 5."""

    by_category: Six
    average: float
    """As printed; not always the mean of the six."""
    accuracy: float


MIDWAY: dict[tuple[str, str], Printed] = {
    ("alexnet", "none"): Printed((0.146, 0.133, 0.145, 0.128, 0.143, 0.138), 0.139, 93.2),
    ("alexnet", "l1"): Printed((0.095, 0.094, 0.099, 0.092, 0.098, 0.098), 0.096, 91.6),
    ("vgg16", "none"): Printed((0.138, 0.136, 0.145, 0.138, 0.141, 0.137), 0.139, 95.8),
    ("vgg16", "l1"): Printed((0.099, 0.096, 0.113, 0.092, 0.098, 0.096), 0.099, 93.1),
    ("vgg_m", "none"): Printed((0.145, 0.138, 0.144, 0.131, 0.146, 0.142), 0.141, 96.7),
    ("vgg_m", "l1"): Printed((0.099, 0.095, 0.097, 0.090, 0.093, 0.097), 0.095, 94.2),
    ("vgg_s", "none"): Printed((0.138, 0.132, 0.139, 0.128, 0.151, 0.142), 0.138, 95.5),
    ("vgg_s", "l1"): Printed((0.094, 0.092, 0.094, 0.093, 0.098, 0.099), 0.095, 92.3),
}
"""Tables 1 and 2: (network, template) -> instability of the six categories, its average, accuracy."""

FINAL: dict[tuple[str, str], Printed] = {
    ("alexnet", "uniform_l1"): Printed((0.142, 0.138, 0.145, 0.127, 0.126, 0.125), 0.134, 92.4),
    ("alexnet", "l2"): Printed((0.094, 0.094, 0.096, 0.093, 0.097, 0.095), 0.095, 91.5),
    ("alexnet", "uniform_l2"): Printed((0.147, 0.124, 0.135, 0.119, 0.148, 0.131), 0.134, 92.5),
    ("vgg16", "uniform_l1"): Printed((0.135, 0.116, 0.128, 0.127, 0.141, 0.145), 0.132, 93.1),
    ("vgg16", "l2"): Printed((0.096, 0.090, 0.098, 0.097, 0.094, 0.098), 0.096, 92.1),
    ("vgg16", "uniform_l2"): Printed((0.143, 0.128, 0.123, 0.117, 0.135, 0.132), 0.130, 93.6),
    ("vgg_m", "uniform_l1"): Printed((0.136, 0.122, 0.135, 0.118, 0.132, 0.138), 0.130, 94.9),
    ("vgg_m", "l2"): Printed((0.100, 0.092, 0.094, 0.095, 0.098, 0.093), 0.095, 93.8),
    ("vgg_m", "uniform_l2"): Printed((0.144, 0.115, 0.139, 0.121, 0.136, 0.128), 0.131, 95.5),
    ("vgg_s", "uniform_l1"): Printed((0.126, 0.135, 0.149, 0.111, 0.142, 0.139), 0.134, 93.4),
    ("vgg_s", "l2"): Printed((0.098, 0.091, 0.095, 0.091, 0.093, 0.094), 0.094, 93.1),
    ("vgg_s", "uniform_l2"): Printed((0.137, 0.118, 0.135, 0.119, 0.148, 0.133), 0.132, 94.9),
}
"""Tables 3 and 5."""


class Norms(NamedTuple):
    """One row of table 4."""

    l1: float
    l2: float
    improvement: float


L1_AGAINST_L2: dict[str, Norms] = {
    "alexnet": Norms(0.096, 0.095, 0.001),
    "vgg16": Norms(0.099, 0.096, 0.003),
    "vgg_m": Norms(0.095, 0.095, 0.000),
    "vgg_s": Norms(0.095, 0.094, 0.001),
}
"""Table 4."""

EPOCHS_TO_CONVERGE = {"gradient": 115, "uniform": 50}
"""Section 5.3, AlexNet: `around`, read off figures 7 and 8."""


class Zhang(NamedTuple):
    """One comparison of Zhang et al.: the original network and the interpretable one."""

    original: float
    interpretable: float


ZHANG: dict[str, dict[str, Zhang]] = {
    "voc_instability": {
        "alexnet": Zhang(0.140, 0.088),
        "vgg16": Zhang(0.139, 0.096),
        "vgg_m": Zhang(0.141, 0.088),
        "vgg_s": Zhang(0.139, 0.089),
    },
    "voc_accuracy": {
        "alexnet": Zhang(95.40, 93.93),
        "vgg16": Zhang(98.66, 95.39),
        "vgg_m": Zhang(96.82, 94.17),
        "vgg_s": Zhang(97.74, 95.47),
    },
    "voc_several_accuracy": {
        "vgg16": Zhang(97.97, 98.50),
        "vgg_m": Zhang(93.88, 96.19),
        "vgg_s": Zhang(94.05, 96.78),
    },
    "ilsvrc_instability": {
        "alexnet": Zhang(0.146, 0.091),
        "vgg16": Zhang(0.144, 0.085),
        "vgg_m": Zhang(0.147, 0.090),
        "vgg_s": Zhang(0.145, 0.090),
    },
    "cub_instability": {
        "alexnet": Zhang(0.150, 0.070),
        "vgg16": Zhang(0.137, 0.076),
        "vgg_m": Zhang(0.148, 0.065),
        "vgg_s": Zhang(0.148, 0.073),
    },
    "voc_part_interpretability": {
        "alexnet": Zhang(0.348, 0.654),
        "vgg16": Zhang(0.495, 0.770),
        "vgg_m": Zhang(0.357, 0.708),
        "vgg_s": Zhang(0.257, 0.390),
    },
}
"""Data and measure -> network -> numbers; one category but for `voc_several_accuracy` (logistic loss)."""
