"""A small S3 server on loopback that can be told to misbehave."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest


class FakeS3:
    """One bucket, `bucket`. Faults are attributes; they hold until changed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[int, bytes] = {}
        self.requests: list[str] = []
        self.refuse_parts: int | None = None
        """Status of every upload of a part."""
        self.busy = 0
        """So many further requests are answered with 503."""
        self.gone: Callable[[str], bool] | None = None
        """Asked for every request, such as `PUT a/b`, whether it gets no answer."""
        self.keep: int | None = None
        """So many bytes of every object are kept."""
        self.garble = False
        """Objects are read back with their first byte changed."""
        self.conditions: Literal["obeyed", "ignored", "refused"] = "obeyed"
        """What is made of If-None-Match and If-Match of PUT."""
        self.bare_etags = False
        """If-Match is compared without the quotes of an ETag, as Ceph does."""
        self.delay: Callable[[str], float] | None = None
        """Asked for every request for the seconds that it takes to arrive."""
        self.lock = threading.Lock()


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FakeS3

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"ETag": '"x"', "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.reply(status, f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode())

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        self.store.requests.append(f"{self.command} {self.path}")
        if self.store.delay is not None:
            time.sleep(self.store.delay(f"{self.command} {key}"))
        if self.store.gone is not None and self.store.gone(f"{self.command} {key}"):
            self.close_connection = True  # without an answer, as a server that ends
        elif self.store.busy:
            self.store.busy -= 1
            self.fail(503, "SlowDown")
        elif bucket != "bucket":
            self.fail(404, "NoSuchBucket")
        elif self.command == "POST" and "uploads" in query:
            self.reply(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
        elif self.command == "POST":
            self.put(key, b"".join(self.store.parts[number] for number in sorted(self.store.parts)))
            self.store.parts.clear()
            self.reply(200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
        elif self.command == "PUT" and "partNumber" in query:
            if self.store.refuse_parts:
                self.fail(self.store.refuse_parts, "AccessDenied" if self.store.refuse_parts == 403 else "SlowDown")
                return
            self.store.parts[int(query["partNumber"])] = body
            self.reply(200)
        elif self.command == "PUT" and "x-amz-copy-source" in self.headers:
            source = unquote(self.headers["x-amz-copy-source"]).lstrip("/").partition("/")[2]
            self.put(key, self.store.objects[source])
            self.reply(200, b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
        elif self.command == "PUT":
            with self.store.lock:
                refusal = self.refusal(key)
                if refusal is None:
                    self.put(key, body)
            if refusal is not None:
                self.fail(*refusal)
            else:
                self.reply(200, ETag=etag(body))
        elif self.command == "DELETE":
            self.store.objects.pop(key, None)
            self.reply(204)
        elif "list-type" in query:
            found = sorted(name for name in self.store.objects if name.startswith(query.get("prefix", "")))
            listed = "".join(f"<Contents><Key>{escape(name)}</Key>{self.facts(name)}</Contents>" for name in found)
            self.reply(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())
        elif key not in self.store.objects:
            self.fail(404, "NoSuchKey")
        else:
            self.read(self.store.objects[key])

    def refusal(self, key: str) -> tuple[int, str] | None:
        """Status and code of a conditional PUT that is not carried out."""
        absent, same = self.headers.get("If-None-Match"), self.headers.get("If-Match")
        if (absent is None and same is None) or self.store.conditions == "ignored":
            return None
        if self.store.conditions == "refused":
            return 501, "NotImplemented"
        there = self.store.objects.get(key)
        expected = etag(there or b"").strip('"' if self.store.bare_etags else "")
        if same is not None and there is None:
            return 404, "NoSuchKey"
        if (absent is not None and there is not None) or (same is not None and same != expected):
            return 412, "PreconditionFailed"
        return None

    def facts(self, key: str) -> str:
        body = self.store.objects[key]
        return f"<Size>{len(body)}</Size><ETag>{hashlib.md5(body).hexdigest()}</ETag>"

    def put(self, key: str, body: bytes) -> None:
        self.store.objects[key] = body[: self.store.keep] if self.store.keep is not None else body

    def read(self, body: bytes) -> None:
        if self.store.garble:
            body = bytes([body[0] ^ 255]) + body[1:]
        wanted = self.headers.get("Range")
        if wanted is None:
            self.reply(200, body, ETag=etag(body))
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        end = min(int(last) if last else len(body) - 1, len(body) - 1)
        self.reply(206, body[int(first) : end + 1], Content_Range=f"bytes {first}-{end}/{len(body)}")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def fake_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """The server, with the environment that leads boto3 to it."""
    store = FakeS3()
    handler = type("Bound", (Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_CONFIG_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield store
    server.shutdown()
    server.server_close()
