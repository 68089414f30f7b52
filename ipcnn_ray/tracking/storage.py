"""Storage of the files of runs: one protocol for a folder and a bucket.

A key is the relative path of a file, such as `uniform-1a2b3c4d-r1/checkpoints/epoch-0007/meta.json`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.utils.files import PARTIAL, checked_key, write_atomic

PREFLIGHT_BYTES = 1 << 20
"""A broken store may accept empty files."""


class Storage(Protocol):
    """Files that are stored whole or not at all. It pickles. All methods raise TrackingError."""

    url: str

    def put_file(self, local: Path, key: str) -> None:
        """Store a local file."""
        ...

    def put_bytes(self, data: bytes, key: str) -> None: ...

    def get(self, key: str) -> bytes:
        """Return the content of a file. A missing file is an error."""
        ...

    def find(self, key: str) -> bytes | None:
        """Return the content of a small file, or None if it does not exist. One request."""
        ...

    def get_file(self, key: str, local: Path) -> None:
        """Copy a file to the local path, which appears whole or not at all."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted keys of all files, or of those below a folder."""
        ...

    def checksums(self) -> dict[str, str]:
        """Return a string for each key that changes with the file's content. Reads no content."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file by key."""
        ...

    def exists(self, key: str) -> bool: ...

    def delete(self, key: str) -> None:
        """Delete a file. A missing file is not an error."""
        ...

    def move(self, prefix: str, target: str, leave: str = "") -> None:
        """Move all files below a folder to `target`, which must not exist; in a bucket, one by one.

        leave: Key of a file that stays.
        """
        ...


class LocalStorage:
    """A folder, possibly on a shared file system."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.url = str(self.folder)

    def put_file(self, local: Path, key: str) -> None:
        with self._errors(f"{key} was not stored"), local.open("rb") as source:
            write_atomic(self._path(key), source)

    def put_bytes(self, data: bytes, key: str) -> None:
        with self._errors(f"{key} was not stored"):
            write_atomic(self._path(key), data)

    def get(self, key: str) -> bytes:
        with self._errors(f"{key} cannot be read"):
            return self._path(key).read_bytes()

    def find(self, key: str) -> bytes | None:
        with self._errors(f"{key} cannot be read"):
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def get_file(self, key: str, local: Path) -> None:
        with self._errors(f"{key} cannot be copied to {local}"), self._path(key).open("rb") as source:
            write_atomic(local, source)

    def list(self, prefix: str = "") -> list[str]:
        top = self._path(prefix) if prefix else self.folder
        files = (path for path in top.rglob("*") if path.is_file() and not path.name.startswith(PARTIAL))
        return sorted(path.relative_to(self.folder).as_posix() for path in files)

    def checksums(self) -> dict[str, str]:
        stats = ((key, self._path(key).stat()) for key in self.list())
        return {key: f"{stat.st_size}-{stat.st_mtime_ns}" for key, stat in stats}

    def sizes(self) -> dict[str, int]:
        return {key: self._path(key).stat().st_size for key in self.list()}

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        with self._errors(f"{key} was not deleted"):
            self._path(key).unlink(missing_ok=True)

    def move(self, prefix: str, target: str, leave: str = "") -> None:
        pairs = [(prefix, target)]
        if leave and self.exists(leave):
            pairs = [(key, target + key.removeprefix(prefix)) for key in self.list(prefix) if key != leave]
        for old, new in pairs:
            with self._errors(f"{old} was not moved to {new}"):
                self._path(new).parent.mkdir(parents=True, exist_ok=True)
                self._path(old).rename(self._path(new))

    def _path(self, key: str) -> Path:
        return self.folder / checked_key(key)

    @contextmanager
    def _errors(self, failure: str) -> Iterator[None]:
        """Raise OSError as TrackingError, which begins with `failure`."""
        try:
            yield
        except OSError as error:
            raise TrackingError(
                f"storage {self.url}: {failure}: {error.strerror or error}\n"
                "Check that the folder may be written and the disk has room, or set IPCNN_STORAGE to another place."
            ) from error


def is_url(location: str | Path) -> bool:
    return "://" in str(location)


def join_path(location: str, *names: str) -> str:
    """Append names to a path or URL."""
    return "/".join([location.rstrip("/"), *names])


def open_storage(url: str, timeout: float = 0.0) -> Storage:
    """Return the storage of a path or an s3://BUCKET/PREFIX URL, without accessing it.

    timeout: Seconds to retry while the server does not respond, before UnreachableError is raised.
    """
    if url.startswith("s3://"):
        from ipcnn_ray.tracking.s3_storage import S3Storage

        return S3Storage(url, timeout)
    if "://" in url:
        raise TrackingError(
            f"IPCNN_STORAGE = {url!r} is of no known kind\n"
            "Give a path, or s3://BUCKET/PREFIX (with AWS_ENDPOINT_URL for another server than Amazon's)."
        )
    return LocalStorage(url)


def preflight(url: str) -> Storage:
    """Open a storage; write, read, compare and delete 1 MiB. Raises TrackingError."""
    storage = open_storage(url)
    key = f"preflight-{secrets.token_hex(8)}"
    data = secrets.token_bytes(PREFLIGHT_BYTES)
    storage.put_bytes(data, key)
    back = storage.get(key)
    storage.delete(key)
    if back != data:
        raise TrackingError(
            f"storage {storage.url}: {len(data)} bytes were written and {len(back)} other ones came back\n"
            "The store is not to be trusted with checkpoints. Set IPCNN_STORAGE to another place."
        )
    return storage
