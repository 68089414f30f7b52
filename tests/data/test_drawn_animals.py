from __future__ import annotations

import numpy as np
import pytest
from fakes.drawings import draw

from ipcnn_ray.data.datasets.drawn.bodies import PLANS, Poser, contains
from ipcnn_ray.data.datasets.drawn.drawn_animals import LANDMARKS, DrawnAnimals
from ipcnn_ray.data.datasets.drawn.scene import HEAD, SCATTERED, Canvas, _crop, _generator, _landmark, _Scene

SIZE = 48


def spec(**fields) -> DrawnAnimals:
    return DrawnAnimals(kind="drawn_animals", **{"objects": 12, "negatives": 10, **fields})


def test_an_image_depends_on_its_number_and_the_seed_alone():
    small, large = draw(spec(), SIZE), draw(spec(objects=20, negatives=14), SIZE)
    assert np.array_equal(small.images_N3SS[:12], large.images_N3SS[:12])
    assert np.array_equal(small.images_N3SS[12:22], large.images_N3SS[20:30])
    drawn = spec().draw(7, SIZE)
    image, landmarks = drawn.pixels, drawn.landmarks_K2
    assert np.array_equal(image.transpose(2, 0, 1), small.images_N3SS[7])
    assert np.array_equal(landmarks, small.landmarks_NK2[7], equal_nan=True)
    other = spec(drawing_seed=1).draw(7, SIZE).pixels
    assert not np.array_equal(image, other)
    negative, next_negative = (spec().draw(12 + i, SIZE).pixels for i in range(2))
    assert not np.array_equal(negative, next_negative) and not np.array_equal(negative, spec().draw(0, SIZE).pixels)


@pytest.mark.parametrize("category", PLANS)
def test_landmarks_lie_in_the_image(category):
    drawn = draw(spec(category=category, landmarks=("head", "neck", "torso", "nose")), SIZE)
    seen = drawn.landmarks_NK2[:12]
    assert ((seen >= -0.5) & (seen <= SIZE - 0.5) | np.isnan(seen)).all()
    assert np.isfinite(seen[:, 2]).any(), "a torso is mostly seen"
    assert np.isnan(drawn.landmarks_NK2[12:]).all()
    assert drawn.labels_N.tolist() == [0] * 12 + [-1] * 10


@pytest.mark.parametrize("category", PLANS)
def test_the_table_has_the_landmarks_of_each_pose(category):
    for seed in range(20):
        figure = Poser(category, _generator(seed)).pose()
        assert set(figure.landmarks) == set(LANDMARKS[category])


def test_more_landmarks_change_nothing_of_the_image():
    few, many = spec().draw(3, SIZE), spec(landmarks=("tail", *LANDMARKS["cow"][:3])).draw(3, SIZE)
    assert np.array_equal(few.pixels, many.pixels)
    assert np.array_equal(few.landmarks_K2, many.landmarks_K2[1:], equal_nan=True)


def test_some_landmarks_are_hidden_and_heads_look_both_ways():
    landmarks = np.stack([spec(objects=80).draw(i, SIZE).landmarks_K2 for i in range(60)])
    assert 0.005 < np.isnan(landmarks[:, :, 0]).mean() < 0.4
    left = landmarks[:, 0, 1] < landmarks[:, 2, 1]
    assert 10 < left.sum() < 50


def test_a_picture_too_small_for_an_animal():
    with pytest.raises(ValueError, match="size = 8 pixels: an animal needs at least 16"):
        draw(spec(), 8)


def test_a_landmark_is_the_centre_of_what_is_left_of_the_parts_box():
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert _landmark(square * 0.2 + 0.2, []) == pytest.approx([0.3, 0.3])
    assert _landmark(square * 0.4 - (0.2, 0.0), []) == pytest.approx([0.1, 0.2]), "half of it is in the image"
    assert _landmark(square * 0.4 - (0.3, 0.0), []) is None, "a quarter of it is in the image"
    assert _landmark(square * 0.2 + 0.2, [square * 0.04 + 0.28]) is None, "its centre is covered"
    assert _landmark(square * 0.2 + 0.2, [square * 0.04 + 0.20]) is not None, "only its corner is covered"


@pytest.mark.parametrize(
    ("category", "names"),
    [
        ("cow", ("head", "neck", "torso", "nose")),
        ("cow", ("front_leg", "hind_leg", "ear")),
        ("dog", ("front_leg", "hind_leg", "ear")),
        ("bird", ("leg", "wing", "tail")),
    ],
)
def test_landmarks_lie_on_the_drawn_part(category, names):
    on = []
    for index in range(60):
        landmarks = spec(category=category, objects=60, landmarks=names).draw(index, SIZE).landmarks_K2
        rng = _generator(0, 1, index)
        figure = Poser(category, rng).pose()
        place = _crop(figure, rng)
        for name, at in zip(names, landmarks, strict=True):
            if np.isfinite(at).all():
                on.append(contains(place(figure.landmarks[name]), (at[::-1] + 0.5) / SIZE))
    assert len(on) > 38 * len(names)
    assert np.mean(on) > 0.93, "all but parts of which the image cuts off most, and folded legs"


def test_the_same_scene_is_drawn_at_every_size():
    one, other = spec().draw(3, 32), spec().draw(3, 64)
    (small, at), (large, at_large) = (one.pixels, one.landmarks_K2), (other.pixels, other.landmarks_K2)
    assert np.allclose((at + 0.5) / 32, (at_large + 0.5) / 64, atol=1e-6, equal_nan=True)
    assert np.abs(large.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).mean() < 8


def test_images_without_an_animal_show_nothing_of_a_head(monkeypatch):
    assert {"head", "snout", "nose", "ear", "eye", "horn"}.isdisjoint(SCATTERED)
    shown = []
    monkeypatch.setattr(Canvas, "part", lambda self, part: shown.append(part.name))
    for index in range(60):
        spec(negatives=60).draw(12 + index, SIZE)
    assert {"torso", "leg", "stone", "occluder"} <= set(shown) <= {*SCATTERED, "stone", "occluder"}


def parts_shown(monkeypatch, draw_one, count=120):
    """Names of the parts that each of some images shows."""
    shown: list[set[str]] = []
    monkeypatch.setattr(Canvas, "part", lambda self, part: shown[-1].add(part.name))
    for index in range(count):
        shown.append(set())
        draw_one(index)
    return shown


@pytest.mark.parametrize(("shows", "share"), [("limbs", 0.0), ("heads", 0.6), ("incomplete", 0.3 + 0.5 * 3 / 4)])
def test_how_many_images_without_an_animal_show_a_head(monkeypatch, shows, share):
    negatives = spec(negatives=120, negatives_show=shows)
    shown = parts_shown(monkeypatch, lambda index: negatives.draw(12 + index, SIZE))
    assert np.mean(["head" in names for names in shown]) == pytest.approx(share, abs=0.1)


def test_an_incomplete_animal_lacks_a_part_and_all_of_it(monkeypatch):
    def draw_one(index):
        _Scene(SIZE, np.random.default_rng(index), "cow").incomplete()

    kinds = {"head": 0, "torso": 0, "legs": 0, "body": 0}
    for names in parts_shown(monkeypatch, draw_one):
        lacking = {
            "head": names.isdisjoint(HEAD) and {"torso", "leg", "neck", "tail"} <= names,
            "torso": "torso" not in names and {"head", "leg", "neck", "tail"} <= names,
            "legs": names.isdisjoint({"leg", "hoof"}) and {"head", "torso", "neck", "tail"} <= names,
            "body": bool(names) and names <= set(HEAD) | {"patch"} and {"head", "nose", "eye"} <= names,
        }
        assert sum(lacking.values()) == 1, names
        for kind, holds in lacking.items():
            kinds[kind] += holds
    assert all(18 < count < 45 for count in kinds.values()), kinds


def test_negatives_with_parts_have_no_landmarks_and_another_store():
    stores = [draw(spec(negatives_show=shows), SIZE) for shows in ("limbs", "heads", "incomplete")]
    assert all(np.isnan(store.landmarks_NK2[12:]).all() for store in stores)
    assert all(np.array_equal(store.images_N3SS[:12], stores[0].images_N3SS[:12]) for store in stores)
    assert len({store.images_N3SS.tobytes() for store in stores}) == 3


def test_several_animals_come_one_after_the_other():
    several = spec(category=["cow", "bird"], negatives=10)
    drawn = draw(several, SIZE)
    assert drawn.labels_N.tolist() == [0] * 12 + [1] * 12 + [-1] * 10
    assert (drawn.names[0], drawn.names[12], drawn.names[24]) == ("cow-00000", "bird-00000", "negative-00000")
    other = draw(spec(category=["dog", "bird"], negatives=0), SIZE)
    assert np.array_equal(drawn.images_N3SS[12:24], other.images_N3SS[12:24]), "a bird is the same beside a dog"
    assert not np.array_equal(drawn.images_N3SS[0], drawn.images_N3SS[12])
    assert np.isnan(drawn.landmarks_NK2[24:]).all() and not np.isnan(drawn.landmarks_NK2[12:24]).all()


def test_parts_have_the_size_and_mask_of_their_outline():
    """Of the head, its box by hand from the same pose; its mask is centred on the box and fills most of it."""
    for index in range(12):
        animal = spec(landmarks=("head", "torso")).draw(index, 64)
        rng = _generator(0, 1, index)
        figure = Poser("cow", rng).pose()
        place = _crop(figure, rng)
        for k, name in enumerate(("head", "torso")):
            outline = np.clip(place(figure.landmarks[name]), 0, 1)
            size = outline.max(axis=0) - outline.min(axis=0)
            patch = animal.masks[k]
            if patch is None:
                assert np.isnan(animal.sizes_K2[k]).all() and np.isnan(animal.landmarks_K2[k]).all()
                continue
            assert animal.sizes_K2[k] == pytest.approx(size[::-1], abs=1e-6)
            rows, cols = np.nonzero(patch > 0.5)
            assert np.array([np.ptp(rows), np.ptp(cols)]) / 32 == pytest.approx(size[::-1], abs=2 / 32)
            assert [rows.min() + rows.max(), cols.min() + cols.max()] == pytest.approx([64, 64], abs=2)
