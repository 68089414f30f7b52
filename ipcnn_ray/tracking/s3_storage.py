"""Storage in an S3 bucket, Amazon's or a compatible server's. No other file imports boto3.

boto3 itself reads the endpoint, region and credentials: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role. Servers without the newer checksums need
AWS_REQUEST_CHECKSUM_CALCULATION=when_required. The SHA-256 of every part is signed with its request, so that a server
rejects a part that was changed in transit; the stored size is compared afterwards.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)

from ipcnn_ray.errors import TrackingError, UnreachableError
from ipcnn_ray.utils.files import checked_key, write_atomic

CONNECT_S, READ_S = 10, 60
PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
"""Pause between attempts: doubled each time, up to the longest."""
REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
MISSING = {"404", "NoSuchKey"}
CHANGED = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
"""Answers to a conditional request whose condition does not hold, or that met another one."""
UNKNOWN = {"501", "NotImplemented", "InvalidArgument", "InvalidRequest"}
"""Answers of servers that refuse conditional requests."""
BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestTimeTooSkewed"}

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Version(NamedTuple):
    """Content of a file and its ETag."""

    data: bytes
    etag: str


@functools.lru_cache(maxsize=4)
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    """Return the client for these AWS_ variables. Threads may share it."""
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard"},
        s3={"payload_signing_enabled": True},
    )
    return boto3.session.Session().client("s3", config=config)


class S3Storage:
    """A prefix of a bucket. boto3 retries each request (AWS_MAX_ATTEMPTS, default 3); then it is repeated until the
    timeout."""

    def __init__(self, url: str, timeout: float = 0.0) -> None:
        """
        Args:
            url: s3://BUCKET or s3://BUCKET/PREFIX.
            timeout: Seconds to retry while the server does not respond.
        """
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise TrackingError(f"IPCNN_STORAGE = {url!r} names no bucket\nGive s3://BUCKET/PREFIX.")
        self.prefix = prefix.strip("/")
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.timeout = timeout

    def __reduce__(self) -> tuple[type[S3Storage], tuple[str, float]]:
        return S3Storage, (self.url, self.timeout)

    @property
    def _client(self) -> Any:
        return _client(tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))))

    def put_file(self, local: Path, key: str) -> None:
        self._put(lambda: local.open("rb"), local.stat().st_size, key)

    def put_bytes(self, data: bytes, key: str) -> None:
        self._put(lambda: BytesIO(data), len(data), key)

    def _put(self, source: Callable[[], IO[bytes]], size: int, key: str) -> None:
        name = self._name(key)

        def put() -> int:
            with source() as stream:
                self._client.upload_fileobj(stream, self.bucket, name)
            return int(self._client.head_object(Bucket=self.bucket, Key=name)["ContentLength"])

        stored = self._request(f"{key} was not stored", put)
        if stored != size:
            self.delete(key)
            raise TrackingError(
                f"storage {self.url}: {key} was stored with {stored} of its {size} bytes\n"
                "The server loses data. Set IPCNN_STORAGE to another place."
            )

    def get(self, key: str) -> bytes:
        def get() -> bytes:
            target = BytesIO()
            self._client.download_fileobj(self.bucket, self._name(key), target)
            return target.getvalue()

        return self._request(f"{key} cannot be read", get)

    def find(self, key: str) -> bytes | None:
        version = self.get_version(key)
        return version.data if version else None

    def get_version(self, key: str) -> Version | None:
        """Return a small file with its ETag, or None if it does not exist."""

        def get() -> Version | None:
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if error.response["Error"]["Code"] in MISSING:
                    return None
                raise
            return Version(answer["Body"].read(), answer["ETag"])

        return self._request(f"{key} cannot be read", get)

    def put_if_unchanged(self, data: bytes, key: str, version: Version | None) -> Version | None:
        """Store a small file if it still is that version, or does not exist (None); return the new version.

        Returns None if another process has changed the file. Of no use on a server without `conditional_writes`.

        Args:
            data: Content that no other process writes: where an answer is lost, the file is read back and compared.
        """

        def put(condition: dict[str, str]) -> Version | None:
            try:
                answer = self._client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, **condition)
            except ClientError as error:
                if error.response["Error"]["Code"] in CHANGED | MISSING:
                    return None
                raise
            return Version(data, answer["ETag"])

        # Ceph (up to version 16 at least) compares the ETag without its quotes.
        etags = [version.etag, version.etag.strip('"')] if version else []
        for condition in [{"IfMatch": etag} for etag in etags] or [{"IfNoneMatch": "*"}]:
            stored = self._request(f"{key} was not stored", functools.partial(put, condition))
            if stored is not None:
                return stored
        if (now := self.get_version(key)) is not None and now.data == data:
            return now
        return None

    def conditional_writes(self) -> bool:
        """Return whether the server obeys If-None-Match and If-Match of PutObject; some ignore or refuse them.

        Tries them on a file of its own, which is deleted. A server that checks and writes in two steps is not detected.
        """
        key = f"probe-{secrets.token_hex(8)}"
        try:
            first = self.put_if_unchanged(b"1", key, None)
            if first is None or self.put_if_unchanged(b"2", key, None) is not None:
                return False
            if self.put_if_unchanged(b"3", key, first) is None or self.put_if_unchanged(b"4", key, first) is not None:
                return False
            return self.get(key) == b"3"
        except TrackingError as error:
            if isinstance(error.__cause__, ClientError) and error.__cause__.response["Error"]["Code"] in UNKNOWN:
                return False
            raise
        finally:
            self.delete(key)

    def get_file(self, key: str, local: Path) -> None:
        def get() -> None:
            with tempfile.TemporaryFile() as target:
                self._client.download_fileobj(self.bucket, self._name(key), target)
                target.seek(0)
                write_atomic(local, target)

        self._request(f"{key} cannot be copied to {local}", get)

    def list(self, prefix: str = "") -> list[str]:
        return sorted(self._entries(prefix))

    def checksums(self) -> dict[str, str]:
        return {key: f"{size}-{etag}" for key, (size, etag) in self._entries("").items()}

    def sizes(self) -> dict[str, int]:
        return {key: size for key, (size, _) in self._entries("").items()}

    def _entries(self, prefix: str) -> dict[str, tuple[int, str]]:
        """Return size and ETag of every file below a folder, by key."""
        top = self._name(prefix) if prefix else self.prefix
        folder = f"{top}/" if top else ""
        start = len(self.prefix) + 1 if self.prefix else 0

        def entries() -> dict[str, tuple[int, str]]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
            listed = [entry for page in pages for entry in page.get("Contents", [])]
            return {entry["Key"][start:]: (int(entry.get("Size", 0)), str(entry.get("ETag"))) for entry in listed}

        return self._request("cannot be listed", entries)

    def exists(self, key: str) -> bool:
        def exists() -> bool:
            try:
                self._client.head_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if error.response["Error"]["Code"] in MISSING:
                    return False
                raise
            return True

        return self._request(f"{key} cannot be looked up", exists)

    def delete(self, key: str) -> None:
        name = self._name(key)
        self._request(f"{key} was not deleted", lambda: self._client.delete_object(Bucket=self.bucket, Key=name))

    def move(self, prefix: str, target: str, leave: str = "") -> None:
        for key in self.list(prefix):
            if key == leave:
                continue
            source = {"Bucket": self.bucket, "Key": self._name(key)}
            name = self._name(target + key.removeprefix(prefix))
            self._request(f"{key} was not moved", functools.partial(self._client.copy, source, self.bucket, name))
            self.delete(key)

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}".lstrip("/")

    def _request(self, failure: str, request: Callable[[], Result]) -> Result:
        """Send a request, with retries; raise boto3's errors as TrackingError, which begins with `failure`."""
        end, pause = time.monotonic() + self.timeout, PAUSE_S
        while True:
            try:
                return request()
            except (BotoCoreError, Boto3Error, ClientError) as error:
                text = f"storage {self.url}: {failure}: {error}\n{_advice(error)}"
                if not _is_temporary(error):
                    raise TrackingError(text) from error
                if time.monotonic() + pause > end:
                    raise UnreachableError(text) from error
                log.warning("storage %s: %s: %s; retry in %.0f s", self.url, failure, error, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def _is_temporary(error: Exception) -> bool:
    """Whether the server is unreachable or busy, so that a retry may succeed."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (status >= 500 and status != 501) or error.response["Error"]["Code"] in BUSY
    if isinstance(error, Boto3Error):
        return True  # a transfer after its own retries
    return isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError)


def _advice(error: Exception) -> str:
    text = str(error)
    code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
    if isinstance(error, NoCredentialsError):
        return "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, on every machine."
    if isinstance(error, EndpointConnectionError):
        return "Check that the server is up and AWS_ENDPOINT_URL is right (unset: Amazon's)."
    if code == "NoSuchBucket" or "NoSuchBucket" in text:
        return "Create the bucket, or name another one in IPCNN_STORAGE."
    if code in REFUSED or any(name in text for name in REFUSED if not name.isdigit()):
        return "Check the credentials, and that they may read, write, list and delete in this bucket."
    if code in MISSING:
        return "It was never stored, or was deleted."
    return "Try again; a server that keeps failing may need AWS_REQUEST_CHECKSUM_CALCULATION=when_required."
