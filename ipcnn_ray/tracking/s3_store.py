"""Files in an S3 bucket, Amazon's or any compatible server's. No other file imports boto3.

The endpoint, the region and the credentials are boto3's own business: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine. Servers that do not know the newer
checksums need AWS_REQUEST_CHECKSUM_CALCULATION=when_required.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.tracking.storage import checked, write_whole

CONNECT_S, READ_S = 10, 60
REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
MISSING = {"404", "NoSuchKey"}


class S3Storage:
    """A bucket and a prefix in it. Each request is tried again by boto3 (AWS_MAX_ATTEMPTS, default 3)."""

    def __init__(self, url: str) -> None:
        """`url`: s3://BUCKET or s3://BUCKET/PREFIX."""
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise TrackingError(f"IPCNN_STORAGE = {url!r} names no bucket\nGive s3://BUCKET/PREFIX.")
        self.prefix = prefix.strip("/")
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._made: Any = None

    def __reduce__(self) -> tuple[type[S3Storage], tuple[str]]:
        return S3Storage, (self.url,)

    @property
    def _client(self) -> Any:
        if self._made is None:
            config = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"mode": "standard"})
            self._made = boto3.session.Session().client("s3", config=config)
        return self._made

    def put_file(self, local: Path, key: str) -> None:
        with local.open("rb") as source:
            self._put(source, local.stat().st_size, key)

    def put_bytes(self, data: bytes, key: str) -> None:
        self._put(io.BytesIO(data), len(data), key)

    def _put(self, source: IO[bytes], size: int, key: str) -> None:
        name = self._name(key)
        with self._told(f"{key} was not stored"):
            self._client.upload_fileobj(source, self.bucket, name)
            stored = self._client.head_object(Bucket=self.bucket, Key=name)["ContentLength"]
        if stored != size:
            self.delete(key)
            raise TrackingError(
                f"storage {self.url}: {key} was stored with {stored} of its {size} bytes\n"
                "The server loses data. Set IPCNN_STORAGE to another place."
            )

    def get(self, key: str) -> bytes:
        target = io.BytesIO()
        with self._told(f"{key} cannot be read"):
            self._client.download_fileobj(self.bucket, self._name(key), target)
        return target.getvalue()

    def get_file(self, key: str, local: Path) -> None:
        with tempfile.TemporaryFile() as target:
            with self._told(f"{key} cannot be copied to {local}"):
                self._client.download_fileobj(self.bucket, self._name(key), target)
            target.seek(0)
            write_whole(local, target)

    def list(self, prefix: str = "") -> list[str]:
        top = self._name(prefix) if prefix else self.prefix
        below = f"{top}/" if top else ""
        own = len(self.prefix) + 1 if self.prefix else 0
        with self._told("cannot be listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below)
            return sorted(found["Key"][own:] for page in pages for found in page.get("Contents", []))

    def exists(self, key: str) -> bool:
        with self._told(f"{key} cannot be looked up"):
            try:
                self._client.head_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if error.response["Error"]["Code"] in MISSING:
                    return False
                raise
        return True

    def delete(self, key: str) -> None:
        with self._told(f"{key} was not deleted"):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked(key)}".lstrip("/")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """boto3's errors as ours."""
        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            raise TrackingError(f"storage {self.url}: {what}: {error}\n{_advice(error)}") from error


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
