from __future__ import annotations

import numpy as np
import pytest

from ipcnn_ray.data.split import items, items_of_categories, items_once, share_in_training, train_indices


def matlab_round(x: float) -> int:
    return int(np.floor(x + 0.5))


def released(objects: int, negatives: int, share: float, positive_share: float) -> tuple[list, list]:
    """`getImdb` step by step, with MATLAB's 1-based lists: the slow twin."""
    wanted = matlab_round(positive_share / (1 - positive_share) * negatives)
    repeats = int(np.ceil(wanted / (2 * objects)))
    linspace = [matlab_round(x) for x in np.linspace(1, objects, matlab_round(objects * share))]
    pairs = [k for i in linspace for k in (2 * i - 1, 2 * i)]
    trained = {k + r * 2 * objects for r in range(repeats) for k in pairs if k + r * 2 * objects <= wanted}
    trained |= {matlab_round(x) + wanted for x in np.linspace(1, negatives, matlab_round(negatives * share))}
    flips = [(i, flip) for i in range(objects) for flip in (0, 1)]
    data = (flips * repeats)[:wanted] + [(objects + j, 0) for j in range(negatives)]
    train = [item for k, item in enumerate(data, start=1) if k in trained]
    return train, [item for k, item in enumerate(data, start=1) if k not in trained]


@pytest.mark.parametrize(
    ("objects", "negatives", "share", "positive_share"),
    [(194, 1000, 0.9, 0.75), (559, 1000, 0.9, 0.75), (7, 5, 0.5, 0.75), (40, 10, 0.75, 0.5), (3, 40, 0.67, 0.8)],
)
def test_the_split_is_the_released_one(objects, negatives, share, positive_share):
    train, validation = items(objects, negatives, share, positive_share)
    expected_train, expected_validation = released(objects, negatives, share, positive_share)
    assert train.tolist() == [list(item) for item in expected_train]
    assert validation.tolist() == [list(item) for item in expected_validation]


def test_voc_cow_has_the_released_sizes():
    train, validation = items(194, 1000, 0.9, 0.75)
    assert len(train) + len(validation) == 4000
    assert (train[:, 0] >= 194).sum() == 900
    assert (validation[:, 0] >= 194).sum() == 100


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [
        (5, 0.5, [0, 2, 4]),  # round(2.5) = 3, half away from zero; linspace 1 3 5
        (6, 0.5, [0, 3, 5]),  # linspace 1 3.5 6 -> 1 4 6: 3.5 rounds to 4
        (4, 0.25, [3]),  # MATLAB's linspace(1, 4, 1) is 4
        (4, 0.1, []),
    ],
)
def test_indices_by_hand(n, share, expected):
    assert train_indices(n, share) == expected


def test_without_repeats_every_item_is_there_once():
    train, validation = items_of_categories([10], 4, 0.75, repeat=False)
    both = sorted(map(tuple, np.concatenate([train, validation]).tolist()))
    assert both == sorted([(i, flip) for i in range(10) for flip in (0, 1)] + [(10 + j, 0) for j in range(4)])


def test_both_mirror_images_of_an_object_are_in_the_same_split():
    train, validation = items(37, 20, 0.6, 0.75)
    assert not set(train[:, 0].tolist()) & set(validation[:, 0].tolist())


def produced(objects_L: list[int], share: float) -> tuple[list, list]:
    """`produceIMDB` step by step, 1-based: the slow twin."""
    least, most = (100, 400) if len(objects_L) > 10 else (1500, 1000000)
    data, first = [], 0
    for objects in objects_L:
        mine = [(first + i, flip) for i in range(objects) for flip in (0, 1)]
        if len(mine) < least:
            mine = (mine * int(np.ceil(least / len(mine))))[:least]
        data += mine[: min(len(mine), most)]
        first += objects
    trained = {matlab_round(x) for x in np.linspace(1, len(data), matlab_round(len(data) * share))}
    train = [item for k, item in enumerate(data, start=1) if k in trained]
    return train, [item for k, item in enumerate(data, start=1) if k not in trained]


@pytest.mark.parametrize("objects_L", [[194, 559, 900], [60] * 11, [30, 250, 199] * 4])
def test_several_categories_by_items_are_split_as_released(objects_L):
    found = items_of_categories(objects_L, 0, 0.9, repeat=True, split="items")
    for part, expected in zip(found, produced(objects_L, 0.9), strict=True):
        assert part.tolist() == [list(item) for item in expected]


def test_several_categories_by_objects_have_the_same_items_and_share_no_object():
    objects_L = [30, 250, 199]
    train, validation = items_of_categories(objects_L, 20, 0.9, repeat=True)
    assert not set(train[:, 0].tolist()) & set(validation[:, 0].tolist())
    trained_items, others = produced(objects_L, 0.9)
    released_items = [*trained_items, *others] + [(479 + j, 0) for j in range(20)]
    assert sorted(map(tuple, np.concatenate([train, validation]).tolist())) == sorted(released_items)
    trained = {int(i) for i in train[:, 0]}
    for first, count in ((0, 30), (30, 250), (280, 199), (479, 20)):
        assert {i - first for i in trained if first <= i < first + count} == set(train_indices(count, 0.9))


def test_each_crop_once_and_each_object_mirrored_too():
    in_training = share_in_training([3, 2, 4], 0.5)
    # round(linspace(1, n, round(n / 2))): 1 3 of 3, the last of 2, 1 4 of 4
    assert in_training == [True, False, True, False, True, True, False, False, True]
    train, validation = items_once(in_training, 5, mirror=True)
    assert train.tolist() == [[i, flip] for i in (0, 2, 4) for flip in (0, 1)] + [[5, 0], [8, 0]]
    assert validation.tolist() == [[i, flip] for i in (1, 3) for flip in (0, 1)] + [[6, 0], [7, 0]]
    assert items_once(in_training, 5, mirror=False)[0].tolist() == [[i, 0] for i in (0, 2, 4, 5, 8)]
