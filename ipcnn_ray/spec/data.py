"""The data section: which images with which landmarks. Each dataset is a class in `data/datasets/`.

`category` is one category, told from negatives, or a list of several, told from each other; several come without
negatives unless `negatives` asks for some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from ipcnn_ray.spec.extensions import DATASETS
from ipcnn_ray.spec.section import (
    FieldIssue,
    Flag,
    Integer,
    Number,
    OmitDefaultFromDigest,
    RegisteredKinds,
    Section,
    Share,
)

Name = TypeVar("Name")
OneOrMore = Annotated[
    Annotated[Name, Tag("one")] | Annotated[tuple[Name, ...], Tag("several")],
    Discriminator(lambda given: "several" if isinstance(given, list | tuple) else "one"),
]
"""A name, or a list of at least two."""
Negatives = Annotated[Integer, Field(ge=0, le=100_000)]
PositiveShare = Annotated[Number, Field(gt=0, le=1)]
Split = Annotated[Literal["objects", "items"], OmitDefaultFromDigest()]
Provided = Literal["landmarks", "part_sizes", "part_masks", "negatives"]


class Augment(Section):
    """Random changes of the training images, drawn anew in every epoch. Validation and all other measurements see the
    images as they are."""

    location: ClassVar = ("data", "augment")
    crop: tuple[PositiveShare, PositiveShare] | None = None
    """Smallest and largest share of the image's area that a random square of it has, which is then scaled to the
    image's size, such as [0.6, 1.0]. Default: the whole image."""
    mirror: Flag = False
    """Mirror half of the images. Most datasets have every object as it is and mirrored anyway; this mirrors their
    negatives, too."""
    color: Share = 0.0
    """Brightness, contrast and saturation are each multiplied by a random number from 1 - color to 1 + color."""

    @property
    def active(self) -> bool:
        """Whether any image is changed."""
        return self.mirror or self.color > 0 or self.crop not in (None, (1.0, 1.0))


class DataSection(Section):
    """Base class of the data sections: what the rest of a spec can ask of a dataset.

    The fields `kind`, `category`, `landmarks` and `negatives` are declared by each dataset.
    """

    location: ClassVar = ("data",)
    least_negatives: ClassVar[int] = 1
    """Smallest number of negatives for a single category."""
    drawn: ClassVar[bool] = False
    """Whether the images are drawn; runs are tagged with it."""

    augment: Annotated[Augment | None, OmitDefaultFromDigest()] = None
    """Random changes of the training images. They are made while training: the stored images are those of the data.
    With frozen layers the outputs of these layers are not cached for training. Default: none."""

    if TYPE_CHECKING:
        kind: str
        category: str | tuple[str, ...]
        landmarks: tuple[str, ...]
        negatives: int

    @model_validator(mode="before")
    @classmethod
    def _set_negatives(cls, raw: Any) -> Any:
        return with_negatives(raw, cls.model_fields["negatives"].default) if isinstance(raw, Mapping) else raw

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories; the label of an image is the index of its category."""
        return (self.category,) if isinstance(self.category, str) else self.category

    @property
    def provides(self) -> frozenset[Provided]:
        """What is known of the images; templates and metrics that need more are refused."""
        provided = {"landmarks": bool(self.landmarks), "negatives": self.negatives > 0}
        return frozenset(name for name, given in provided.items() if given)  # type: ignore[misc]

    def lacking(self, annotation: Provided) -> str:
        """Return why `annotation` is not in `provides`, and what to do, if something can be done."""
        return f"{self.kind} has no {annotation.replace('_', ' ')}; use another data.kind"

    def issues(self) -> Iterator[FieldIssue]:
        """Yield what is wrong with this section though every field by itself is right."""
        yield from ()

    def train_items(self) -> int | None:
        """Return the number of training items; None if the images must be read to count them."""
        return None


Data = Annotated[DataSection, RegisteredKinds("kind", DATASETS, DataSection)]


def with_negatives(raw: Mapping[str, Any], for_one: int) -> dict[str, Any]:
    """Return a raw data section with its number of negatives: `for_one` for one category, 0 for several."""
    several = isinstance(raw.get("category"), list | tuple)
    return {"negatives": 0 if several else for_one, **raw} if raw.get("negatives") is None else dict(raw)


def in_training(n: int, share: float) -> int:
    """Return how many of n are in the training split: the length of round(linspace(1, n, round(share n))).

    Half rounds up, as in MATLAB.
    """
    return int(share * n + 0.5)
