"""From annotations to crops of photographs: checked together, decoded later.

Everything is checked before anything is written, and all problems are reported at once.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ipcnn_ray.data.crop_store import Stamps, stamps
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.utils.files import sha256_of

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Crop:
    """One object, or one negative (no box, no landmarks)."""

    path: Path
    box: Box | None
    share_K2: NDArray[np.float64]
    """Landmarks (row, col) as shares of the box, 0 at the centre of its first pixel and 1 at that of its last."""
    name: str
    label: int
    """Index of the category, -1 for a negative."""
    trained: bool | None = None
    """Whether the dataset's own split has it for training; None where there is none."""
    sizes_K2: NDArray[np.float64] | None = None
    """(height, width) of the parts' boxes as shares of the crop; NaN where unknown, None where none is known."""
    masks: Sequence[NDArray[np.float32] | None] = ()
    """Patch of each part, where masks are read."""


@dataclass(frozen=True)
class Source:
    """What will be decoded, checked."""

    crops: tuple[Crop, ...]
    """The objects of each category, then the negatives."""
    content_digest: str
    """sha256 over name, size and content of every image and annotation that is used."""
    made_from: Stamps
    """State of those files, and of the folders that they were found in, before they were read."""
    left_out: Mapping[str, int]
    """Why objects are not here -> how many."""

    def objects_of(self, categories: int) -> list[int]:
        """How many objects each of so many categories has."""
        labels = [crop.label for crop in self.crops]
        return [labels.count(label) for label in range(categories)]


@dataclass(frozen=True)
class Folder:
    """Where a dataset lies, and what is asked of it; numbers in messages are those of the spec's data section."""

    root: Path
    """Files are named below this in the digest."""
    photographs: Path
    negatives: Path
    """Holds 00001.JPEG and so on."""


def named(root: Path | None, name: str, kind: str) -> Path:
    """The dataset's folder below IPCNN_DATA; DataError where there is none."""
    if root is None:
        what, advice = "IPCNN_DATA is not set", f"Set it to the folder that holds {name}/."
        raise DataError([Issue(f"data.kind = {kind}", what, advice)])
    if not (root / name).is_dir():
        advice = f"IPCNN_DATA must name the folder that holds {name}/."
        raise DataError([Issue(str(root / name), "no such folder", advice)])
    return root / name


def gather(
    found_L: Sequence[Annotations],
    folder: Folder,
    *,
    categories: Sequence[str],
    landmarks: Sequence[str],
    min_side: float,
    negatives: int,
) -> Source:
    """The objects of all categories with boxes of at least min_side^2 square pixels, and the first negatives.

    Raises DataError with everything that is wrong with the annotations and with any image that they name.
    """
    found = Annotations()
    crops: list[Crop] = []
    mask_sizes: dict[Path, tuple[int, int]] = {}
    for label, (category, one) in enumerate(zip(categories, found_L, strict=True)):
        found.files += one.files
        found.made_from |= one.made_from
        found.left_out += one.left_out
        large = [annotated for annotated in one.objects if _area(annotated.box) >= min_side**2]
        if len(large) < len(one.objects):
            found.left_out[f"smaller than {min_side:g}^2 pixels"] += len(one.objects) - len(large)
        mask_sizes |= {folder.photographs / it.image: it.mask_size for it in large if it.mask_size}
        mine = [_crop(annotated, label, folder.photographs) for annotated in large]
        if not one.issues:
            _check_use(category, landmarks, min_side, one, mine, folder.root)
        found.issues += one.issues
        crops += mine
    crops += _negatives(folder.negatives, negatives, len(landmarks), found)
    _check_images(crops, mask_sizes, found)
    if found.issues:
        found.issues.extend(_undecodable(crops))
        raise DataError(list(dict.fromkeys(found.issues)))
    photographs_used = list(dict.fromkeys(crop.path for crop in crops))
    files = list(dict.fromkeys(found.files))
    made_from = {**found.made_from, **stamps(photographs_used)}
    digest = _content_digest([*files, *photographs_used], folder.root)
    return Source(tuple(crops), digest, made_from, dict(found.left_out))


def _crop(one: Annotated, label: int, photographs: Path) -> Crop:
    path = photographs / one.image
    return Crop(path, one.box, one.share_K2, one.name, label, one.trained, one.sizes_K2, one.masks)


def _area(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _content_digest(files: list[Path], voc: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(voc).as_posix()}\0{path.stat().st_size}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()


def _check_use(
    category: str,
    landmarks: Sequence[str],
    min_side: float,
    one: Annotations,
    crops: list[Crop],
    where: Path,
) -> None:
    """There are objects, and every landmark that the category has is seen on some."""
    if not crops:
        what = f"no {category} with a box of at least {min_side:g}^2 pixels"
        advice = f"{len(one.objects)} smaller ones were left out; lower data.min_side or choose another data.category."
        one.wrong(where, what, advice)
        return
    for k, landmark in enumerate(landmarks):
        seen = sum(not np.isnan(crop.share_K2[k]).any() for crop in crops)
        if seen < 2 and landmark not in one.lacks:
            what = f"landmark {landmark!r} is seen on {seen} of {len(crops)} objects of {category}"
            one.wrong(where, what, "Location instability needs at least 2; take it out of data.landmarks.")


def _negatives(folder: Path, count: int, landmarks: int, found: Annotations) -> list[Crop]:
    paths = [folder / f"{i:05}.JPEG" for i in range(1, count + 1)]
    there = [path for path in paths if path.is_file()]
    if len(there) < len(paths):
        first = next(path.name for path in paths if not path.is_file())
        what = f"{len(paths) - len(there)} of {count} negative images are missing, first {first}"
        usable = int(first.split(".")[0]) - 1
        lower = f", or set data.negatives to at most {usable}" if usable else ""
        found.wrong(folder, what, f"Add them{lower}.")
    nothing = np.full((landmarks, 2), np.nan)
    return [Crop(path, None, nothing, f"negative {path.stem}", -1) for path in there]


def _check_images(crops: list[Crop], mask_sizes: Mapping[Path, tuple[int, int]], found: Annotations) -> None:
    """The photographs are there and the boxes lie in them; the pixels are decoded later."""
    for crop in crops:
        if not crop.path.is_file():
            found.wrong(crop.path, "no such image", f"The annotation of {crop.name!r} names it.")
            continue
        try:
            width, height = image_size(crop.path)
        except ImageFileError as error:
            found.wrong(crop.path, str(error), AGAIN)
            continue
        if (masks := mask_sizes.get(crop.path)) and masks != (width, height):
            what = f"is {width} x {height} pixels and the masks of {crop.name!r} are {masks[0]} x {masks[1]}"
            found.wrong(crop.path, what, "Photograph and annotation must be of one release of Pascal VOC.")
        if crop.box is None:
            continue
        xmin, ymin, xmax, ymax = crop.box
        if xmin < 1 or ymin < 1 or xmax > width or ymax > height:
            what = f"box (xmin, ymin, xmax, ymax) = {crop.box} of {crop.name!r} is not inside the image"
            found.wrong(crop.path, what, f"The image is {width} x {height} pixels, the first of them 1.")


def _undecodable(crops: list[Crop]) -> list[Issue]:
    """What decoding would say, so that it is told together with the rest."""
    paths = list(dict.fromkeys(crop.path for crop in crops if crop.path.is_file()))
    with closing(_in_threads(lambda path: _issue_of(path, None, 1)[1], paths)) as results:
        return [problem for problem in results if problem]


def _issue_of(path: Path, box: Box | None, size: int) -> tuple[NDArray[np.uint8] | None, Issue | None]:
    try:
        return square_crop(path, box, size), None
    except ImageFileError as error:
        return None, Issue(str(path), str(error), AGAIN)


def decode(source: Source, images_N3SS: NDArray[np.uint8], progress: Callable[[int, int], None] | None) -> None:
    """Decode every crop into the store's array; DataError with every file that does not decode to its end."""
    size, count = images_N3SS.shape[-1], len(source.crops)

    def one(i: int) -> Issue | None:
        image, problem = _issue_of(source.crops[i].path, source.crops[i].box, size)
        if image is not None:
            images_N3SS[i] = image
        return problem

    issues = []
    with closing(_in_threads(one, range(count))) as results:
        for done, problem in enumerate(results, start=1):
            if problem:
                issues.append(problem)
            if progress:
                progress(done, count)
    if issues:
        raise DataError(list(dict.fromkeys(issues)))


def _in_threads(work: Callable[[T], R], over: Sequence[T]) -> Generator[R, None, None]:
    """Results in order; what has not begun is dropped when the generator is closed."""
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        try:
            yield from pool.map(work, over)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax; 1-based and inclusive, as VOC writes them."""


class ImageFileError(ValueError):
    """A file that does not decode to an image; the text says how it fails, without its path."""


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header."""
    with _opened(path) as image:
        return image.size


def square_crop(path: Path, box: Box | None, size: int) -> NDArray[np.uint8]:
    """The box of a photograph (all of it for None) as [3, size, size] RGB; grey becomes RGB.

    Bilinear, antialiased when it shrinks, the aspect ratio not kept (released `getI`). Raises ImageFileError for a
    file that does not decode to its end.
    """
    with _opened(path) as image:
        try:
            rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageFileError(f"does not decode to its end: {error}") from error
    if box is not None:
        xmin, ymin, xmax, ymax = box
        rgb = rgb.crop((xmin - 1, ymin - 1, xmax, ymax))
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def place_in_crop(share_K2: NDArray[np.float64], box: Box, size: int) -> NDArray[np.float64]:
    """Where `square_crop` takes positions of a box: (row, col) in crop pixels, pixel centres at whole numbers.

    `share_K2` are (row, col) as shares of the box, 0 at the centre of its first pixel and 1 at that of its last.
    """
    extent = np.array([box[3] - box[1] + 1, box[2] - box[0] + 1], np.float64)
    return (share_K2 * (extent - 1) + 0.5) * size / extent - 0.5


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageFileError("is not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageFileError(f"cannot be opened as an image: {error}") from error


AGAIN = "Fetch the file again."


@dataclass(frozen=True)
class Annotated:
    """One object as its annotation describes it."""

    image: str
    """Name of its photograph's file, below the folder of photographs."""
    box: Box
    share_K2: NDArray[np.float64]
    """Landmarks as shares of the box, 0 at the centre of its first pixel and 1 at that of its last; NaN unseen."""
    name: str
    trained: bool | None = None
    """Whether the dataset's own split has it for training; None where there is none."""
    sizes_K2: NDArray[np.float64] | None = None
    """(height, width) of the parts' boxes as shares of the crop; NaN where unknown, None where none is known."""
    masks: Sequence[NDArray[np.float32] | None] = ()
    """Patch of each part (`data/part_masks.py`), where masks are read."""
    mask_size: tuple[int, int] | None = None
    """(width, height) of the masks, which must be the photograph's."""


@dataclass
class Annotations:
    """All objects of a category, and what they were read from."""

    objects: list[Annotated] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """The files whose content matters."""
    made_from: Stamps = field(default_factory=dict)
    """Those files and the folders whose listing matters, as they were before they were read."""
    lacks: tuple[str, ...] = ()
    """Landmarks that this category does not have."""
    left_out: Counter[str] = field(default_factory=Counter)
    issues: list[Issue] = field(default_factory=list)

    def wrong(self, where: Path | str, what: str, advice: str) -> None:
        self.issues.append(Issue(str(where), what, advice))


def upright(where: str, box: Box, found: Annotations) -> bool:
    """Whether a box has an inside; told in `found` where it has none."""
    if box[0] < box[2] and box[1] < box[3]:
        return True
    found.wrong(
        where, f"box (xmin, ymin, xmax, ymax) = {box} is inverted or flat", "Expected xmin < xmax and ymin < ymax."
    )
    return False


def box_of(sides: Iterable[Any]) -> Box:
    """xmin, ymin, xmax, ymax as they stand in a file: text, numbers, or arrays of one."""
    xmin, ymin, xmax, ymax = (
        float(side if isinstance(side, str) else np.asarray(side, np.float64).item()) for side in sides
    )
    return round(xmin), round(ymin), round(xmax), round(ymax)
