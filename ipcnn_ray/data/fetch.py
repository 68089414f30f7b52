"""Downloads of the real datasets from their official addresses.

A download that broke off is taken up where it stopped; a file is checked before it is unpacked; and what is unpacked
appears in its place whole or not at all. What is there already is left alone.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.utils.locks import LockedError, file_lock

DOWNLOADS = ".downloads"
"""Folder below IPCNN_DATA where files lie until they are unpacked."""
CHUNK = 1 << 20
SILENCE_SECONDS = 60


@dataclass(frozen=True)
class Archive:
    """One file to download."""

    url: str
    moves: tuple[tuple[str, str], ...]
    """(what of the archive, as a glob; the folder below IPCNN_DATA that it is put into)."""
    md5: str = ""
    """Published checksum; empty where nobody publishes one."""

    @property
    def name(self) -> str:
        """Name of the file on this machine: two files of one name have different addresses."""
        plain = self.url.rstrip("/").rsplit("/", 1)[-1]
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{plain}"


@dataclass(frozen=True)
class Dataset:
    """What a kind of the data section needs."""

    title: str
    archives: tuple[Archive, ...]
    folders: tuple[str, ...]
    """Where it lies below IPCNN_DATA when it is complete."""


VOC_NEGATIVES = ("*/data/neg", "voc")
INPUT = "*/code/data_input/data_input_"
ZHANG = "https://codeload.github.com/zqs1022/interpretableCNN/tar.gz/6d7d1a6aaf0f1b2b03a3b54d4ac4803b3f1ce823"
DATASETS: dict[str, Dataset] = {
    "voc_part": Dataset(
        "Pascal VOC Part: six animals (VOC 2010 photographs, Zhang et al.'s landmarks, Pascal-Part's masks)",
        (
            Archive(
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
                (("VOCdevkit/VOC2010", "voc/VOCdevkit"),),
                "da459979d0c395079b5c75ee67908abb",
            ),
            Archive(ZHANG, ((f"{INPUT}VOC/*/", "voc/landmarks"), VOC_NEGATIVES)),
            Archive(
                "https://roozbehm.info/pascal-parts/trainval.tar.gz",
                (("Annotations_Part", "voc/VOCdevkit/VOC2010"),),
                "2fa0a19ee9b5e43b2bee520166111120",
            ),
        ),
        ("voc/VOCdevkit/VOC2010/JPEGImages", "voc/landmarks", "voc/neg"),
    ),
    "ilsvrc_animal_part": Dataset(
        "ILSVRC animal part: thirty animals (crops and boxes of ILSVRC 2013 DET, Zhang et al.'s landmarks)",
        (
            Archive(
                "https://codeload.github.com/zqs1022/detanimalpart/tar.gz/refs/heads/master",
                (("*/n*_obj", "detanimalpart"),),
            ),
            Archive(ZHANG, ((f"{INPUT}DET-2015-subset-ILSVRC2013train/n*", "detanimalpart/landmarks"), VOC_NEGATIVES)),
        ),
        ("detanimalpart", "detanimalpart/landmarks", "voc/neg"),
    ),
    "cub200": Dataset(
        "Caltech-UCSD Birds 200-2011: 11,788 birds of 200 species with 15 parts",
        (
            Archive(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                (("CUB_200_2011", ""),),
                "97eceeb196236b17998738112f37df78",
            ),
            Archive(ZHANG, (VOC_NEGATIVES,)),
        ),
        ("CUB_200_2011", "voc/neg"),
    ),
}
"""By the kind of the data section. Sources: the setup_*.m of Zhang et al.'s released code, with the present addresses
of Pascal-Part and CUB; the md5 sums are those that torchvision (VOC 2010) and the datasets' users check against."""

Progress = Callable[[str, int, int | None], None]
"""Called with (address, bytes here, bytes in all or None)."""


def fetch(dataset: Dataset, root: Path, progress: Progress | None = None) -> list[Path]:
    """Download and unpack what is not there; the folders and files that were put in place.

    Raises DataError when an address cannot be read, a file is not what it should be, or another process is at it.
    """
    downloads = root / DOWNLOADS
    downloads.mkdir(parents=True, exist_ok=True)
    placed: list[Path] = []
    try:
        with file_lock(downloads / "lock", timeout=0):
            for archive in dataset.archives:
                done = downloads / f"{archive.name}.done"
                if not done.exists():
                    file = download(archive, downloads, progress)
                    placed += _unpack(archive, file, root)
                    done.touch()
                    file.unlink()
    except LockedError as error:
        what = "another process downloads into this folder"
        raise DataError([Issue(str(downloads), what, "Wait for it to end, then ask again.")]) from error
    return placed


def download(archive: Archive, folder: Path, progress: Progress | None = None) -> Path:
    """The archive's file, whole and checked; what an earlier call left of it is used.

    `<name>.part` grows while bytes arrive and becomes `<name>` at the end. The rest is asked for only of the version
    that the first bytes came from (If-Range): a file that has changed meanwhile begins anew.
    """
    whole, part, version = (folder / f"{archive.name}{end}" for end in ("", ".part", ".version"))
    if whole.exists():
        return whole
    have = part.stat().st_size if part.exists() and version.exists() else 0
    request = urllib.request.Request(archive.url, headers={"User-Agent": "ipcnn"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version.read_text())
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:
            _receive(archive, answer, part, version, have, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies behind what is here: it cannot be the file's beginning
            part.unlink()
            return download(archive, folder, progress)
        advice = "Try again later, or unpack it by hand."
        raise _problem(archive, f"answers {error.code} {error.reason}", advice) from error
    except (OSError, http.client.HTTPException) as error:
        here = part.stat().st_size if part.exists() else 0
        why = str(getattr(error, "reason", error)) or type(error).__name__
        raise _problem(
            archive, f"broke off after {here} bytes: {why}", "The same command goes on from there."
        ) from error
    if archive.md5 and (found := _md5(part)) != archive.md5:
        part.unlink()
        advice = "It was deleted. Ask again; if that does not help, the file at this address has changed."
        raise _problem(archive, f"has the md5 sum {found}, expected {archive.md5}", advice)
    os.replace(part, whole)
    version.unlink(missing_ok=True)
    return whole


def _receive(
    archive: Archive, answer: http.client.HTTPResponse, part: Path, version: Path, have: int, progress: Progress | None
) -> None:
    """Write what arrives behind the `have` bytes that are there, or from the start where the server sends all.

    A connection that closes too early is an OSError.
    """
    if answer.status != 206:
        have = 0
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if tag and not tag.startswith("W/"):
        version.write_text(tag)
    else:
        version.unlink(missing_ok=True)
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            have += len(chunk)
            if progress:
                progress(archive.url, have, total)
    if total is not None and have < total:
        raise OSError(f"{total} bytes were announced")


def _problem(archive: Archive, what: str, advice: str) -> DataError:
    return DataError([Issue(archive.url, what, advice)])


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _unpack(archive: Archive, file: Path, root: Path) -> list[Path]:
    """Put what an archive holds in place: unpacked beside it first, then moved, each thing by one rename."""
    making = file.with_name(f"{file.name}.unpacked")
    shutil.rmtree(making, ignore_errors=True)
    try:
        try:
            with tarfile.open(file) as tar:
                tar.extractall(making, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            file.unlink()
            raise _problem(archive, f"does not unpack: {error}", "It was deleted. Ask again.") from error
        placed: list[Path] = []
        for inside, folder in archive.moves:
            found = sorted(making.glob(inside))
            if not found:
                advice = "The archive at this address is another one than expected; unpack it by hand."
                raise _problem(archive, f"does not hold {inside}", advice)
            placed += [path for one in found for path in _put(one, root / folder / one.name)]
        return placed
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _put(source: Path, target: Path) -> list[Path]:
    """Move to `target`, or, where a folder of that name is there, what it lacks of it; what was put."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return [target]
    if not source.is_dir() or not target.is_dir():
        return []
    return [path for one in sorted(source.iterdir()) for path in _put(one, target / one.name)]


def missing(dataset: Dataset, root: Path | None) -> Sequence[str]:
    """The folders of a dataset that are not there."""
    return [folder for folder in dataset.folders if root is None or not (root / folder).is_dir()]
