"""Base classes of datasets: a section of a spec that knows its files and how crops are made of them.

A package adds a dataset with an entry point in ``ipcnn.datasets``, named as the dataset's `kind`: a subclass of
`PhotographDataset` (photographs.py), or of `Dataset` for images that are not photographs with boxes. See
CONTRIBUTING.md. The commands import these modules: numpy, scipy, h5py and PIL are imported in the methods that read.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.data import Data, DataSection
from ipcnn_ray.spec.section import sections

if TYPE_CHECKING:
    from ipcnn_ray.data.crop_store import StorePlan

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class Archive:
    """A file to download."""

    url: str
    moves: tuple[tuple[str, str], ...]
    """(glob of what the archive holds, folder below IPCNN_DATA that it is put into)."""
    md5: str = ""
    """Published checksum; empty if there is none."""
    sha256: str = ""
    """Published SHA-256, or the first digits of it; empty if there is none."""

    @property
    def name(self) -> str:
        """Name of the local file. Files of one name at different addresses get different names."""
        plain = self.url.rstrip("/").rsplit("/", 1)[-1]
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{plain}"


_INTERPRETABLE_CNN = (
    "https://codeload.github.com/zqs1022/interpretableCNN/tar.gz/6d7d1a6aaf0f1b2b03a3b54d4ac4803b3f1ce823"
)


def released_archive(*moves: tuple[str, str]) -> Archive:
    """Zhang et al.'s released code, which holds the negatives and the landmark files of VOC and ILSVRC."""
    return Archive(_INTERPRETABLE_CNN, (*moves, ("*/data/neg", "voc")))


class Listing:
    """Names of the files below IPCNN_DATA: of a local folder, or of a bucket by its keys."""

    def __init__(self, folder: Path | None = None, keys: Sequence[str] = ()) -> None:
        self.folder = folder
        self.keys = keys

    def glob(self, pattern: str) -> list[str]:
        """Return the files that match a pattern in which `*` does not match `/`."""
        if self.folder is not None:
            return [path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern)]
        parts = pattern.split("/")
        return [
            key
            for key in self.keys
            if len(names := key.split("/")) == len(parts) and all(map(fnmatchcase, names, parts))
        ]

    def has(self, folder: str) -> bool:
        """Return whether there is such a folder."""
        if self.folder is not None:
            return (self.folder / folder).is_dir()
        return any(key.startswith(f"{folder}/") for key in self.keys)


class Dataset(DataSection):
    """Base class of every dataset."""

    title: ClassVar[str]
    """What the dataset is, in one line of `ipcnn data list`."""
    version: ClassVar[str] = "1"
    """Version of how crops are made from the same files. Changing it makes every store anew."""
    later: ClassVar[tuple[str, ...]] = ()
    """Fields that were added after the first stores: at their default they are not part of a store's digest."""
    archives: ClassVar[tuple[Archive, ...]] = ()
    """Files that `ipcnn data fetch` downloads."""
    folders: ClassVar[tuple[str, ...]] = ()
    """Folders below IPCNN_DATA when the dataset is complete; the first is its own."""
    split_source: ClassVar[str] = "data.train_share"
    """Field or file that the split comes from."""
    counts: ClassVar[Mapping[str, str]] = {}
    """What `ipcnn doctor` counts: a name in the plural, and a glob below IPCNN_DATA. Without any of the first, the
    dataset is not there."""
    annotated: ClassVar[str] = ""
    """Glob whose first `*` stands for the categories that have landmarks."""

    _declared: ClassVar[tuple[str, ...]] = ("title",)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        fields = [name for name in ("kind", "category", "landmarks", "negatives") if name not in cls.model_fields]
        lacking = fields + [name for name in cls._declared if not hasattr(cls, name)]
        if lacking and not isabstract(cls):
            raise TypeError(f"the dataset {cls.__name__} must declare {', '.join(lacking)}")

    @abstractmethod
    def store_plan(self, root: Path | None, image_size: int, progress: Progress | None) -> StorePlan:
        """Read and check the source of the images, and return how a store is made of it.

        Args:
            root: IPCNN_DATA, None if it is not set.
            image_size: Side of a crop, pixels.
            progress: Called for each crop that is made.

        Raises:
            DataError: With every issue of the source. Nothing has been written.
        """

    @classmethod
    def missing(cls, files: Listing) -> list[str]:
        """Return the folders that are not among `files`."""
        return [folder for folder in cls.folders if not files.has(folder)]

    @classmethod
    def facts(cls, files: Listing) -> dict[str, Any]:
        """Return what `ipcnn doctor` shows of `files`: whether the dataset is there, what is missing, and counts."""
        missing = cls.missing(files)
        facts = {"folder": cls.folders[0], "missing": missing, "counts": {}, "categories": []}
        if cls.folders[0] in missing:
            return {**facts, "there": False}
        counts = {name: len(files.glob(pattern)) for name, pattern in cls.counts.items()}
        level = cls.annotated.split("/").index("*") if cls.annotated else 0
        categories = sorted({path.split("/")[level] for path in files.glob(cls.annotated)}) if cls.annotated else []
        there = not counts or next(iter(counts.values())) > 0
        return {**facts, "counts": counts, "categories": categories, "there": there}

    def count_train_items(self, root: Path | None) -> int | None:
        """Return the number of training items, reading annotations below `root` (IPCNN_DATA) if needed; None if they
        are not there. Raises DataError as `store_plan`."""
        return self.train_items()


def as_dataset(section: DataSection) -> Dataset:
    """Return a data section as the dataset that it is. Raises IpcnnError for a class that is only a section."""
    if not isinstance(section, Dataset):
        name = f"{type(section).__module__}.{type(section).__qualname__}"
        raise IpcnnError(
            f"data.kind = {section.kind}: {name} reads no images\nIt must be a subclass of {__name__}.Dataset."
        )
    return section


def registered() -> dict[str, type[Dataset]]:
    """Return all datasets by kind: those of this package, and those of other installed packages."""
    return {kind: section for kind, section in sections(Data).items() if issubclass(section, Dataset)}
