"""A record whose server may be away: training goes on, and what was to be recorded waits in the storage.

What cannot be said now is written as one small file per statement, by run and in order, below the experiment's place:

    spool/<handle>/000012.json     what was said, and when
    spool/<handle>/000012.bin      the file that it speaks of, if it speaks of one

As long as a run has such files, everything further about it is put behind them. They are said again, oldest first,
when the server answers, and each is deleted only after it was recorded: a process that is killed in between says it
twice, which changes nothing, since statements are idempotent (protocol.py): what the record already has of (metric,
step) is skipped, and a repeated request carries the time of the first.
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
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.storage import Storage, open_storage
from ipcnn_ray.tracking.tracker import RecordedRun, RunRecord, State, Tracker
from ipcnn_ray.tracking.tracking_uri import is_server

AWAY_S = 15.0
"""A server that did not answer is left alone so long: an epoch costs at most one vain attempt."""
PATIENCE_S = 1800.0
"""Seconds that a question to the record waits for its answer while an experiment is under way."""
PAUSE_S = 5.0
"""Between two attempts where there is nothing else to do than to wait."""

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


class BufferedTracker:
    """A tracker that goes on without its server. It pickles.

    A handle names a run by our own ids, so that a run can begin while nobody answers:
    <experiment>/<run id>/<run id of the parent>.
    """

    def __init__(self, tracker: Tracker, spool: Storage, patience: float) -> None:
        """spool: where to wait; one for each experiment. patience: seconds that a question waits for its answer."""
        self.tracker = tracker
        self.spool = spool
        self.patience = patience
        self._away_until = 0.0
        self._handles: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferedTracker, (self.tracker, self.spool, self.patience)

    @property
    def uri(self) -> str:
        return self.tracker.uri

    def prepare(self, experiment: str, note: str = "") -> None:
        self.tracker.prepare(experiment, note)

    def open_parent(self, experiment: str, run_id: str, *, fresh: bool = False) -> RunRecord:
        return self._open(f"{experiment}/{run_id}/", fresh)

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> RunRecord:
        return self._open(f"{experiment}/{run_id}/{parent.split('/')[1]}", fresh)

    def attach(self, handle: str) -> RunRecord:
        return _BufferedRun(self, handle)

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        return self._patiently(lambda: self.tracker.find(experiment, run_id))

    def read(self, handle: str, path: str) -> str | None:
        return self.tracker.read(self.own_handle(handle), path)

    def history(self, handle: str, metric: str) -> list[tuple[int, float]]:
        return self.tracker.history(self.own_handle(handle), metric)

    def experiments(self) -> list[str]:
        return self._patiently(self.tracker.experiments)

    def deliver(self, patience: float = 0.0) -> int:
        end = time.monotonic() + patience
        while True:
            waiting = [key for key in self.spool.list() if key.endswith(".json")]
            handles = dict.fromkeys(unquote(key.split("/")[0]) for key in waiting)
            if all([_BufferedRun(self, handle).deliver() for handle in handles]):
                return 0
            if time.monotonic() > end:
                return len([key for key in self.spool.list() if key.endswith(".json")])
            time.sleep(PAUSE_S)

    def _open(self, handle: str, fresh: bool) -> RunRecord:
        """The record shows a run as soon as it can; a fresh one must be there before anything is said of it."""
        if fresh:
            self._handles[handle] = self._patiently(lambda: self._opened(handle, fresh=True))
        elif self.answers():
            try:
                self.own_handle(handle)
            except UnreachableError:
                self.away()
        return _BufferedRun(self, handle)

    def _opened(self, handle: str, fresh: bool = False) -> str:
        experiment, run_id, parent = handle.split("/")
        if not parent:
            return self.tracker.open_parent(experiment, run_id, fresh=fresh).handle
        above = self.own_handle(f"{experiment}/{parent}/")
        return self.tracker.open_child(experiment, run_id, above, fresh=fresh).handle

    def own_handle(self, handle: str) -> str:
        """The tracker's own handle of a run, which is opened if it is not there."""
        if handle not in self._handles:
            self._handles[handle] = self._opened(handle)
        return self._handles[handle]

    def answers(self) -> bool:
        """Whether it is worth an attempt."""
        return time.monotonic() >= self._away_until

    def away(self) -> None:
        if self.answers():
            log.warning(
                "the record at %s does not answer; what is to be recorded waits in %s", self.uri, self.spool.url
            )
        self._away_until = time.monotonic() + AWAY_S

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        end = time.monotonic() + self.patience
        while True:
            try:
                return ask()
            except UnreachableError:
                if time.monotonic() > end:
                    raise
            time.sleep(PAUSE_S)

    def model(self, handle: str, say: Callable[[RunRecord], None]) -> None:
        """A model is not put into words: it waits for the server, behind what was said before."""

        def store() -> None:
            record = _BufferedRun(self, handle)
            if not record.deliver():
                raise UnreachableError(f"the record at {self.uri} does not answer")
            say(self.tracker.attach(self.own_handle(handle)))

        self._patiently(store)


class _BufferedRun:
    """One run: said at once, or put behind what waits."""

    def __init__(self, tracker: BufferedTracker, handle: str) -> None:
        self.handle = handle
        self._tracker = tracker
        self._record: RunRecord | None = None
        self._folder = quote(handle, safe="")
        self._waiting: list[str] | None = None
        """Keys of what waits, oldest first; None: not looked up yet."""
        self._given: set[tuple[str, int]] = set()
        """(metric, step) that this process has said or put to wait."""

    def params(self, values: Mapping[str, str]) -> None:
        self._say("params", values=dict(values))

    def tags(self, values: Mapping[str, str]) -> None:
        self._say("tags", values=dict(values))

    def note(self, text: str) -> None:
        self._say("note", text=text)

    def metrics(self, history: Sequence[Mapping[str, float]], when: int | None = None) -> None:
        if self._ready():
            try:
                self._inner().metrics(history, when)
                self._given |= {(key, int(epoch["epoch"])) for epoch in history for key in epoch}
                return
            except UnreachableError:
                self._tracker.away()
        self._put("metrics", {"history": self._new(history)}, None, when)

    def text(self, content: str, path: str) -> None:
        self._say("text", content=content, path=path)

    def file(self, local: Path, folder: str) -> None:
        self._say("file", local, folder=folder, name=local.name)

    def model(self, module: object, example: object, readme: str) -> None:
        self._tracker.model(self.handle, lambda record: record.model(module, example, readme))

    def state(self, state: State, why: str = "", when: int | None = None) -> None:
        self._say("state", state=state, why=why, when=when)

    def deliver(self) -> bool:
        """Say what waits; gives whether nothing waits any more."""
        if self._waiting is None:
            keys = self._tracker.spool.list(self._folder)
            self._waiting = [key for key in keys if key.endswith(".json")]
        while self._waiting and self._tracker.answers():
            key = self._waiting[0]
            try:
                self._repeat(key)
            except UnreachableError:
                self._tracker.away()
                return False
            self._tracker.spool.delete(key)
            self._tracker.spool.delete(_content(key))
            del self._waiting[0]
        return not self._waiting

    def _ready(self) -> bool:
        """Whether something can be said at once."""
        return self.deliver() and self._tracker.answers()

    def _inner(self) -> RunRecord:
        if self._record is None:
            self._record = self._tracker.tracker.attach(self._tracker.own_handle(self.handle))
        return self._record

    def _say(self, what: str, file: Path | None = None, **said: Any) -> None:
        if self._ready():
            try:
                self._pass_on(what, said, file)
                return
            except UnreachableError:
                self._tracker.away()
        self._put(what, said, file, said.get("when"))

    def _put(self, what: str, said: Mapping[str, Any], file: Path | None, when: int | None) -> None:
        assert self._waiting is not None
        last = int(self._waiting[-1].split("/")[1].removesuffix(".json")) if self._waiting else 0
        key = f"{self._folder}/{last + 1:06}.json"
        if file is not None:
            self._tracker.spool.put_file(file, _content(key))
        said = {**said, "when": when or int(time.time() * 1000)}
        self._tracker.spool.put_bytes(json.dumps({"what": what, **said}).encode(), key)
        self._waiting.append(key)

    def _new(self, history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """Of a history what was not said yet, and what is not finite: the record names all of that each time."""
        rows = []
        for epoch in history:
            step = int(epoch["epoch"])
            row = {key: value for key, value in epoch.items() if (key, step) not in self._given or value - value != 0}
            if row:
                rows.append({"epoch": epoch["epoch"], **row})
            self._given |= {(key, step) for key in epoch}
        return rows

    def _repeat(self, key: str) -> None:
        said = json.loads(self._tracker.spool.get(key))
        what = said.pop("what")
        if what != "file":
            self._pass_on(what, said, None)
            return
        with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
            local = Path(scratch) / said["name"]
            self._tracker.spool.get_file(_content(key), local)
            self._pass_on(what, said, local)

    def _pass_on(self, what: str, said: Mapping[str, Any], file: Path | None) -> None:
        record = self._inner()
        match what:
            case "params":
                record.params(said["values"])
            case "tags":
                record.tags(said["values"])
            case "note":
                record.note(said["text"])
            case "metrics":
                record.metrics(said["history"], said["when"])
            case "text":
                record.text(said["content"], said["path"])
            case "file":
                assert file is not None
                record.file(file, said["folder"])
            case "state":
                record.state(said["state"], said["why"], said["when"])
            case _:
                raise AssertionError(f"{what!r} was written by another version of ipcnn")


def open_tracker(uri: str, artifacts: str, spool: str) -> Tracker:
    """The record at an address; of a server, one that goes on without it, by what waits at `spool`, a path or URL."""
    tracker = MlflowTracker(uri, artifacts)
    return BufferedTracker(tracker, open_storage(spool, PATIENCE_S), PATIENCE_S) if is_server(uri) else tracker


def _content(key: str) -> str:
    return key.removesuffix("json") + "bin"
