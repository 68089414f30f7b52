"""Measures of interpretability beside location instability: one file each, tensors in, one number per filter out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FilterMeasure:
    """What a measure says of each filter of a layer."""

    per_filter_C: Tensor
    """float64; NaN for a filter that could not be measured."""

    @property
    def mean(self) -> float:
        """Over the filters that could be measured; NaN when none could."""
        return float(self.per_filter_C.nanmean())

    @property
    def dropped(self) -> int:
        """Filters that could not be measured."""
        return int(self.per_filter_C.isnan().sum())


def of_own_category(take: Callable[[Tensor], FilterMeasure], label_N: Tensor, own_C: Tensor) -> FilterMeasure:
    """A measure of each filter over the images of its own category.

    take: the measure of all filters over the images of a [N] bool mask. label_N: category of each image. own_C:
    category of each filter. With one category, that is the measure over all its images.
    """
    per_filter_C = torch.full((len(own_C),), torch.nan, dtype=torch.float64)
    for one in sorted(set(own_C.tolist())):
        per_filter_C = torch.where(own_C == one, take(label_N == one).per_filter_C.cpu(), per_filter_C)
    return FilterMeasure(per_filter_C)


def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError when a tensor has another shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {list(shape)}")
