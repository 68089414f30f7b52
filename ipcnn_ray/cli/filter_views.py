"""Converts the filter activations of finished runs into what the filter figures and tables show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ipcnn_ray.report.filter_figures import TILES, FilterView, RankedFilter, RunColumn
from ipcnn_ray.train.filter_activations import FilterActivations

ROWS = 6
"""Images in a figure of receptive fields."""


def rank_filters(activations: FilterActivations) -> list[RankedFilter]:
    """All filters of the layer from stable to unstable; those that could not be measured come last, by number."""
    instability_C = activations.instability.per_filter_C.tolist()
    fires_C = activations.fires_NC.sum(0).tolist()
    filters = []
    for rank, c in enumerate(activations.order(), 1):
        distances = activations.distances(c)
        filters.append(
            RankedFilter(
                rank=rank if math.isfinite(instability_C[c]) else None,
                number=c,
                category=activations.store.categories[int(activations.instability.category_C[c])],
                instability=instability_C[c],
                mean_K=distances.mean_K.numpy(),
                deviation_K=distances.deviation_K.numpy(),
                images_K=distances.counted_NK.sum(0).numpy(),
                fires=fires_C[c],
            )
        )
    return filters


def measured_filters(filters: Sequence[RankedFilter]) -> list[RankedFilter]:
    """The filters that could be measured."""
    return [ranked for ranked in filters if ranked.rank is not None]


def evenly_spaced(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` values at even intervals, including the first and the last."""
    last, gaps = len(values) - 1, max(1, min(count, len(values)) - 1)
    return [values[i] for i in sorted({round(last * gap / gaps) for gap in range(min(count, len(values)))})]


def filter_view(
    activations: FilterActivations, ranked: RankedFilter, filters: Sequence[RankedFilter], run: str
) -> FilterView:
    """A filter and its strongest images among those that enter its instability."""
    c, store = ranked.number, activations.store
    distances, own = activations.distances(c), activations.own_images(c)
    activation_N = activations.activation_NC[own, c]
    order = [i for i in activation_N.argsort(descending=True, stable=True).tolist() if distances.counted_NK[i].any()]
    shown = order[:TILES]
    positions = own[shown].tolist()
    numbers = activations.image_N[positions]
    return FilterView(
        run=run,
        layer=activations.layer,
        number=c,
        rank=ranked.rank or 0,
        ranked=len(measured_filters(filters)),
        instability=ranked.instability,
        fires=(
            f"A cell is above the filter's top 0.5 % in {ranked.fires} of {len(activations.image_N)} images."
            if ranked.fires
            else "After ReLU and mask the filter is zero in every image: a peak is where it is least low."
        ),
        landmark_names=store.landmark_names,
        image_names=tuple(store.names[number] for number in numbers),
        images_ISS3=activations.crops(positions),
        activation_I=activation_N[shown].numpy(),
        peak_I2=activations.peaks_NC2[positions, c].numpy(),
        landmarks_IK2=store.landmarks_NK2[numbers],
        distance_IK=distances.distance_NK[shown].numpy(),
        counted_K=tuple(
            distances.distance_NK[[i for i in order if distances.counted_NK[i, k]], k].numpy()
            for k in range(len(store.landmark_names))
        ),
        mean_K=ranked.mean_K,
        deviation_K=ranked.deviation_K,
    )


def distance_rows(
    activations: FilterActivations, filters: Sequence[RankedFilter]
) -> list[tuple[int, str, float, float, float, str, float, bool]]:
    """Rows of `distances_csv`: every known distance of the filters, by image in the order of the store."""
    rows = []
    for c in (ranked.number for ranked in filters):
        distances = activations.distances(c)
        for i, position in enumerate(activations.own_images(c).tolist()):
            image = activations.store.names[int(activations.image_N[position])]
            activation = float(activations.activation_NC[position, c])
            row, col = activations.peaks_NC2[position, c].tolist()
            for k, landmark in enumerate(activations.store.landmark_names):
                distance, counted = float(distances.distance_NK[i, k]), bool(distances.counted_NK[i, k])
                if not math.isnan(distance):
                    rows.append((c, image, activation, row, col, landmark, distance, counted))
    return rows


def representative_filter(filters: Sequence[RankedFilter], which: str) -> RankedFilter:
    """The most stable (`which` is "stable") or the median filter of those that fire in more than ROWS images.

    If none does, all measured filters count.
    """
    measured = measured_filters(filters)
    firing = [ranked for ranked in measured if ranked.fires > ROWS] or measured
    return firing[0] if which == "stable" else firing[len(firing) // 2]


def common_images(runs: Sequence[FilterActivations], filters: Sequence[RankedFilter]) -> list[int]:
    """Positions of the images of a figure, the same for all runs, given one filter per run.

    Images in which more of the filters fire are preferred; among equals they are evenly spaced.
    """
    fires = [run.fires_NC[:, ranked.number].tolist() for run, ranked in zip(runs, filters, strict=True)]
    count_N = [sum(fires_R) for fires_R in zip(*fires, strict=True)]
    positions: list[int] = []
    for count in sorted(set(count_N), reverse=True):
        equal = [position for position, other in enumerate(count_N) if other == count]
        positions += evenly_spaced(equal, ROWS - len(positions))
    return sorted(positions)


def run_column(activations: FilterActivations, ranked: RankedFilter, positions: Sequence[int], title: str) -> RunColumn:
    """The column of a run in a figure of receptive fields."""
    regions_ISS = activations.regions([ranked.number], positions)[:, 0]
    return RunColumn(title, ranked.number, ranked.instability, ranked.fires, regions_ISS)
