"""What a network says of one image: its scores, and of each filter that fires where it fires and what it follows.

Positions in an image are x, y in pixels, 0 the center of the first pixel; edges of boxes are counted from the image's
upper left corner, so that the whole image is 0, 0, width, height, as in a table of one's own photographs.

Symbols: N images, L categories, C filters, n x n cells, S x S pixels of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ipcnn_ray.core.classification import Form
from ipcnn_ray.core.crop_place import CropPlace, Edges
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.receptive_field import Field, peak_positions


@dataclass(frozen=True)
class KnownFilter:
    """What training measured of a filter."""

    category: str | None
    """The category whose images activate it the most."""
    landmark: str | None = None
    """The landmark that it follows; None when it follows none."""
    tracking: float | None = None
    """Its landmark tracking: see `LandmarkTracking`. None when it could not be measured."""
    offset: tuple[float, float] | None = None
    """Mean of landmark - peak, (row, col), shares of the crop's side; None when it was not recorded."""
    offset_deviation: tuple[float, float] | None = None
    """Standard deviation of landmark - peak, by axis."""


UNKNOWN = KnownFilter(None)


@dataclass(frozen=True)
class ExplanationContext:
    """What turns the output of a network into an explanation."""

    categories: Sequence[str]
    form: Form
    """Of the classification loss."""
    fields: Mapping[str, Field]
    """Receptive fields of each interpretable layer, lowest layer first."""
    known: Mapping[str, Sequence[KnownFilter]]
    """The filters of each layer; without those of a layer, only what the image shows is told."""


@dataclass(frozen=True)
class Score:
    """The score of one category for an image."""

    logit: float
    """Positive when the network finds the category, unless the categories exclude each other."""
    probability: float
    """Sigmoid of the logit; softmax over the categories where they were trained to exclude each other. As the network
    was trained to say it: it is not calibrated."""


@dataclass(frozen=True)
class FiringFilter:
    """A filter that fires in an image: its activation is above 0. Positions are pixels, 0 the center of the first."""

    layer: str
    """Its interpretable layer."""
    filter: int
    """Its index in the layer, from 0."""
    activation: float
    """Value of its map at the peak, before the mask."""
    x: float
    """Center of the receptive field of its peak, column in the image."""
    y: float
    """The same, row in the image."""
    crop_x: float
    """The same, column in the crop that the network saw."""
    crop_y: float
    """The same, row in the crop."""
    field: Edges
    """The receptive field of its peak: xmin, ymin, xmax, ymax in the image, cut at the crop."""
    category: str | None
    """The category whose images activated it the most in training; None when it was not recorded."""
    landmark: str | None
    """The landmark that it followed in training; None when it followed none."""
    tracking: float | None
    """Its landmark tracking in training, 1 at a fixed offset, 0 as a constant; None when it was not measured."""
    landmark_x: float | None
    """Where it says that its landmark is: its peak and the mean offset from it in training. Column in the image; None
    where it follows none, and of runs that did not record offsets."""
    landmark_y: float | None
    """The same, row in the image."""
    landmark_x_deviation: float | None
    """Standard deviation of this column in training, pixels of the image."""
    landmark_y_deviation: float | None
    """Standard deviation of this row."""


@dataclass(frozen=True)
class Explanation:
    """What a network says of one image, and of each filter that fires where it fires and what it follows."""

    image: str
    """Path of the image; empty for one that was given as pixels."""
    width: int
    """Of the image, pixels; turned by its EXIF orientation where the images of the training were."""
    height: int
    """Of the image, pixels."""
    box: Edges
    """The part of the image that the network saw: xmin, ymin, xmax, ymax, 0 the left or upper edge of the image."""
    crop_size: int
    """Side of the square crop that this part was scaled to, pixels."""
    scores: Mapping[str, Score]
    """By category."""
    decision: tuple[str, ...]
    """Categories that the image shows: those with a positive logit, or the one with the largest where they exclude each
    other."""
    filters: tuple[FiringFilter, ...]
    """Those that fire: of the highest layer first, within a layer from the largest activation to the smallest."""

    def strongest(self, count: int) -> tuple[FiringFilter, ...]:
        """Return the first `count` filters of each layer."""
        layers = dict.fromkeys(fired.layer for fired in self.filters)
        return tuple(fired for layer in layers for fired in [one for one in self.filters if one.layer == layer][:count])

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it; the keys are the names of the fields."""
        return {**asdict(self), "box": list(self.box), "decision": list(self.decision), "filters": self._filters_json()}

    def _filters_json(self) -> list[dict[str, Any]]:
        return [{**asdict(fired), "field": list(fired.field)} for fired in self.filters]


def decision_label(decision: Sequence[str]) -> str:
    """Return a decision as text: `none` for none of the categories."""
    return ", ".join(decision) or "none"


def explain(
    logits_NL: Tensor, maps: Mapping[str, Tensor], places: Sequence[tuple[str, CropPlace]], context: ExplanationContext
) -> list[Explanation]:
    """Return the explanation of each of N images.

    Args:
        logits_NL: Scores of the categories, [N, L].
        maps: Of each interpretable layer, [N, C, n, n], before ReLU and mask: those of which location instability and
            landmark tracking are measured.
        places: Path of each image, and where its crop lies in it.
        context: What is known of the network.
    """
    logits_NL = logits_NL.double().cpu()
    probabilities_NL = logits_NL.softmax(1) if context.form == "softmax" else logits_NL.sigmoid()
    filters_N: list[list[FiringFilter]] = [[] for _ in places]
    for layer in reversed(list(context.fields)):
        for filters, fired in zip(filters_N, _firing(layer, maps[layer], places, context), strict=True):
            filters += fired
    explanations = []
    rows = zip(places, logits_NL, probabilities_NL, filters_N, strict=True)
    for (image, place), logits_L, probabilities_L, filters in rows:
        pairs = zip(logits_L.tolist(), probabilities_L.tolist(), strict=True)
        scores = {name: Score(*pair) for name, pair in zip(context.categories, pairs, strict=True)}
        best = context.categories[int(logits_L.argmax())]
        shown = tuple(name for name, score in scores.items() if score.logit > 0)
        decision = (best,) if context.form == "softmax" else shown
        explanations.append(
            Explanation(image, place.width, place.height, place.edges, place.side, scores, decision, tuple(filters))
        )
    return explanations


def _firing(
    layer: str, maps_NCHW: Tensor, places: Sequence[tuple[str, CropPlace]], context: ExplanationContext
) -> list[list[FiringFilter]]:
    """Return the filters of a layer that fire in each image, the strongest first; among equals by number."""
    field, known = context.fields[layer], context.known.get(layer) or [UNKNOWN] * maps_NCHW.shape[1]
    cell_NC, activation_NC = peak_NC(maps_NCHW).cpu(), maps_NCHW.amax((2, 3)).cpu()
    peaks_NC2 = peak_positions(cell_NC, field, maps_NCHW.shape[-1]).tolist()
    order_NC = activation_NC.argsort(dim=1, descending=True, stable=True).tolist()
    return [
        [_fired(layer, c, activation_C[c], peaks_C2[c], place, field, known[c]) for c in order_C if activation_C[c] > 0]
        for (_, place), activation_C, peaks_C2, order_C in zip(
            places, activation_NC.tolist(), peaks_NC2, order_NC, strict=True
        )
    ]


def _fired(
    layer: str,
    c: int,
    activation: float,
    peak: Sequence[float],
    place: CropPlace,
    field: Field,
    known: KnownFilter,
) -> FiringFilter:
    """peak: (row, col) in pixels of the crop."""
    row, col = peak
    x, y = place.in_image(col, row)
    position: tuple[float | None, float | None] = (None, None)
    deviation: tuple[float | None, float | None] = (None, None)
    if known.landmark and known.offset and known.offset_deviation:
        position = place.in_image(col + known.offset[1] * place.side, row + known.offset[0] * place.side)
        xmin, ymin, xmax, ymax = place.edges
        deviation = (known.offset_deviation[1] * (xmax - xmin), known.offset_deviation[0] * (ymax - ymin))
    box = _field_in_image(row, col, field, place)
    of_training = (known.category, known.landmark, known.tracking)
    return FiringFilter(layer, c, activation, x, y, col, row, box, *of_training, *position, *deviation)


def _field_in_image(row: float, col: float, field: Field, place: CropPlace) -> Edges:
    """The receptive field of a cell, cut at the crop, as edges in the image."""
    xmin, ymin, xmax, ymax = place.edges
    across, down = (xmax - xmin) / place.side, (ymax - ymin) / place.side
    left, right = (min(max(col + 0.5 + sign * field.size / 2, 0), place.side) for sign in (-1, 1))
    upper, lower = (min(max(row + 0.5 + sign * field.size / 2, 0), place.side) for sign in (-1, 1))
    return xmin + left * across, ymin + upper * down, xmin + right * across, ymin + lower * down
