"""From what a finished run does on its images to what is drawn and listed of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ipcnn_ray.report.filter_figures import TILES, FilterView, RankedFilter
from ipcnn_ray.report.receptive_field_figure import RunColumn
from ipcnn_ray.train.filter_activations import FilterActivations

ROWS = 6
"""Images in a picture of receptive fields."""


def ranked(sight: FilterActivations) -> list[RankedFilter]:
    """All filters of the layer from stable to unstable; those that could not be measured come last, by number."""
    per_filter_C, fires_C = sight.instability.per_filter_C.tolist(), sight.fires_NC.sum(0).tolist()
    found = []
    for place, c in enumerate(sight.order()):
        distances = sight.distances(c)
        found.append(
            RankedFilter(
                rank=place + 1 if math.isfinite(per_filter_C[c]) else None,
                number=c,
                category=sight.store.categories[int(sight.instability.category_C[c])],
                instability=per_filter_C[c],
                mean_K=distances.mean_K.numpy(),
                deviation_K=distances.deviation_K.numpy(),
                images_K=distances.counted_NK.sum(0).numpy(),
                fires=fires_C[c],
            )
        )
    return found


def measured(filters: Sequence[RankedFilter]) -> list[RankedFilter]:
    """Those that could be measured."""
    return [one for one in filters if one.rank is not None]


def spread(filters: Sequence[RankedFilter], count: int) -> list[RankedFilter]:
    """At most `count` of the filters that could be measured, evenly spread, the first and the last among them."""
    return _spread(measured(filters), count)


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly spread, the first and the last among them."""
    last, gaps = len(values) - 1, max(1, min(count, len(values)) - 1)
    return [values[place] for place in sorted({round(last * gap / gaps) for gap in range(min(count, len(values)))})]


def view(sight: FilterActivations, one: RankedFilter, filters: Sequence[RankedFilter], title: str) -> FilterView:
    """A filter and its strongest images among those that enter its instability."""
    c, distances, own = one.number, sight.distances(one.number), sight.own_images(one.number)
    activation_N = sight.activation_NC[own, c]
    order = [i for i in activation_N.argsort(descending=True, stable=True).tolist() if distances.counted_NK[i].any()]
    shown = order[:TILES]
    positions = own[shown].tolist()
    numbers = sight.image_N[positions]
    names = sight.store.landmark_names
    total = len(sight.image_N)
    return FilterView(
        run=title,
        layer=sight.layer,
        number=c,
        rank=one.rank or 0,
        ranked=len(measured(filters)),
        instability=one.instability,
        fires=(
            f"A cell is above the filter's top 0.5 % in {one.fires} of {total} images."
            if one.fires
            else "After ReLU and mask the filter is zero in every image: a peak is where it is least low."
        ),
        landmark_names=names,
        image_names=tuple(sight.store.names[number] for number in numbers),
        images_ISS3=sight.crops(positions),
        activation_I=activation_N[shown].numpy(),
        peak_I2=sight.peaks_NC2[positions, c].numpy(),
        landmarks_IK2=sight.store.landmarks_NK2[numbers],
        distance_IK=distances.distance_NK[shown].numpy(),
        counted_K=tuple(
            distances.distance_NK[[i for i in order if distances.counted_NK[i, k]], k].numpy()
            for k in range(len(names))
        ),
        mean_K=one.mean_K,
        deviation_K=one.deviation_K,
    )


def distance_rows(
    sight: FilterActivations, filters: Sequence[RankedFilter]
) -> list[tuple[int, str, float, float, float, str, float, bool]]:
    """Every known distance of some filters, image by image in the order of the store."""
    rows = []
    for one in filters:
        c, distances, own = one.number, sight.distances(one.number), sight.own_images(one.number)
        for i, position in enumerate(own.tolist()):
            image = sight.store.names[int(sight.image_N[position])]
            where = (float(sight.activation_NC[position, c]), *sight.peaks_NC2[position, c].tolist())
            for k, name in enumerate(sight.store.landmark_names):
                if not distances.distance_NK[i, k].isnan():
                    counted = bool(distances.counted_NK[i, k])
                    rows.append((c, image, *where, name, float(distances.distance_NK[i, k]), counted))
    return rows


def of_each(filters: Sequence[RankedFilter], which: str) -> RankedFilter:
    """The filter that stands for a run: the most stable or the median one of those that fire in more images than a
    picture has rows; of all that could be measured, where none does."""
    able = measured(filters)
    firing = [one for one in able if one.fires > ROWS] or able
    return firing[0] if which == "stable" else firing[len(firing) // 2]


def images_for(sights: Sequence[FilterActivations], chosen: Sequence[RankedFilter]) -> list[int]:
    """Positions of the images of a picture, the same for all runs: evenly spread over those in which the most of the
    chosen filters fire."""
    fires = [sight.fires_NC[:, one.number].tolist() for sight, one in zip(sights, chosen, strict=True)]
    firing = [sum(runs) for runs in zip(*fires, strict=True)]
    found: list[int] = []
    for many in sorted(set(firing), reverse=True):
        found += _spread([i for i, here in enumerate(firing) if here == many], ROWS - len(found))
    return sorted(found)


def column(sight: FilterActivations, one: RankedFilter, positions: Sequence[int], title: str) -> RunColumn:
    """A run in a picture of receptive fields."""
    regions_ISS = sight.regions([one.number], positions)[:, 0]
    return RunColumn(title, one.number, one.instability, one.fires, regions_ISS)
