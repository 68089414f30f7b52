"""Drawn animals: the dataset that needs no download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.datasets.dataset import Dataset, Progress
from ipcnn_ray.spec.data import Negatives, OneOrMore, Provided, in_training
from ipcnn_ray.spec.section import FieldIssue, Integer, OmitDefaultFromDigest, OpenShare, value_issue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ipcnn_ray.data.crop_store import StorePlan
    from ipcnn_ray.data.datasets.drawn.scene import DrawnImage

Landmark = Literal[
    "head", "neck", "torso", "nose", "tail", "ear", "horn", "front_leg", "hind_leg", "leg", "wing"
]  # fmt: skip
OF_ALL: tuple[Landmark, ...] = ("head", "neck", "torso", "nose", "tail")
OF_FOUR_LEGS: tuple[Landmark, ...] = (*OF_ALL, "ear", "front_leg", "hind_leg")
LANDMARKS: dict[str, tuple[Landmark, ...]] = {
    "bird": (*OF_ALL, "leg", "wing"),
    "cat": OF_FOUR_LEGS,
    "cow": (*OF_FOUR_LEGS, "horn"),
    "dog": OF_FOUR_LEGS,
    "horse": OF_FOUR_LEGS,
    "sheep": OF_FOUR_LEGS,
}
"""Landmarks of each animal. Of two legs, ears or horns it is the near one, in a head seen from the front the right."""
SMALLEST = 16
"""Side of the smallest image, pixels."""


class DrawnAnimals(Dataset):
    """Procedurally drawn animals with known landmarks; needs no download. Runs on it are tagged as drawn."""

    kind: Literal["drawn_animals"]
    """Drawn on the spot."""
    category: OneOrMore[Literal["bird", "cat", "cow", "dog", "horse", "sheep"]] = "cow"
    """The animal that the positive images show. Several differ in the head (ears, muzzle, horns), the length and
    thickness of legs, neck and tail, hooves, the outline of the torso, and the colors and patterns of the coat."""
    objects: Annotated[Integer, Field(ge=10, le=100_000)] = 400
    """Number of drawn objects of each category (positive images, before mirroring)."""
    negatives: Negatives = 250
    """Number of images of clutter without an animal. Default for several categories: 0."""
    negatives_show: Annotated[Literal["limbs", "heads", "incomplete"], OmitDefaultFromDigest()] = "limbs"
    """Parts of animals in images without an animal. `limbs`: three in ten show scattered trunks, limbs and tails, none
    shows a head, so that a head alone tells an animal. `heads`: six in ten show scattered parts, and a head among them.
    `incomplete`: three in ten show scattered parts with a head, and five in ten an animal in one piece that lacks its
    head, its torso, its legs, or all but its head, so that no part alone tells an animal. The others show ellipses and
    sticks."""
    landmarks: Annotated[tuple[Landmark, ...], Field(min_length=1)] = ("head", "neck", "torso")
    """The landmarks that location instability is taken over. All animals have head, neck, torso, nose and tail, those
    with four legs ear, front_leg and hind_leg, cows horn, birds leg and wing."""
    train_share: OpenShare = 0.75
    """Share of objects and of negatives in the training split; every index in round(linspace(1, n, round(share n)))."""
    drawing_seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of the drawing, apart from the seed of training."""

    title: ClassVar = "Drawn animals: made on the spot, nothing to fetch"
    version: ClassVar = "2"
    later: ClassVar = ("negatives_show",)
    drawn: ClassVar = True
    least_negatives: ClassVar = 10

    @property
    def provides(self) -> frozenset[Provided]:
        return super().provides | {"part_sizes", "part_masks"}

    def issues(self) -> Iterator[FieldIssue]:
        for name, n in (("objects", self.objects), ("negatives", self.negatives)):
            if n and in_training(n, self.train_share) in (0, n):
                advice = f"leaves one split without any of the {n} {name}; take it closer to 0.5"
                yield self.issue("train_share", advice, name)
                break
        for index, name in enumerate(self.landmarks):
            lacking = next((animal for animal in self.categories if name not in LANDMARKS[animal]), None)
            if lacking:
                advice = f"a {lacking} has no {name}; it has {', '.join(LANDMARKS[lacking])}"
                yield value_issue(("data", "landmarks", index), name, advice, "data.category")
        if not self.negatives and self.negatives_show != "limbs":
            yield self.issue("negatives_show", "there are no negatives; add data.negatives or drop this", "negatives")

    def train_items(self) -> int:
        """Return the number of training items: objects twice (mirrored too) and negatives once."""
        objects = len(self.categories) * in_training(self.objects, self.train_share)
        return 2 * objects + in_training(self.negatives, self.train_share)

    def names(self) -> tuple[str, ...]:
        """Return the names of all images in order: the objects of each category, then the negatives."""
        objects = [f"{category}-{i:05}" for category in self.categories for i in range(self.objects)]
        return (*objects, *(f"negative-{i:05}" for i in range(self.negatives)))

    def draw(self, number: int, size: int) -> DrawnImage:
        """Draw image `number` of `names`, `size` x `size` pixels. Raises ValueError for a size below 16 pixels."""
        from ipcnn_ray.data.datasets.drawn.scene import draw_animal, draw_negative

        if size < SMALLEST:
            raise ValueError(f"size = {size} pixels: an animal needs at least {SMALLEST}")
        count = len(self.categories)
        label, index = divmod(number, self.objects)
        if label < count:
            category, several = self.categories[label], count > 1
            return draw_animal(size, self.drawing_seed, index, category, self.landmarks, one_of_several=several)
        index = number - count * self.objects
        category = self.categories[index % count]
        return draw_negative(size, self.drawing_seed, index, category, self.landmarks, self.negatives_show)

    def store_plan(self, root: Path | None, image_size: int, progress: Progress | None) -> StorePlan:
        import numpy as np

        from ipcnn_ray.data.crop_store import Contents, StorePlan
        from ipcnn_ray.data.crops import G, MeanMasks
        from ipcnn_ray.data.split import items_of_categories

        names, landmarks = self.names(), len(self.landmarks)
        objects_L = [self.objects] * len(self.categories)
        train, validation = items_of_categories(objects_L, self.negatives, self.train_share, repeat=False)
        labels_N = np.repeat([*range(len(objects_L)), -1], [*objects_L, self.negatives])
        landmarks_NK2, sizes_NK2 = np.full((2, len(names), landmarks, 2), np.nan, np.float32)
        masks_KGG = np.full((landmarks, G, G), np.nan, np.float32)
        trained = set(train[:, 0].tolist())

        def fill(images_N3SS: NDArray[np.uint8]) -> None:
            mean = MeanMasks(landmarks)
            for i in range(len(names)):
                image = self.draw(i, image_size)
                images_N3SS[i] = image.pixels.transpose(2, 0, 1)
                landmarks_NK2[i], sizes_NK2[i] = image.landmarks_K2, image.sizes_K2
                if i in trained and labels_N[i] >= 0:
                    mean.add(image.masks)
                if progress:
                    progress(i + 1, len(names))
            masks_KGG[:] = mean.mean()

        contents = Contents(
            labels_N=labels_N,
            categories=self.categories,
            landmarks_NK2=landmarks_NK2,
            train_items=train,
            val_items=validation,
            names=names,
            landmark_names=self.landmarks,
            part_sizes_NK2=sizes_NK2,
            mean_masks_KGG=masks_KGG,
        )
        return StorePlan("drawn", contents, fill)
