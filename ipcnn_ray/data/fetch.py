"""Downloads the archives of datasets, and files of weights, from their official addresses.

An interrupted download is resumed. A file is checked before it is unpacked, and what is unpacked appears in its place
completely or not at all. Existing files are left alone.
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
from dataclasses import replace
from pathlib import Path

from ipcnn_ray.data.datasets.dataset import Archive
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.utils.files import sha256_of
from ipcnn_ray.utils.locks import LockedError, file_lock

DOWNLOADS = ".downloads"
"""Folder below IPCNN_DATA of files that are not unpacked yet."""
MIB = 1 << 20
CHUNK = MIB
TIMEOUT_S = 60
"""Seconds without a byte after which a connection counts as broken."""

Progress = Callable[[str, int, int | None], None]
"""Called with (address, bytes received, bytes in total or None)."""


def fetch(archives: Sequence[Archive], root: Path, progress: Progress | None = None) -> list[Path]:
    """Download and unpack archives into `root`, each once; return the folders and files that were put in place.

    Raises DataError if an address cannot be read, a file is not what it should be, or another process fetches, too.
    """
    downloads = root / DOWNLOADS
    downloads.mkdir(parents=True, exist_ok=True)
    placed: list[Path] = []
    try:
        with file_lock(downloads / "lock", timeout=0):
            for archive in archives:
                done = downloads / f"{archive.name}.done"
                if not done.exists():
                    file = download(archive, downloads, progress)
                    placed += _unpack(archive, file, root)
                    done.touch()
                    file.unlink()
    except LockedError as error:
        what = "another process downloads into this folder"
        raise DataError([Issue(str(downloads), what, "Wait for it to end, then fetch again.")]) from error
    return placed


def fetch_file(archive: Archive, target: Path, progress: Progress | None = None) -> None:
    """Download a file to `target`, unless it is there, and check its hash.

    Its bytes arrive in `.downloads` beside it; while one process downloads, others wait for it. Raises DataError, also
    if the folder cannot be written.
    """
    if target.exists():
        if damage := _wrong_hash(archive, target):
            raise DataError([Issue(str(target), damage, f"Delete it, and it is downloaded from {archive.url}.")])
        return
    downloads = target.parent / DOWNLOADS
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with file_lock(downloads / f"{target.name}.lock"):
            if not target.exists():
                os.replace(download(archive, downloads, progress), target)
    except DataError as error:
        (issue,) = error.issues
        advice = f"{issue.advice} Without a connection, fetch it elsewhere and put it here as {target}"
        raise DataError([replace(issue, advice=advice)]) from error
    except OSError as error:
        advice = f"Free or unlock the folder, or put {archive.url} there yourself, as {target.name}."
        raise DataError([Issue(str(target), f"cannot be written: {error.strerror or error}", advice)]) from error


def progress_lines(write: Callable[[str], None]) -> Progress:
    """Return a progress that writes a line per tenth of a download or, if its length is unknown, per 100 MiB."""
    written: tuple[str, int] = ("", 0)

    def progress(url: str, have: int, total: int | None) -> None:
        nonlocal written
        step = have * 10 // total if total else have // (100 * MIB)
        if (url, step) != written:
            written = (url, step)
            of = f" of {total / MIB:.0f}" if total else ""
            write(f"{url}  {have / MIB:.0f}{of} MiB")

    return progress


def download(archive: Archive, folder: Path, progress: Progress | None = None) -> Path:
    """Return the archive's file, complete and checked. Resumes what an earlier call has left.

    `<name>.part` grows while bytes arrive and becomes `<name>` at the end. The rest is requested only of the version
    that the first bytes came from (If-Range); a file that has changed begins anew.
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
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            _receive(archive, answer, part, version, have, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file is not longer than what is here, which is not its beginning
            part.unlink()
            return download(archive, folder, progress)
        advice = "Try again later, or unpack it by hand."
        raise _error(archive, f"answers {error.code} {error.reason}", advice) from error
    except (OSError, http.client.HTTPException) as error:
        here = part.stat().st_size if part.exists() else 0
        why = str(getattr(error, "reason", error)) or type(error).__name__
        raise _error(archive, f"broke off after {here} bytes: {why}", "The same command resumes it.") from error
    if damage := _wrong_hash(archive, part):
        part.unlink()
        advice = "It was deleted. Fetch again; if that does not help, the file at this address has changed."
        raise _error(archive, damage, advice)
    os.replace(part, whole)
    version.unlink(missing_ok=True)
    return whole


def _receive(
    archive: Archive, answer: http.client.HTTPResponse, part: Path, version: Path, have: int, progress: Progress | None
) -> None:
    """Append what arrives to the `have` bytes of `part`, or start over if the server sends the whole file.

    Raises OSError if the connection closes too early.
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


def _error(archive: Archive, what: str, advice: str) -> DataError:
    return DataError([Issue(archive.url, what, advice)])


def _wrong_hash(archive: Archive, path: Path) -> str:
    """Return what is wrong with the hash of a file; empty if it is as published, or none is."""
    with path.open("rb") as stream:
        if archive.md5 and (md5 := hashlib.file_digest(stream, "md5").hexdigest()) != archive.md5:
            return f"has the md5 sum {md5}, expected {archive.md5}"
    if archive.sha256 and not (sha256 := sha256_of(path)).startswith(archive.sha256):
        return f"has the SHA-256 {sha256}, expected {archive.sha256}{'...' if len(archive.sha256) < 64 else ''}"
    return ""


def _unpack(archive: Archive, file: Path, root: Path) -> list[Path]:
    """Unpack an archive beside its file, then move each of its parts into place by one rename."""
    making = file.with_name(f"{file.name}.unpacked")
    shutil.rmtree(making, ignore_errors=True)
    try:
        try:
            with tarfile.open(file) as tar:
                tar.extractall(making, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            file.unlink()
            raise _error(archive, f"does not unpack: {error}", "It was deleted. Fetch again.") from error
        placed: list[Path] = []
        for inside, folder in archive.moves:
            matches = sorted(making.glob(inside))
            if not matches:
                advice = "The archive at this address is another one than expected; unpack it by hand."
                raise _error(archive, f"does not hold {inside}", advice)
            placed += [path for match in matches for path in _put(match, root / folder / match.name)]
        return placed
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _put(source: Path, target: Path) -> list[Path]:
    """Move a file or folder to `target`, of an existing folder only what it lacks; return what was moved."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return [target]
    if not source.is_dir() or not target.is_dir():
        return []
    return [path for entry in sorted(source.iterdir()) for path in _put(entry, target / entry.name)]
