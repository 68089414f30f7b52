"""The data section: which images with which landmarks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ipcnn_ray.spec.base import Count, Integer, NotNegative, OpenShare, Section

Category = Literal["bird", "cat", "cow", "dog", "horse", "sheep"]
Landmark = Literal["head", "neck", "torso", "nose"]


class DrawnAnimals(Section):
    """Procedurally drawn animals with known landmarks; needs no download. Runs on it are tagged as drawn."""

    kind: Literal["drawn_animals"]
    """Drawn on the spot."""
    category: Category = "cow"
    """The animal that the positive images show."""
    objects: Annotated[Integer, Field(ge=10, le=100_000)] = 400
    """Number of drawn objects (positive images, before mirroring)."""
    negatives: Annotated[Integer, Field(ge=10, le=100_000)] = 250
    """Number of images of clutter without an animal."""
    landmarks: Annotated[tuple[Landmark, ...], Field(min_length=1)] = ("head", "neck", "torso")
    """The landmarks that location instability is taken over."""
    train_share: OpenShare = 0.75
    """Share of objects and of negatives in the training split; every index in round(linspace(1, n, round(share n)))."""
    drawing_seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of the drawing, apart from the seed of training."""


class VocPart(Section):
    """One animal category of Pascal VOC Part against fixed negatives (Zhang et al.'s released data layout)."""

    kind: Literal["voc_part"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: Category
    """The animal of the positive images."""
    annotation: Literal["landmark_files", "part_masks"] = "landmark_files"
    """`landmark_files`: truth_part*.mat of Zhang et al.; `part_masks`: the dataset's own Annotations_Part/*.mat."""
    landmarks: Annotated[tuple[Landmark, ...], Field(min_length=1)] = ("head", "neck", "torso")
    """The landmarks that location instability is taken over."""
    negatives: Count = 1000
    """Number of negative images used, from 00001.JPEG up."""
    min_side: NotNegative = 50
    """Objects whose box covers fewer than min_side^2 square pixels are left out."""
    positive_share: OpenShare = 0.75
    """Objects and their mirror images are repeated until they are this share of all items (released: 3 to 1)."""
    train_share: OpenShare = 0.9
    """Share of items in the training split; every index in round(linspace(1, n, round(share n)))."""


Data = Annotated[DrawnAnimals | VocPart, Field(discriminator="kind")]
