"""Base class of the datasets of a user's own photographs, which a spec names by their place below IPCNN_DATA."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ipcnn_ray.data.photographs import AnnotatedObject, Annotations, Crop, PhotographDataset, Source
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.spec.data import Negatives, OneOrMore
from ipcnn_ray.spec.section import ErrorMessage, FieldIssue, Flag, OpenShare
from ipcnn_ray.utils.files import leaves_its_folder

if TYPE_CHECKING:
    from ipcnn_ray.data.split import Items

CategoryName = Annotated[
    str,
    Field(pattern=r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]{0,79}$"),
    ErrorMessage(
        r"must be a name of at most 80 characters (a number in quotes), without / and \ and not beginning with a dot"
    ),
]
RelativePath = Annotated[str, Field(min_length=1, max_length=1000)]
"""A path below IPCNN_DATA, so that a cluster finds it, too."""
ALL = 100_000
MOST_ISSUES = 20
"""Issues of one table or folder that are listed; the others are counted."""
WAYS_WITHOUT_NEGATIVES = "A single category is told from negatives; add some, or list several categories."


class OwnPhotographs(PhotographDataset):
    """Base class: photographs with categories of any name, each once, and mirrored."""

    category: OneOrMore[CategoryName]
    """The category of the positive images, or a list of several."""
    negatives: Negatives = ALL
    """Largest number of negative images used, the first ones. Default: all; for several categories 0."""
    train_share: OpenShare = 0.8
    """Share of the objects of each category, and of the negatives, in the training split; every index in
    round(linspace(1, n, round(share n))). Objects of one photograph can be in both splits. The column `split` of a
    table takes its place."""
    mirror: Flag = True
    """Train and validate on the mirror image of every object, too."""

    folder: ClassVar = ""
    photographs: ClassVar = ""
    upright: ClassVar = True
    mend_photograph: ClassVar = "Repair it, or leave it out."

    @property
    def unused_negatives(self) -> str:
        """Why negatives are left out."""
        return f"negatives beyond data.negatives = {self.negatives}"

    @abstractmethod
    def source(self, root: Path) -> Path:
        """Return the file or folder that the spec names. root: IPCNN_DATA."""

    def read(self, root: Path | None) -> Source:
        if root is None:
            what, advice = "IPCNN_DATA is not set", f"Set it to the folder that holds {self.source(Path())}."
            raise DataError([Issue(f"data.kind = {self.kind}", what, advice)])
        return super().read(root)

    def split_items(self, source: Source) -> tuple[Items, Items]:
        from ipcnn_ray.data.split import items_once, share_in_training

        given = [crop.item.in_training for crop in source.crops if crop.item]
        in_training = [bool(used) for used in given if used is not None]
        if len(in_training) < len(source.crops):
            in_training = share_in_training([*source.objects_L, source.negatives], self.train_share)
        return items_once(in_training, sum(source.objects_L), mirror=self.mirror)

    def negative_crops(self, annotations_L: Sequence[Annotations], root: Path, total: Annotations) -> list[Crop]:
        negatives = [item for annotations in annotations_L for item in annotations.negatives]
        used = negatives[: self.negatives]
        if len(used) < len(negatives):
            total.left_out[self.unused_negatives] += len(negatives) - len(used)
        if self.negatives and not used:
            total.add_issue(self.source(root), "has no negatives", WAYS_WITHOUT_NEGATIVES)
        elif missing := missing_split(used):
            total.add_issue(self.source(root), f"has no negative in the split {missing}", "Move some there.")
        return [Crop(root / item.image, item.name, -1, item) for item in used]

    def _check_images(self, crops: list[Crop], total: Annotations) -> None:
        """Nothing: `annotations` has checked the images with the rows and folders that name them."""

    def _check_use(
        self, category: str, min_side: float, annotations: Annotations, large: list[AnnotatedObject], where: Path
    ) -> None:
        where = self.source(where)
        if len(large) == 1:
            advice = "A category needs at least 2: one to train on and one to validate on. Add some, or drop it."
            annotations.add_issue(where, f"has 1 object of category {category!r}", advice)
        elif missing := missing_split(large):
            what = f"has no object of category {category!r} in the split {missing}"
            annotations.add_issue(where, what, "Move some there, or leave the category out of data.category.")
        else:
            super()._check_use(category, min_side, annotations, large, where)


def missing_split(items: Sequence[AnnotatedObject]) -> str:
    """Return the split that a dataset with splits of its own has no item in; empty if there is none."""
    splits = {item.in_training for item in items}
    return "val" if splits == {True} else "train" if splits == {False} else ""


def path_issues(section: OwnPhotographs, *fields: str) -> Iterator[FieldIssue]:
    """Yield an issue for each field that is not a path below IPCNN_DATA."""
    for name in fields:
        if (path := getattr(section, name)) is not None and leaves_its_folder(path):
            yield section.issue(name, "must be a path below IPCNN_DATA, without ..: a cluster gets these files only")


def raise_issues(annotations: Annotations, where: Path) -> None:
    """Raise DataError with the first issues, and the number of the others; nothing without any."""
    issues = list(dict.fromkeys(annotations.issues))
    if len(issues) > MOST_ISSUES:
        others = Issue(str(where), f"and {len(issues) - MOST_ISSUES} more like these", "Mend these and try again.")
        issues = [*issues[:MOST_ISSUES], others]
    if issues:
        raise DataError(issues)
