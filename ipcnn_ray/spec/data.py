"""The data section: which images with which landmarks.

`category` is one category, told from negatives, or a list of several, told from each other; several come without
negatives unless `negatives` asks for some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from ipcnn_ray.spec.section import Count, ErrorMessage, Integer, NotNegative, OmitDefaultFromDigest, OpenShare, Section

Category = Literal["bird", "cat", "cow", "dog", "horse", "sheep"]
Landmark = Literal["head", "neck", "torso", "nose"]
Synset = Literal[
    "n01443537", "n01503061", "n01639765", "n01662784", "n01674464", "n01882714", "n01982650", "n02084071",
    "n02118333", "n02121808", "n02129165", "n02129604", "n02131653", "n02324045", "n02342885", "n02355227",
    "n02374451", "n02391049", "n02395003", "n02398521", "n02402425", "n02411705", "n02419796", "n02437136",
    "n02444819", "n02454379", "n02484322", "n02503517", "n02509815", "n02510455",
]  # fmt: skip
"""WordNet's numbers of the thirty animals of the ILSVRC animal part."""
WITHOUT_LIMBS = "n01443537"
"""The goldfish, which has a file for its head alone."""
AnimalPart = Literal["head", "limbs"]
Species = Annotated[
    str,
    Field(pattern=r"^(bird|[0-9]{3}\.[A-Za-z_]+)$"),
    ErrorMessage("must be bird (all species together) or a species of classes.txt, such as 001.Black_footed_Albatross"),
]
BirdPart = Literal[
    "back", "beak", "belly", "breast", "crown", "forehead", "left_eye", "left_leg", "left_wing", "nape", "right_eye",
    "right_leg", "right_wing", "tail", "throat",
]  # fmt: skip

Name = TypeVar("Name")
OneOrMore = Annotated[
    Annotated[Name, Tag("one")] | Annotated[tuple[Name, ...], Tag("several")],
    Discriminator(lambda given: "several" if isinstance(given, list | tuple) else "one"),
]
"""A name, or a list of at least two."""
Negatives = Annotated[Integer, Field(ge=0, le=100_000)]
Split = Annotated[Literal["objects", "items"], OmitDefaultFromDigest()]


class Images(Section):
    """What all data sections have."""

    @model_validator(mode="before")
    @classmethod
    def _negatives(cls, raw: Any) -> Any:
        return with_negatives(raw, cls.model_fields["negatives"].default) if isinstance(raw, Mapping) else raw

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories; an image's label is the index of its category here."""
        category: str | tuple[str, ...] = self.category  # type: ignore[attr-defined]
        return (category,) if isinstance(category, str) else category


def with_negatives(raw: Mapping[str, Any], for_one: int) -> dict[str, Any]:
    """A raw data section with its number of negatives written out: `for_one` for one category, 0 for several."""
    several = isinstance(raw.get("category"), list | tuple)
    return {"negatives": 0 if several else for_one, **raw} if raw.get("negatives") is None else dict(raw)


class DrawnAnimals(Images):
    """Procedurally drawn animals with known landmarks; needs no download. Runs on it are tagged as drawn."""

    kind: Literal["drawn_animals"]
    """Drawn on the spot."""
    category: OneOrMore[Category] = "cow"
    """The animal that the positive images show."""
    objects: Annotated[Integer, Field(ge=10, le=100_000)] = 400
    """Number of drawn objects of each category (positive images, before mirroring)."""
    negatives: Negatives = 250
    """Number of images of clutter without an animal. Default for several categories: 0."""
    landmarks: Annotated[tuple[Landmark, ...], Field(min_length=1)] = ("head", "neck", "torso")
    """The landmarks that location instability is taken over."""
    train_share: OpenShare = 0.75
    """Share of objects and of negatives in the training split; every index in round(linspace(1, n, round(share n)))."""
    drawing_seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of the drawing, apart from the seed of training."""


class VocPart(Images):
    """Animal categories of Pascal VOC Part, one against fixed negatives (Zhang et al.'s released data layout)."""

    kind: Literal["voc_part"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: OneOrMore[Category]
    """The animal of the positive images."""
    annotation: Literal["landmark_files", "part_masks"] = "landmark_files"
    """`landmark_files`: truth_part*.mat of Zhang et al.; `part_masks`: the dataset's own Annotations_Part/*.mat."""
    landmarks: Annotated[tuple[Landmark, ...], Field(min_length=1)] = ("head", "neck", "torso")
    """The landmarks that location instability is taken over."""
    negatives: Negatives = 1000
    """Number of negative images used, from 00001.JPEG up. Default for several categories: 0."""
    min_side: NotNegative = 50
    """Objects whose box covers fewer than min_side^2 square pixels are left out."""
    positive_share: OpenShare = 0.75
    """One category: objects and their mirror images are repeated until they are this share of all items (released:
    3 to 1). Several: both mirror images of every object, repeated to 1,500 items of each category; with more than ten
    categories repeated to 100 and cut at 400 (released)."""
    train_share: OpenShare = 0.9
    """Share of items in the training split; every index in round(linspace(1, n, round(share n)))."""
    split: Split = "objects"
    """What is split into training and validation. `objects`: an object, with its mirror image and repeats. `items`:
    of several categories, each repeat and mirror image by itself; the released code does so, and validates on objects
    that it trained on."""


class IlsvrcAnimalPart(Images):
    """Animals of the ILSVRC animal part, by WordNet number, one against fixed negatives (released data layout)."""

    kind: Literal["ilsvrc_animal_part"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: OneOrMore[Synset]
    """The animal of the positive images, such as n02118333 (fox)."""
    landmarks: Annotated[tuple[AnimalPart, ...], Field(min_length=1)] = ("head", "limbs")
    """The landmarks that location instability is taken over. n01443537 (goldfish) has no limbs."""
    negatives: Negatives = 1000
    """Number of negative images used, from 00001.JPEG up. Default for several categories: 0."""
    min_side: NotNegative = 50
    """Objects whose box covers fewer than min_side^2 square pixels are left out."""
    positive_share: OpenShare = 0.75
    """As for `voc_part`."""
    train_share: OpenShare = 0.9
    """Share of items in the training split; every index in round(linspace(1, n, round(share n)))."""
    split: Split = "objects"
    """As for `voc_part`."""


class Cub200(Images):
    """Caltech-UCSD Birds 200-2011: all birds against fixed negatives, or species from each other.

    The birds are split as the dataset splits them, and not mirrored; the first half of the negatives is trained on.
    """

    kind: Literal["cub200"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: OneOrMore[Species] = "bird"
    """`bird`: all species together (released). A species of classes.txt, such as 001.Black_footed_Albatross."""
    landmarks: Annotated[tuple[BirdPart, ...], Field(min_length=1)] = ("back", "forehead", "tail")
    """The landmarks that location instability is taken over (released: parts 1, 6 and 14: back, forehead and tail)."""
    negatives: Negatives = 1000
    """Number of negative images used, from 00001.JPEG up. Default for several categories: 0."""
    negative_repeats: Count = 4
    """How often each negative image is there (released: 4)."""
    min_side: NotNegative = 50
    """Birds whose box covers fewer than min_side^2 square pixels are left out."""


Data = Annotated[DrawnAnimals | VocPart | IlsvrcAnimalPart | Cub200, Field(discriminator="kind")]


def in_training(n: int, share: float) -> int:
    """How many of n are in the training split: as many indices as round(linspace(1, n, round(share n))) has.

    Half rounds up, as MATLAB does.
    """
    return int(share * n + 0.5)


def train_items(data: Data) -> int | None:
    """Training items: objects twice (mirrored too) and negatives once. None where the data itself must be counted."""
    if not isinstance(data, DrawnAnimals):
        return None
    objects = len(data.categories) * in_training(data.objects, data.train_share)
    return 2 * objects + in_training(data.negatives, data.train_share)
