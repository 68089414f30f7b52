"""What MLflow accepts in one value and in one call (mlflow/utils/validation.py, version 3.17)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

PARAM_LENGTH, TAG_LENGTH, EXPERIMENT_TAG_LENGTH = 6000, 8000, 5000
"""Characters."""
PARAMS_PER_CALL, TAGS_PER_CALL, METRICS_PER_CALL = 100, 100, 1000


def shortened(text: str, length: int) -> str:
    """The text, or its beginning with the number of its characters where it has more than `length`."""
    if len(text) <= length:
        return text
    end = f" ... ({len(text)} characters in all)"
    return text[: length - len(end)] + end


def parts(values: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of at most `size` values."""
    for first in range(0, len(values), size):
        yield values[first : first + size]
