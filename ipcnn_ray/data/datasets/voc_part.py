"""Pascal VOC Part, with Zhang et al.'s landmark files or the dataset's own part masks.

In both a landmark is the center of the box around a part, as shares (row, col) of the object's box. Layout below
IPCNN_DATA: voc/VOCdevkit/VOC2010/{JPEGImages/*.jpg,Annotations_Part/*.mat}, voc/landmarks/<category>/truth_partNN.mat,
voc/neg/NNNNN.JPEG.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.datasets.dataset import Archive, released_archive
from ipcnn_ray.data.photographs import AGAIN, NEGATIVES, UNSEEN, AnnotatedObject, Annotations, PhotographDataset, box_of
from ipcnn_ray.spec.data import Negatives, OneOrMore, Provided, Split
from ipcnn_ray.spec.section import NotNegative, OpenShare
from ipcnn_ray.utils.matlab import MatFileError, as_list, numbers, read_mat

if TYPE_CHECKING:
    from ipcnn_ray.data.crops import Box

FRAME = 224
"""The landmark files have a share of the box times this."""
FILES = {"head": 1, "neck": 2, "torso": 3, "nose": 4}
"""Landmark -> NN of its truth_partNN.mat."""
NOSE = {"bird": "beak", "cat": "nose", "dog": "nose", "cow": "muzzle", "horse": "muzzle", "sheep": "muzzle"}
"""Category -> the part that the landmark files call number 4."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
ONE_RELEASE = "The truth_part*.mat of a category must all be of one release: fetch them again."


class VocPart(PhotographDataset):
    """Animal categories of Pascal VOC Part, one against fixed negatives (Zhang et al.'s released data layout)."""

    kind: Literal["voc_part"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: OneOrMore[Literal["bird", "cat", "cow", "dog", "horse", "sheep"]]
    """The animal of the positive images."""
    annotation: Literal["landmark_files", "part_masks"] = "landmark_files"
    """`landmark_files`: truth_part*.mat of Zhang et al.; `part_masks`: the dataset's own Annotations_Part/*.mat."""
    landmarks: Annotated[tuple[Literal["head", "neck", "torso", "nose"], ...], Field(min_length=1)] = (
        "head",
        "neck",
        "torso",
    )
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

    title: ClassVar = (
        "Pascal VOC Part: six animals (VOC 2010 photographs, Zhang et al.'s landmarks, Pascal-Part's masks)"
    )
    folder: ClassVar = "voc"
    photographs: ClassVar = "voc/VOCdevkit/VOC2010/JPEGImages"
    digest_root: ClassVar = "voc"
    # Source: the setup_*.m of the released code, with the present address of Pascal-Part; torchvision checks against
    # the same md5 sum of VOC 2010.
    archives: ClassVar = (
        Archive(
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
            (("VOCdevkit/VOC2010", "voc/VOCdevkit"),),
            "da459979d0c395079b5c75ee67908abb",
        ),
        released_archive(("*/code/data_input/data_input_VOC/*/", "voc/landmarks")),
        Archive(
            "https://roozbehm.info/pascal-parts/trainval.tar.gz",
            (("Annotations_Part", "voc/VOCdevkit/VOC2010"),),
            "2fa0a19ee9b5e43b2bee520166111120",
        ),
    )
    folders: ClassVar = (photographs, "voc/landmarks", NEGATIVES)
    counts: ClassVar = {
        "photographs": f"{photographs}/*.jpg",
        "negatives": f"{NEGATIVES}/*.JPEG",
        "part masks": "voc/VOCdevkit/VOC2010/Annotations_Part/*.mat",
    }
    annotated: ClassVar = "voc/landmarks/*/truth_part*.mat"

    @property
    def provides(self) -> frozenset[Provided]:
        masks: tuple[Provided, ...] = ("part_masks",) if self.annotation == "part_masks" else ()
        return super().provides | {"part_sizes", *masks}

    def lacking(self, annotation: Provided) -> str:
        if annotation == "part_masks":
            return "the landmark files hold no masks; use data.annotation: part_masks"
        return super().lacking(annotation)

    def annotations(self, folder: Path) -> list[Annotations]:
        read = from_landmark_files if self.annotation == "landmark_files" else from_part_masks
        return [read(self, folder, category) for category in self.categories]


def from_landmark_files(data: VocPart, voc: Path, category: str) -> Annotations:
    """Read the objects of `voc/landmarks/<category>/truth_partNN.mat`: a struct array `truth` with one element for each
    object.

    An element is empty where the part is not seen, so what an object is comes from any file that shows a part of it;
    an object that no file shows is left out.
    Deviations: the released metric takes `pHW_center` for 1-based pixels of a 224-pixel image at every image size.
    Its `readPartTruth` made it as a share of the box times 224, and so it is read here; the two differ by at most
    3 pixels of 224, for the smallest objects.
    """
    annotations, folder = Annotations(), voc / "landmarks" / category
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in (voc / "landmarks").glob("*") if path.is_dir()))
        advice = f"Landmark files are there for: {known or 'no category'}. data.category names the folder."
        annotations.add_issue(folder, "no such folder", advice)
        return annotations
    annotations.stamp(folder)
    truths: dict[str, list[Any]] = {}
    for name, number in FILES.items():
        path = folder / f"truth_part{number:02}.mat"
        if path.is_file():
            _read_truth(path, truths, annotations)
        elif name in data.landmarks:
            advice = f"It holds the landmark {name!r}; take it out of data.landmarks, or add it."
            annotations.add_issue(path, "no such file", advice)
    for path in sorted(folder.glob("truth_part*.mat")):
        if path.name not in truths and any(_object(truths, i) is None for i in range(_length(truths))):
            _read_truth(path, truths, annotations)
    lengths = {name: len(truth) for name, truth in truths.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        annotations.add_issue(folder, f"the files list different numbers of objects: {listed}", ONE_RELEASE)
        return annotations
    if truths and not _length(truths):
        annotations.add_issue(folder, f"the files list no object of {category}", AGAIN)
    for i in range(_length(truths)):
        _add_object(i, truths, data, folder, annotations)
    return annotations


def _read_truth(path: Path, truths: dict[str, list[Any]], annotations: Annotations) -> None:
    if (elements := annotations.read_structs(path, "truth", "obj", "pHW_center")) is not None:
        truths[path.name] = elements


def _length(truths: dict[str, list[Any]]) -> int:
    return min((len(truth) for truth in truths.values()), default=0)


def _object(truths: dict[str, list[Any]], i: int) -> dict[str, Any] | None:
    return next((truth[i]["obj"] for truth in truths.values() if isinstance(truth[i]["obj"], dict)), None)


def _add_object(i: int, truths: dict[str, list[Any]], data: VocPart, folder: Path, annotations: Annotations) -> None:
    where = f"{folder} object {i + 1}"
    if _object(truths, i) is None:
        annotations.left_out["none of its parts is in a landmark file"] += 1
        return
    described: set[tuple[str, Box]] = set()
    for truth in truths.values():
        if isinstance(obj := truth[i]["obj"], dict):
            try:
                described.add((str(obj["filename"]), box_of(obj["bndbox"][side] for side in SIDES)))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                annotations.add_issue(where, f"its filename or bndbox cannot be read: {error}", AGAIN)
                return
    if len(described) > 1:
        listed = " and ".join(f"{image} {box}" for image, box in sorted(described))
        annotations.add_issue(where, f"the files describe different objects: {listed}", ONE_RELEASE)
        return
    image, box = described.pop()
    if not annotations.is_upright(where, box):
        return
    landmarks, sizes = [UNSEEN] * len(data.landmarks), [UNSEEN] * len(data.landmarks)
    for k, name in enumerate(data.landmarks):
        part = truths.get(f"truth_part{FILES[name]:02}.mat")
        try:
            center = numbers(part[i]["pHW_center"]) if part else []
            extent = numbers(part[i].get("pHW_scale", [])) if part else []
        except (TypeError, ValueError) as error:
            what = f"pHW_center or pHW_scale of landmark {name!r} cannot be read: {error}"
            annotations.add_issue(where, what, AGAIN)
            continue
        if not center or len(center) > 2:
            continue  # not seen; the released code uses none of several instances
        if len(center) == 1 or not all(0 <= value <= FRAME for value in center):
            shown = ", ".join(f"{value:g}" for value in center)
            advice = f"pHW_center is (row, col), each from 0 to {FRAME}: the object's box from edge to edge."
            annotations.add_issue(where, f"landmark {name!r} at ({shown}) is outside the crop", advice)
            continue
        landmarks[k] = center[0] / FRAME, center[1] / FRAME
        if len(extent) == 2 and all(0 <= value <= FRAME for value in extent):
            sides = box[3] - box[1] + 1, box[2] - box[0] + 1
            # From the center of its first pixel to that of its last.
            height, width = ((value / FRAME * (side - 1) + 1) / side for value, side in zip(extent, sides, strict=True))
            sizes[k] = height, width
    annotations.objects.append(AnnotatedObject(image, box, landmarks, f"{Path(image).stem} {i + 1}", sizes_K2=sizes))


def from_part_masks(data: VocPart, voc: Path, category: str) -> Annotations:
    """Read the objects of `VOCdevkit/VOC2010/Annotations_Part/*.mat`: `anno.objects(o)` with class, bbox and parts(p)
    with part_name and mask.

    The parts behind the landmark files were found in the released files: head is the part `head` alone (the boxes of
    ears and muzzle reach beyond its box in half of the objects), neck and torso are theirs, and number 4 is `NOSE`.
    What lies outside the object's box is not in its crop and does not count.
    """
    annotations, folder = Annotations(), voc / "VOCdevkit/VOC2010/Annotations_Part"
    paths = sorted(folder.glob("*.mat"))
    if not paths:
        what = "has no .mat file" if folder.is_dir() else "no such folder"
        advice = "Unpack Pascal-Part's Annotations_Part there, or use data.annotation: landmark_files."
        annotations.add_issue(folder, what, advice)
        return annotations
    annotations.stamp(folder, *paths)
    for path in paths:
        try:
            objects = as_list(read_mat(path, "anno")["objects"])
            of_category = [element for element in objects if str(element["class"]) == category]
            for number, element in enumerate(of_category, start=1):
                _add_masked(f"{path} {category} {number}", path.stem, number, element, data, category, annotations)
        except MatFileError as error:
            annotations.add_issue(path, str(error), AGAIN)
            continue
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            annotations.add_issue(path, f"is not an annotation of Pascal-Part: {error!r}", AGAIN)
            continue
        if of_category:
            annotations.files.append(path)
    if not annotations.objects and not annotations.issues:
        what = f"its {len(paths)} files hold no object of {category}"
        annotations.add_issue(folder, what, "Choose another data.category.")
    return annotations


def _add_masked(
    where: str, image: str, number: int, element: Any, data: VocPart, category: str, annotations: Annotations
) -> None:
    from ipcnn_ray.data.crops import part_of_mask

    box = box_of(numbers(element["bbox"]))
    if not annotations.is_upright(where, box):
        return
    masks = {str(part["part_name"]): part["mask"] > 0 for part in as_list(element["parts"])}
    shapes = {mask.shape for mask in masks.values()}
    if len(shapes) > 1:
        annotations.add_issue(where, f"its masks have different sizes: {sorted(shapes)}", AGAIN)
        return
    parts = [part_of_mask(masks.get(NOSE[category] if name == "nose" else name), box) for name in data.landmarks]
    height, width = shapes.pop() if shapes else (0, 0)
    annotations.objects.append(
        AnnotatedObject(
            f"{image}.jpg",
            box,
            [center for center, _, _ in parts],
            f"{image} {number}",
            sizes_K2=[size for _, size, _ in parts],
            masks=[patch for _, _, patch in parts],
            mask_size=(width, height) if masks else None,
        )
    )
