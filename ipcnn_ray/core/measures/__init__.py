"""Measures of interpretability beside location instability: one file each, tensors in, one number per filter out."""

from __future__ import annotations

from dataclasses import dataclass

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


def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError when a tensor has another shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {list(shape)}")
