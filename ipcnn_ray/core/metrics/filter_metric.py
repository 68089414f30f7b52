"""Base class of the metrics of interpretability: one number per filter of an interpretable layer, or one per layer.

Another package adds a metric with a subclass, and an entry point of the group ``ipcnn.metrics`` under its name;
CONTRIBUTING.md has an example.

The parameters of `update` and `compute` are what the metric needs: names of `UPDATE_INPUTS` and `COMPUTE_INPUTS`.
What no metric of a run needs is not computed.

Symbols: N images, C filters, K landmarks, n x n cells, S x S pixels; positions are (row, col) in pixels.
"""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ipcnn_ray.core.receptive_field import Field
from ipcnn_ray.utils.text import did_you_mean

Direction = Literal["higher", "lower"]
Images = Literal["own_category", "objects", "validation"]
"""The images that a metric is computed on. `own_category`: for each filter, the object images of the category that
activates it the most. `objects`: all object images. `validation`: the validation items, each once, with negatives."""

UPDATE_INPUTS = {
    "maps_NCHW": "maps after ReLU, before the mask",
    "masked_maps_NCHW": "maps that the layer passes on: after ReLU and mask",
    "threshold_C": "T_f: 0.5 % of a filter's masked cells over all images are above it; takes one more forward pass",
    "part_masks_NKSS": "bool, the pixels of the box around each part; needs data with part sizes",
}
"""Inputs of `FilterMetric.update`: tensors of a batch, on the device of the worker that holds its images."""
COMPUTE_INPUTS = {
    "state": "the results of `update` for all images, [N, ...]",
    "peaks_NC2": "float64, centre of the receptive field of each map's peak",
    "activation_NC": "value at the peak, before ReLU",
    "pooled_NC": "mean over the cells of each map after ReLU",
    "label_N": "int64, category of each image; -1 for a negative",
    "landmarks_NK2": "position of each landmark; NaN where the image does not show it",
    "parts_shown_NK": "bool, the box of the part is known; needs data with part sizes",
    "noisy_peaks_NC2": "`peaks_NC2` of the images with noise (`pixel_noise`); takes one more forward pass",
    "loss_change_NC": "float64, classification loss with the filter's map set to zero minus the loss as it is, nats; "
    "takes one more pass through the upper layers per filter; with `eval.ablation_filters`, of those filters only",
    "own_NC": "bool, the image is of the category that activates the filter the most",
    "in_training_N": "bool, the training split holds the image, mirrored or not",
    "tracking_CK": "float64, landmark tracking over the `eval.top_images` strongest images; NaN: see `Tracking`",
    "tracking_few_CK": "float64, the same over the `eval.few_images` strongest images",
    "tracking_shuffled_CRK": "float64, `tracking_CK` with the landmarks of R shuffles of the images",
}
"""Inputs of `FilterMetric.compute`: tensors of all images in the order of the items, the same on every worker; those of
`FILTER_INPUTS` are of all filters."""
FILTER_INPUTS = frozenset({"tracking_CK", "tracking_few_CK", "tracking_shuffled_CRK"})
"""Inputs of `compute` that are tensors of filters, each measured on the object images of its own category."""
OF_LANDMARKS = FILTER_INPUTS | {"landmarks_NK2", "parts_shown_NK", "part_masks_NKSS"}
"""Inputs that need data with landmarks."""


@dataclass(frozen=True)
class LayerContext:
    """What a metric knows of the layer that it measures, and the settings of `eval`."""

    image_size: int
    """Side S of an image, pixels."""
    map_side: int
    """Side n of a map, cells."""
    field: Field
    """Receptive fields of the cells."""
    top_images: int = 100
    """`eval.top_images`: number of images with the strongest activation that location instability takes."""
    instability: Literal["paper", "released"] = "paper"
    """`eval.instability`: how location instability chooses the category of a filter."""

    @property
    def diagonal(self) -> float:
        """Diagonal of an image, pixels."""
        return self.image_size * math.sqrt(2)


class FilterMetric(ABC):
    """A metric of interpretability. An instance measures one layer in one evaluation."""

    name: ClassVar[str]
    """In `eval.measures`, in objectives and constraints, and in the record."""
    unit: ClassVar[str]
    better: ClassVar[Direction]
    description: ClassVar[str]
    """What the number is, in one line."""
    images: ClassVar[Images] = "own_category"
    best: ClassVar[float | None] = None
    """The best value that the metric can have; None where there is no such value."""
    one_per_layer: ClassVar[bool] = False
    """Whether the metric is one number per layer, not one per filter."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise ValueError for a metric that is not complete."""
        super().__init_subclass__(**kwargs)
        for attribute in ("name", "unit", "description"):
            value = getattr(cls, attribute, None)
            if not isinstance(value, str) or not value or "\n" in value:
                raise ValueError(f"{cls.__name__}.{attribute} = {value!r}: expected one line of text")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", cls.name):
            raise ValueError(f"{cls.__name__}.name = {cls.name!r}: expected a name of a-z, 0-9 and _")
        for attribute, options in (("better", get_args(Direction)), ("images", get_args(Images))):
            value = getattr(cls, attribute, None)
            if value not in options:
                raise ValueError(f"{cls.__name__}.{attribute} = {value!r}: expected one of {', '.join(options)}")
        if cls.best is not None and not (isinstance(cls.best, int | float) and math.isfinite(cls.best)):
            raise ValueError(f"{cls.__name__}.best = {cls.best!r}: expected a finite number or None")
        inputs = (("update", cls.update_inputs(), UPDATE_INPUTS), ("compute", cls.compute_inputs(), COMPUTE_INPUTS))
        for method, given, known in inputs:
            for name in given:
                if name not in known:
                    expected = f"expected some of {', '.join(known)}.{did_you_mean(name, list(known))}"
                    raise ValueError(f"{cls.__name__}.{method} takes {name!r}: {expected}")
        if bool(cls.update_inputs()) != ("state" in cls.compute_inputs()):
            raise ValueError(f"{cls.__name__}: `update` and the input `state` of `compute` belong together")
        if cls.one_per_layer and cls._once_per_category():
            raise ValueError(f"{cls.__name__}: one number per layer cannot be of the images of each filter's category")

    def __init__(self, layer: LayerContext) -> None:
        self.layer = layer

    def update(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what `compute` needs of each image of a batch, as [N, ...]. A worker calls it with each batch of its
        images; the results are merged in the order of the items. Optional: without it, it is never called.

        Args:
            *args: Not used: a metric names its inputs, some of `UPDATE_INPUTS`.
            **kwargs: As *args.

        Raises:
            NotImplementedError: The metric has no `update`.
        """
        raise NotImplementedError

    @abstractmethod
    def compute(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return one number per filter, as [C] float64, NaN for a filter that cannot be measured; with `one_per_layer`,
        one number for the layer, as [1].

        Args:
            *args: Not used: a metric names its inputs, some of `COMPUTE_INPUTS`.
            **kwargs: As *args.
        """

    @classmethod
    def update_inputs(cls) -> tuple[str, ...]:
        """Names of the inputs of `update`; none where the metric has no `update`."""
        return () if cls.update is FilterMetric.update else _parameters(cls.update)

    @classmethod
    def compute_inputs(cls) -> tuple[str, ...]:
        """Names of the inputs of `compute`."""
        return _parameters(cls.compute)

    @classmethod
    def needs(cls) -> frozenset[str]:
        """Names of all inputs."""
        return frozenset(cls.update_inputs() + cls.compute_inputs())

    @classmethod
    def needs_landmarks(cls) -> bool:
        """Whether the data must have landmarks."""
        return bool(cls.needs() & OF_LANDMARKS)

    @classmethod
    def needs_part_sizes(cls) -> bool:
        """Whether the data must have the size of every part."""
        return bool(cls.needs() & {"part_masks_NKSS", "parts_shown_NK"})

    @classmethod
    def ablates(cls) -> bool:
        """Whether filters are set to zero, one after the other: `eval.ablation_filters` of them."""
        return "loss_change_NC" in cls.needs()

    @classmethod
    def _once_per_category(cls) -> bool:
        """Whether `compute` is called with the images of each category."""
        return cls.images == "own_category" and not set(cls.compute_inputs()) <= FILTER_INPUTS

    def measure(
        self, inputs: Mapping[str, Tensor], filters: int, *, label_N: Tensor, category_C: Tensor
    ) -> MetricResult:
        """Return the result of `compute`, with `images = "own_category"` called once for each category.

        inputs: the inputs of `compute`, with shapes as in `COMPUTE_INPUTS`, [N, ...]. filters: number of filters that
        are measured. label_N: category of each image. category_C: category of each filter.
        Raises ValueError when the result is not one number per filter, or per layer.
        """
        expected = 1 if self.one_per_layer else filters

        def checked(chosen: Mapping[str, Tensor]) -> Tensor:
            value = self.compute(**chosen)
            if not isinstance(value, Tensor) or value.shape != (expected,):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{type(self).__name__}.compute returns {shape}: expected a tensor of [{expected}]")
            return value.double().cpu()

        if not self._once_per_category():
            return MetricResult(checked(inputs))
        per_filter_C = torch.full((len(category_C),), torch.nan, dtype=torch.float64)
        for category in sorted(set(category_C.tolist())):
            mask_N = label_N == category
            of_category = {name: value if name in FILTER_INPUTS else value[mask_N] for name, value in inputs.items()}
            value_C = checked(of_category)
            per_filter_C = torch.where(category_C == category, value_C, per_filter_C)
        return MetricResult(per_filter_C)


@dataclass(frozen=True)
class MetricResult:
    """A metric of the filters of a layer, or of the layer."""

    per_filter_C: Tensor
    """float64; NaN for a filter that could not be measured. [1] for a metric of one number per layer."""

    @property
    def mean(self) -> float:
        """Mean over the filters that could be measured; NaN when none could."""
        return float(self.per_filter_C.nanmean())

    @property
    def dropped(self) -> int:
        """Number of filters that could not be measured."""
        return int(self.per_filter_C.isnan().sum())


def filter_category(pooled_NC: Tensor, label_N: Tensor, categories: Tensor) -> Tensor:
    """Category of each filter, one of `categories`: that whose images activate it the most on average, as [C].

    pooled_NC: mean (or sum) over the cells of each map after ReLU. label_N: category of each image.
    Among equal means the first category. Source: Zhang et al., CVPR 2018, section 3.2 (category of a filter).
    """
    mean_LC = torch.stack([pooled_NC[label_N == category].double().mean(0) for category in categories])
    return categories[mean_LC.nan_to_num(-torch.inf).argmax(0)]


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError when a tensor has another shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {list(shape)}")


def _parameters(method: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(method).parameters)[1:]
