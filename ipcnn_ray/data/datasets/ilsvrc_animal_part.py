"""The animal part of ILSVRC 2013 DET: thirty categories, head and limbs (Zhang et al.'s released data layout).

Layout below IPCNN_DATA: detanimalpart/<category>_obj/img/{data.mat,img/NNNNN.jpg}, one photograph an object;
detanimalpart/landmarks/<category>/truth_partNN.mat, element i of it photograph i; voc/neg/NNNNN.JPEG.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.datasets.dataset import Archive, released_archive
from ipcnn_ray.data.photographs import AGAIN, NEGATIVES, UNSEEN, AnnotatedObject, Annotations, PhotographDataset, box_of
from ipcnn_ray.spec.data import Negatives, OneOrMore, Split
from ipcnn_ray.spec.section import FieldIssue, NotNegative, OpenShare
from ipcnn_ray.utils.matlab import numbers

if TYPE_CHECKING:
    from ipcnn_ray.data.crops import Box

Synset = Literal[
    "n01443537", "n01503061", "n01639765", "n01662784", "n01674464", "n01882714", "n01982650", "n02084071",
    "n02118333", "n02121808", "n02129165", "n02129604", "n02131653", "n02324045", "n02342885", "n02355227",
    "n02374451", "n02391049", "n02395003", "n02398521", "n02402425", "n02411705", "n02419796", "n02437136",
    "n02444819", "n02454379", "n02484322", "n02503517", "n02509815", "n02510455",
]  # fmt: skip
"""WordNet's numbers of the thirty animals."""
WITHOUT_LIMBS = "n01443537"
"""The goldfish, which has a landmark file for its head alone."""
FRAME = 224
"""Side of the crop in whose 1-based pixels the landmark files write positions."""
FILES = {"head": 1, "limbs": 2}
"""Landmark -> NN of its truth_partNN.mat."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
ONE_RELEASE = "data.mat and the truth_part*.mat of a category must be of one release: fetch them again."


class IlsvrcAnimalPart(PhotographDataset):
    """Animals of the ILSVRC animal part, by WordNet number, one against fixed negatives (released data layout)."""

    kind: Literal["ilsvrc_animal_part"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: OneOrMore[Synset]
    """The animal of the positive images, such as n02118333 (fox)."""
    landmarks: Annotated[tuple[Literal["head", "limbs"], ...], Field(min_length=1)] = ("head", "limbs")
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

    title: ClassVar = (
        "ILSVRC animal part: thirty animals (crops and boxes of ILSVRC 2013 DET, Zhang et al.'s landmarks)"
    )
    folder: ClassVar = "detanimalpart"
    photographs: ClassVar = "detanimalpart"
    archives: ClassVar = (
        Archive(
            "https://codeload.github.com/zqs1022/detanimalpart/tar.gz/refs/heads/master",
            (("*/n*_obj", "detanimalpart"),),
        ),
        released_archive(
            ("*/code/data_input/data_input_DET-2015-subset-ILSVRC2013train/n*", "detanimalpart/landmarks")
        ),
    )
    folders: ClassVar = ("detanimalpart", "detanimalpart/landmarks", NEGATIVES)
    counts: ClassVar = {"photographs": "detanimalpart/*_obj/img/img/*.jpg", "negatives": f"{NEGATIVES}/*.JPEG"}
    annotated: ClassVar = "detanimalpart/landmarks/*/truth_part*.mat"

    def issues(self) -> Iterator[FieldIssue]:
        if self.category == WITHOUT_LIMBS and "limbs" in self.landmarks:
            yield self.issue("landmarks", f"{WITHOUT_LIMBS} (goldfish) has no limbs; take [head]", "category")

    def annotations(self, folder: Path) -> list[Annotations]:
        return [from_samples(self, folder, category) for category in self.categories]


def from_samples(data: IlsvrcAnimalPart, folder: Path, category: str) -> Annotations:
    """Read the objects of one category: `samples(i).obj.bndbox` of its data.mat, and `truth(i).pHW_center` of its
    landmark files.

    A landmark with several instances in an image (two heads) is taken as not seen, as in the released
    `getDistSqrtVar`: none of them is the landmark more than the others.
    Deviations: positions are read as 1-based pixels of the crop at 224 x 224, which the released metric takes them
    for at every image size. The boxes of the landmark files count from 0 and those of data.mat from 1: data.mat's
    are the crops, and both may differ by one pixel.
    """
    lacks = tuple(name for name in data.landmarks if category == WITHOUT_LIMBS and name == "limbs")
    annotations = Annotations(lacks=lacks)
    photographs = f"{category}_obj/img/img"
    boxes = _boxes(folder / f"{category}_obj/img/data.mat", annotations)
    truths = {
        name: _truth(folder / f"landmarks/{category}/truth_part{FILES[name]:02}.mat", name, annotations)
        for name in data.landmarks
        if name not in lacks
    }
    if annotations.issues:
        return annotations
    images = len(list((folder / photographs).glob("*.jpg")))
    lengths = {"photographs": images, "data.mat": len(boxes)} | {
        f"truth_part{FILES[name]:02}.mat": len(truth) for name, truth in truths.items()
    }
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        what = f"the files hold different numbers of objects: {listed}"
        annotations.add_issue(folder / category, what, ONE_RELEASE)
        return annotations
    for i, box in enumerate(boxes):
        where = f"{folder / photographs} object {i + 1}"
        if not annotations.is_upright(where, box):
            continue
        landmarks = [
            _position(truths[name][i], box, f"{where} landmark {name!r}", annotations) if name in truths else UNSEEN
            for name in data.landmarks
        ]
        image = f"{photographs}/{i + 1:05}.jpg"
        annotations.objects.append(AnnotatedObject(image, box, landmarks, f"{category} {i + 1}"))
    return annotations


def _boxes(path: Path, annotations: Annotations) -> list[Box]:
    samples = annotations.read_structs(path, "samples", "obj") or []
    try:
        return [box_of(sample["obj"]["bndbox"][side] for side in SIDES) for sample in samples]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        annotations.add_issue(path, f"its samples(i).obj.bndbox cannot be read: {error!r}", AGAIN)
        return []


def _truth(path: Path, name: str, annotations: Annotations) -> list[dict[str, Any]]:
    if not path.is_file():
        advice = f"It holds the landmark {name!r}; take it out of data.landmarks, or add it."
        annotations.add_issue(path, "no such file", advice)
        return []
    return annotations.read_structs(path, "truth", "obj", "pHW_center") or []


def _position(truth: dict[str, Any], box: Box, where: str, annotations: Annotations) -> tuple[float, float]:
    """Return (row, col) of a landmark as shares of its object's box; NaN where it is not seen, or more than once."""
    try:
        center = numbers(truth["pHW_center"])
        if not center or len(center) > 2:
            return UNSEEN
        other = box_of(truth["obj"]["bndbox"][side] for side in SIDES)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        annotations.add_issue(where, f"its pHW_center or bndbox cannot be read: {error!r}", AGAIN)
        return UNSEEN
    if max(abs(a - b) for a, b in zip(other, box, strict=True)) > 1:
        what = f"its file describes another object: box {other}, in data.mat {box}"
        annotations.add_issue(where, what, ONE_RELEASE)
        return UNSEEN
    if len(center) == 1 or not all(0 <= value <= FRAME + 1 for value in center):
        shown = ", ".join(f"{value:g}" for value in center)
        advice = f"pHW_center is (row, col) in pixels of the crop, 1 to {FRAME}. {AGAIN}"
        annotations.add_issue(where, f"is at ({shown}), outside the crop", advice)
        return UNSEEN
    sides = box[3] - box[1] + 1, box[2] - box[0] + 1
    row, col = (((value - 0.5) / FRAME * side - 0.5) / (side - 1) for value, side in zip(center, sides, strict=True))
    return row, col
