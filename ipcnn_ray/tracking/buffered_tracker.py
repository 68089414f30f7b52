"""A tracker that buffers records on storage while its server is unreachable, so that training continues.

A buffered record is one JSON file, numbered by run:

    <buffer>/<handle>/000012.json    the method and its arguments, and the time
    <buffer>/<handle>/000012.bin     the file that it logs, if it logs one

While a run has such files, its further records are appended to them. When the server responds, they are sent in order,
and each file is deleted once it was sent. A process that is killed in between sends a record twice. That is harmless:
all methods of a run are idempotent (tracker.py), and a buffered record keeps its original time.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from ipcnn_ray.errors import UnreachableError
from ipcnn_ray.tracking.run_summary import State
from ipcnn_ray.tracking.storage import Storage
from ipcnn_ray.tracking.tracker import RecordedRun, RunRecord, Tracker

BACKOFF_S = 15.0
"""Seconds without attempts after one that failed: an epoch loses at most one timeout."""
RETRY_PAUSE_S = 5.0
"""Seconds between two attempts where there is nothing else to do."""

METHODS = {
    "params": "log_params",
    "tags": "set_tags",
    "note": "set_description",
    "metrics": "log_metrics",
    "text": "log_text",
    "file": "log_file",
    "state": "set_state",
}
"""Kinds of buffered records, and the methods that send them. Their keys are the arguments, but `why` for a cause."""

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class BufferedTracker:
    """Tracker that buffers records while `tracker` is unreachable. It pickles.

    Its handles are made of our ids, <experiment>/<run id>/<run id of the parent>, so that a run can be opened without
    the server.
    """

    def __init__(self, tracker: Tracker, buffer: Storage, timeout: float) -> None:
        """
        Args:
            tracker: Tracker of the server.
            buffer: Storage of the buffered records, one for each experiment.
            timeout: Seconds to retry what needs an answer: queries, new runs, models.
        """
        self.tracker = tracker
        self.uri = tracker.uri
        self.buffer = buffer
        self.timeout = timeout
        self._unavailable_until = 0.0
        self._handles: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferedTracker, (self.tracker, self.buffer, self.timeout)

    def prepare(self, experiment: str, description: str = "") -> None:
        self.tracker.prepare(experiment, description)

    def open_parent(self, experiment: str, run_id: str, *, fresh: bool = False) -> RunRecord:
        return self._open(f"{experiment}/{run_id}/", fresh)

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> RunRecord:
        return self._open(f"{experiment}/{run_id}/{parent.split('/')[1]}", fresh)

    def attach(self, handle: str) -> RunRecord:
        return _BufferedRun(self, handle)

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        return self.retry(lambda: self.tracker.find(experiment, run_id))

    def delete(self, handle: str) -> None:
        self.retry(lambda: self.tracker.delete(self.server_handle(handle)))

    def read(self, handle: str, path: str) -> str | None:
        return self.tracker.read(self.server_handle(handle), path)

    def history(self, handle: str, metric: str) -> list[tuple[int, float]]:
        return self.tracker.history(self.server_handle(handle), metric)

    def experiments(self) -> list[str]:
        return self.retry(self.tracker.experiments)

    def flush(self, timeout: float = 0.0) -> int:
        end = time.monotonic() + timeout
        while True:
            handles = dict.fromkeys(unquote(key.split("/")[0]) for key in self._buffered())
            if all([_BufferedRun(self, handle).flush() for handle in handles]):
                return 0
            if time.monotonic() > end:
                return len(self._buffered())
            time.sleep(RETRY_PAUSE_S)

    def _buffered(self) -> list[str]:
        return [key for key in self.buffer.list() if key.endswith(".json")]

    def _open(self, handle: str, fresh: bool) -> RunRecord:
        """Create the run on the server if it responds; a fresh one must be created before it is written to."""
        if fresh:
            self._handles[handle] = self.retry(lambda: self._open_on_server(handle, fresh=True))
        elif self.available():
            try:
                self.server_handle(handle)
            except UnreachableError:
                self.mark_unavailable()
        return _BufferedRun(self, handle)

    def _open_on_server(self, handle: str, fresh: bool = False) -> str:
        experiment, run_id, parent = handle.split("/")
        if not parent:
            return self.tracker.open_parent(experiment, run_id, fresh=fresh).handle
        parent_handle = self.server_handle(f"{experiment}/{parent}/")
        return self.tracker.open_child(experiment, run_id, parent_handle, fresh=fresh).handle

    def server_handle(self, handle: str) -> str:
        """Return the inner tracker's handle of a run; create the run if it is missing."""
        if handle not in self._handles:
            self._handles[handle] = self._open_on_server(handle)
        return self._handles[handle]

    def available(self) -> bool:
        """Whether to attempt a request."""
        return time.monotonic() >= self._unavailable_until

    def mark_unavailable(self) -> None:
        if self.available():
            log.warning(
                "the tracking server %s does not respond; records are buffered in %s", self.uri, self.buffer.url
            )
        self._unavailable_until = time.monotonic() + BACKOFF_S

    def retry(self, request: Callable[[], Result]) -> Result:
        return retry(request, self.timeout)


def retry(request: Callable[[], Result], timeout: float) -> Result:
    """Repeat a request while the server is unreachable, for at most `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        try:
            return request()
        except UnreachableError:
            if time.monotonic() > end:
                raise
        time.sleep(RETRY_PAUSE_S)


class _BufferedRun:
    """A run whose records are sent at once, or buffered behind earlier ones."""

    def __init__(self, tracker: BufferedTracker, handle: str) -> None:
        self.handle = handle
        self._tracker = tracker
        self._record: RunRecord | None = None
        self._folder = quote(handle, safe="")
        self._queue: list[str] | None = None
        """Keys of buffered records, oldest first; None before they are listed."""
        self._written: set[tuple[str, int]] = set()
        """(metric, step) that this process has sent or buffered."""

    def log_params(self, values: Mapping[str, str]) -> None:
        self._write("params", values=dict(values))

    def set_tags(self, values: Mapping[str, str]) -> None:
        self._write("tags", values=dict(values))

    def set_description(self, text: str) -> None:
        self._write("note", text=text)

    def log_metrics(self, history: Sequence[Mapping[str, float]], when: int | None = None) -> None:
        when = when or _now_ms()  # of all attempts: one that was given up may arrive after the next
        if not self._sent("metrics", {"history": history, "when": when}):
            self._append("metrics", {"history": self._unwritten(history), "when": when})
        self._written |= {(key, int(epoch["epoch"])) for epoch in history for key in epoch}

    def log_text(self, content: str, path: str) -> None:
        self._write("text", content=content, path=path)

    def log_file(self, local: Path, folder: str) -> None:
        self._write("file", local=local, folder=folder)

    def log_model(self, module: object, example: object, readme: str) -> None:
        """A model is not buffered: wait for the server, and send what is buffered first."""

        def send() -> None:
            if not self.flush():
                raise UnreachableError(f"the tracking server {self._tracker.uri} does not respond")
            self._server_run().log_model(module, example, readme)

        self._tracker.retry(send)

    def set_state(self, state: State, cause: str = "", when: int | None = None) -> None:
        self._write("state", state=state, cause=cause, when=when)

    def flush(self) -> bool:
        """Send buffered records; return whether none is left."""
        if self._queue is None:
            self._queue = [key for key in self._tracker.buffer.list(self._folder) if key.endswith(".json")]
        while self._queue and self._tracker.available():
            key = self._queue[0]
            try:
                self._send_buffered(key)
            except UnreachableError:
                self._tracker.mark_unavailable()
                return False
            self._tracker.buffer.delete(key)
            self._tracker.buffer.delete(_file_key(key))
            del self._queue[0]
        return not self._queue

    def _server_run(self) -> RunRecord:
        if self._record is None:
            self._record = self._tracker.tracker.attach(self._tracker.server_handle(self.handle))
        return self._record

    def _send(self, kind: str, arguments: Mapping[str, Any]) -> None:
        getattr(self._server_run(), METHODS[kind])(**arguments)

    def _sent(self, kind: str, arguments: Mapping[str, Any]) -> bool:
        """Send a record now, if none is buffered before it and the server responds; return whether it was sent."""
        if self.flush() and self._tracker.available():
            try:
                self._send(kind, arguments)
                return True
            except UnreachableError:
                self._tracker.mark_unavailable()
        return False

    def _write(self, kind: str, **arguments: Any) -> None:
        if not self._sent(kind, arguments):
            self._append(kind, arguments)

    def _append(self, kind: str, arguments: dict[str, Any]) -> None:
        assert self._queue is not None
        last = int(self._queue[-1].split("/")[1].removesuffix(".json")) if self._queue else 0
        key = f"{self._folder}/{last + 1:06}.json"
        content = {"what": kind, **arguments, "when": arguments.get("when") or _now_ms()}
        if kind == "file":
            local = content.pop("local")
            content["name"] = local.name
            self._tracker.buffer.put_file(local, _file_key(key))
        if kind == "state":
            content["why"] = content.pop("cause")
        self._tracker.buffer.put_bytes(json.dumps(content).encode(), key)
        self._queue.append(key)

    def _send_buffered(self, key: str) -> None:
        content = json.loads(self._tracker.buffer.get(key))
        kind, when = content.pop("what"), content.pop("when")
        assert kind in METHODS, f"{kind!r} was written by another version of ipcnn"
        if kind in ("metrics", "state"):
            content["when"] = when
        if kind == "state":
            content["cause"] = content.pop("why")
        if kind != "file":
            self._send(kind, content)
            return
        with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
            local = Path(scratch) / content.pop("name")
            self._tracker.buffer.get_file(_file_key(key), local)
            self._send(kind, {"local": local, **content})

    def _unwritten(self, history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """Return the values that were not written yet, and all that are not finite: their tag lists all of them."""
        rows = []
        for epoch in history:
            step = int(epoch["epoch"])
            row = {key: value for key, value in epoch.items() if (key, step) not in self._written or value - value != 0}
            if row:
                rows.append({"epoch": epoch["epoch"], **row})
        return rows


def _now_ms() -> int:
    return int(time.time() * 1000)


def _file_key(key: str) -> str:
    return key.removesuffix("json") + "bin"
