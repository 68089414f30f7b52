"""Datasets of photographs: annotated objects become crops, checked together first and decoded later.

Everything is checked before anything is written, and all issues are reported at once. The commands import this module:
numpy, PIL and what needs them are imported where they are used.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ipcnn_ray.data.datasets.dataset import Dataset, Progress
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.utils.files import Stamps, leaves_its_folder, sha256_of, stamps
from ipcnn_ray.utils.matlab import MatFileError, read_mat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ipcnn_ray.data.crop_store import StorePlan
    from ipcnn_ray.data.crops import Box
    from ipcnn_ray.data.split import Items

AGAIN = "Fetch the file again."
NEGATIVES = "voc/neg"
"""Folder of Zhang et al.'s negative images, 00001.JPEG and so on."""
UNSEEN = (float("nan"), float("nan"))
"""Position or size of a landmark that is not seen."""


@dataclass(frozen=True)
class AnnotatedObject:
    """One object of a photograph with its K landmarks."""

    image: str
    """Name of the photograph's file, below the folder of photographs."""
    box: Box
    landmarks_K2: Sequence[Sequence[float]]
    """(row, col) as shares of the box, 0 at the center of its first pixel and 1 at that of its last; NaN unseen."""
    name: str
    in_training: bool | None = None
    """Whether the dataset's own split has it in training; None if the dataset has no split."""
    sizes_K2: Sequence[Sequence[float]] | None = None
    """(height, width) of the parts' boxes as shares of the crop, NaN where unknown; None if none is known."""
    masks: Sequence[NDArray[np.float32] | None] = ()
    """Patch of each part (see `STEPS` of crops.py), None for one that is not seen; empty if there are no masks."""
    mask_size: tuple[int, int] | None = None
    """(width, height) of the image that the masks were made for; it must be the photograph's."""


@dataclass
class Annotations:
    """All objects of a category, and the files that they were read from."""

    objects: list[AnnotatedObject] = field(default_factory=list)
    """Objects with their boxes, in pixels, and landmarks."""
    files: list[Path] = field(default_factory=list)
    """Files whose content is part of the data digest."""
    made_from: Stamps = field(default_factory=dict)
    """Stamps of those files, and of folders whose listing matters, taken before they were read."""
    lacks: tuple[str, ...] = ()
    """Landmarks that this category does not have."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of objects left out, by reason."""
    issues: list[Issue] = field(default_factory=list)
    """What is wrong in single files and objects; all of it is reported at once."""
    negatives: list[AnnotatedObject] = field(default_factory=list)
    """Negatives, for a dataset with its own `negative_crops`."""

    def add_issue(self, where: Path | str, what: str, advice: str) -> None:
        """Add an issue. where: File, or object of a file. what: The fact. advice: What to do, in a sentence."""
        self.issues.append(Issue(str(where), what, advice))

    def stamp(self, *paths: Path) -> None:
        """Record the state of files and folders that are about to be read, at `paths`."""
        self.made_from |= stamps(paths)

    def read_structs(self, path: Path, variable: str, *fields: str) -> list[dict[str, Any]] | None:
        """Return the elements of a struct array of a .mat file; None, with an issue added, if it cannot be read.

        path: Of the file. variable: Name of the array. fields: Names that each element must have.
        """
        if path.is_file():
            self.stamp(path)
        try:
            content = read_mat(path, variable)
        except MatFileError as error:
            self.add_issue(path, str(error), AGAIN)
            return None
        elements = content if isinstance(content, list) else [content]
        if not all(isinstance(element, dict) and all(name in element for name in fields) for element in elements):
            what = f"{variable!r} is not a struct array with the fields {' and '.join(fields)}"
            self.add_issue(path, what, AGAIN)
            return None
        self.files.append(path)
        return elements

    def is_upright(self, where: str, box: Box) -> bool:
        """Return whether a box (xmin, ymin, xmax, ymax), pixels, has an inside; add an issue `where` if it has none."""
        if box[0] < box[2] and box[1] < box[3]:
            return True
        what = f"box (xmin, ymin, xmax, ymax) = {box} is inverted or flat"
        self.add_issue(where, what, "Expected xmin < xmax and ymin < ymax.")
        return False


def box_of(sides: Iterable[Any]) -> Box:
    """Return xmin, ymin, xmax, ymax of text, numbers, or arrays of one number. Raises TypeError or ValueError."""
    xmin, ymin, xmax, ymax = (round(float(side if isinstance(side, str | float) else side.item())) for side in sides)
    return xmin, ymin, xmax, ymax


@dataclass(frozen=True)
class Crop:
    """One object, or one negative."""

    path: Path
    name: str
    label: int
    """Index of the category, -1 for a negative."""
    item: AnnotatedObject | None = None
    """None for a whole photograph of `voc/neg`."""

    @property
    def box(self) -> Box | None:
        return self.item.box if self.item else None


@dataclass(frozen=True)
class Source:
    """Crops to decode, checked."""

    crops: tuple[Crop, ...]
    """The objects of each category, then the negatives."""
    objects_L: tuple[int, ...]
    """Number of objects of each category."""
    content_digest: str
    """SHA-256 over name, size and content of every image and annotation that is used."""
    made_from: Stamps
    """Stamps of those files, and of the folders that they were found in, before they were read."""
    left_out: Mapping[str, int]
    """Number of objects left out, by reason."""

    @property
    def negatives(self) -> int:
        return len(self.crops) - sum(self.objects_L)


class PhotographDataset(Dataset):
    """Base class of datasets of photographs in which objects have boxes and landmarks.

    A crop is the box of an object. Negatives are whole photographs, `voc/neg/00001.JPEG` and so on.
    """

    folder: ClassVar[str]
    """Folder below IPCNN_DATA that `annotations` reads."""
    photographs: ClassVar[str]
    """Folder below IPCNN_DATA that the names of images begin in."""
    digest_root: ClassVar[str] = ""
    """Folder below IPCNN_DATA that the names of files in the data digest begin in."""
    upright: ClassVar[bool] = False
    """Whether photographs are turned by their EXIF orientation, so that they are as annotated in a viewer."""
    mend_photograph: ClassVar[str] = AGAIN
    """What to do about a photograph that cannot be read."""
    _declared: ClassVar = ("title", "folder", "photographs")

    @abstractmethod
    def annotations(self, folder: Path) -> list[Annotations]:
        """Return the annotated objects of each category, in the order of `categories`, read from `folder`.

        Issues of single files and objects are collected in `Annotations.issues`. Raises DataError for what leaves
        nothing to check.
        """

    def split_items(self, source: Source) -> tuple[Items, Items]:
        """Return the training and the validation items, each [I, 2], of the crops of `source`. Reads the fields
        `train_share`, `positive_share` and `split` of a section that declares them."""
        from ipcnn_ray.data.split import items, items_of_categories

        objects_L, share = source.objects_L, getattr(self, "train_share", 0.9)
        if len(objects_L) == 1:
            return items(objects_L[0], source.negatives, share, getattr(self, "positive_share", 0.75))
        split: Any = getattr(self, "split", "objects")
        return items_of_categories(objects_L, source.negatives, share, repeat=True, split=split)

    def read(self, root: Path | None) -> Source:
        """Return the crops to decode, with the annotations and the photographs below `root`, which is IPCNN_DATA, read
        and checked together. Raises DataError with every issue."""
        if root is None:
            what, advice = "IPCNN_DATA is not set", f"Set it to the folder that holds {self.folder}/."
            raise DataError([Issue(f"data.kind = {self.kind}", what, advice)])
        if not (root / self.folder).is_dir():
            advice = f"IPCNN_DATA must name the folder that holds {self.folder}/."
            raise DataError([Issue(str(root / self.folder), "no such folder", advice)])
        return self._gather(self.annotations(root / self.folder), root)

    def store_plan(self, root: Path | None, image_size: int, progress: Progress | None) -> StorePlan:
        import numpy as np

        from ipcnn_ray.data.crop_store import Contents, StorePlan
        from ipcnn_ray.data.crops import MeanMasks, decode, place_in_crop

        source = self.read(root)
        train, validation = self.split_items(source)
        landmarks_NK2 = np.full((len(source.crops), len(self.landmarks), 2), np.nan, np.float32)
        sizes_NK2, mean = np.full_like(landmarks_NK2, np.nan), MeanMasks(len(self.landmarks))
        in_training = set(train[:, 0].tolist())
        for i, crop in enumerate(source.crops):
            if item := crop.item:
                landmarks_K2 = np.asarray(item.landmarks_K2, np.float64).reshape(-1, 2)
                landmarks_NK2[i] = place_in_crop(landmarks_K2, item.box, image_size)
                if item.sizes_K2 is not None:
                    sizes_NK2[i] = np.asarray(item.sizes_K2, np.float64)
                if i in in_training:
                    mean.add(item.masks)
        contents = Contents(
            labels_N=np.array([crop.label for crop in source.crops], np.int64),
            categories=self.categories,
            landmarks_NK2=landmarks_NK2,
            train_items=train,
            val_items=validation,
            names=tuple(crop.name for crop in source.crops),
            landmark_names=self.landmarks,
            left_out=source.left_out,
            part_sizes_NK2=sizes_NK2,
            mean_masks_KGG=mean.mean(),
        )

        def fill(images_N3SS: NDArray[np.uint8]) -> None:
            boxes = [(crop.path, crop.box) for crop in source.crops]
            if failures := decode(boxes, images_N3SS, progress, upright=self.upright):
                raise DataError(self._decoding_issues(failures))

        return StorePlan(source.content_digest, contents, fill, source.made_from)

    def count_train_items(self, root: Path | None) -> int | None:
        return None if root is None else len(self.split_items(self.read(root))[0])

    def _gather(self, annotations_L: Sequence[Annotations], root: Path) -> Source:
        """Collect the objects whose boxes cover at least min_side^2 pixels, and the first negatives, and check them."""
        import numpy as np

        from ipcnn_ray.data.crops import decode

        reader = f"{type(self).__module__}.{type(self).__qualname__}.annotations"
        if len(annotations_L) != len(self.categories):
            what = f"returned annotations of {len(annotations_L)} categories, expected {len(self.categories)}"
            raise DataError([Issue(reader, what, "Return one for each of self.categories.")])
        min_side: float = getattr(self, "min_side", 0)
        total = Annotations()
        crops: list[Crop] = []
        objects_L = []
        for label, (category, read) in enumerate(zip(self.categories, annotations_L, strict=True)):
            total.files += read.files
            total.made_from |= read.made_from
            total.left_out += read.left_out
            for image in dict.fromkeys(item.image for item in read.objects):
                if leaves_its_folder(image):
                    what = f"image {image!r} is not inside the folder of photographs"
                    read.add_issue(root / self.photographs, what, self.mend_photograph)
                elif image != image.encode(errors="replace").decode():
                    read.add_issue(root / self.photographs, f"image {image!r}: its name is not UTF-8", "Rename it.")
            large = [item for item in read.objects if _area(item.box) >= min_side**2]
            if len(large) < len(read.objects):
                total.left_out[f"smaller than {min_side:g}^2 pixels"] += len(read.objects) - len(large)
            for item in large:
                if what := _wrong_shape(item, len(self.landmarks)):
                    advice = "Return one entry for each of self.landmarks."
                    raise DataError([Issue(reader, f"returned for {item.name!r} {what}", advice)])
            if not read.issues:
                self._check_use(category, min_side, read, large, root / self.digest_root)
            total.issues += read.issues
            crops += [Crop(root / self.photographs / item.image, item.name, label, item) for item in large]
            objects_L.append(len(large))
        crops += self.negative_crops(annotations_L, root, total)
        self._check_images(crops, total)
        if total.issues:
            # With those that decoding would find later.
            paths = [path for path in dict.fromkeys(crop.path for crop in crops) if os.path.isfile(path)]
            failures = decode([(path, None) for path in paths], np.empty((len(paths), 3, 1, 1), np.uint8))
            raise DataError(list(dict.fromkeys([*total.issues, *self._decoding_issues(failures)])))
        used = list(dict.fromkeys(crop.path for crop in crops))
        digest = _content_digest([*dict.fromkeys(total.files), *used], root / self.digest_root)
        made_from = {**total.made_from, **stamps(used)}
        return Source(tuple(crops), tuple(objects_L), digest, made_from, dict(total.left_out))

    def negative_crops(self, annotations_L: Sequence[Annotations], root: Path, total: Annotations) -> list[Crop]:
        """Return the negatives. Issues, and files that the data depend on, are added to `total`.

        annotations_L: What `annotations` returned. root: IPCNN_DATA.
        """
        return _negatives(root / NEGATIVES, self.negatives, total)

    def _check_use(
        self, category: str, min_side: float, annotations: Annotations, large: list[AnnotatedObject], where: Path
    ) -> None:
        """Add an issue if there is no object, and for each landmark of the category that is hardly seen."""
        if not large:
            what = f"no {category} with a box of at least {min_side:g}^2 pixels"
            smaller = f"{len(annotations.objects)} smaller ones were left out"
            annotations.add_issue(where, what, f"{smaller}; lower data.min_side or choose another data.category.")
            return
        for k, landmark in enumerate(self.landmarks):
            seen = sum(not any(map(math.isnan, item.landmarks_K2[k])) for item in large)
            if seen < 2 and landmark not in annotations.lacks:
                what = f"landmark {landmark!r} is seen on {seen} of {len(large)} objects of {category}"
                advice = "Location instability needs at least 2; take it out of data.landmarks."
                annotations.add_issue(where, what, advice)

    def _check_images(self, crops: list[Crop], total: Annotations) -> None:
        """Add an issue for each photograph that is not there, and each box that leaves its own."""
        from ipcnn_ray.data.crops import ImageFileError, image_size

        for crop in crops:
            if not os.path.isfile(crop.path):
                total.add_issue(crop.path, "no such image", f"The annotation of {crop.name!r} names it.")
                continue
            try:
                width, height = image_size(crop.path, upright=self.upright)
            except ImageFileError as error:
                total.add_issue(crop.path, str(error), self.mend_photograph)
                continue
            if crop.item is None:
                continue
            if (masks := crop.item.mask_size) and masks != (width, height):
                what = f"is {width} x {height} pixels and the masks of {crop.name!r} are {masks[0]} x {masks[1]}"
                total.add_issue(crop.path, what, "Photograph and annotation must be of one release of Pascal VOC.")
            xmin, ymin, xmax, ymax = crop.item.box
            if xmin < 1 or ymin < 1 or xmax > width or ymax > height:
                what = f"box (xmin, ymin, xmax, ymax) = {crop.item.box} of {crop.name!r} is not inside the image"
                total.add_issue(crop.path, what, f"The image is {width} x {height} pixels, the first of them 1.")

    def _decoding_issues(self, failures: Mapping[Path, str]) -> list[Issue]:
        return [Issue(str(path), failure, self.mend_photograph) for path, failure in failures.items()]


def _wrong_shape(item: AnnotatedObject, count: int) -> str:
    """Return what has the wrong shape in an object that a reader returned; empty if nothing has."""
    import numpy as np

    from ipcnn_ray.data.crops import G

    for name, values in (("landmarks", item.landmarks_K2), ("sizes", item.sizes_K2)):
        try:
            shape = (count, 2) if values is None or not count else np.asarray(values, np.float64).shape
        except (TypeError, ValueError):
            return f"{name} that are not an array of numbers, expected shape {(count, 2)}"
        if shape != (count, 2):
            return f"{name} of shape {shape}, expected {(count, 2)}"
    shapes = [None if mask is None else np.shape(mask) for mask in item.masks]
    if shapes and (len(shapes) != count or not {None, (G, G)}.issuperset(shapes)):
        return f"masks of shapes {shapes}, expected {count} of {(G, G)} or None"
    return ""


def _area(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _content_digest(files: list[Path], root: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()


def _negatives(folder: Path, count: int, total: Annotations) -> list[Crop]:
    paths = [folder / f"{i:05}.JPEG" for i in range(1, count + 1)]
    existing = [path for path in paths if path.is_file()]
    if len(existing) < len(paths):
        first = next(i for i, path in enumerate(paths, start=1) if not path.is_file())
        what = f"{len(paths) - len(existing)} of {count} negative images are missing, first {first:05}.JPEG"
        fewer = f", or set data.negatives to at most {first - 1}" if first > 1 else ""
        total.add_issue(folder, what, f"Add them{fewer}.")
    return [Crop(path, f"negative {path.stem}", -1) for path in existing]
