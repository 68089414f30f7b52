"""A server that is away, comes back, or takes a process's word and then lets it be killed: nothing lost, none twice."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator

import pytest

from ipcnn_ray.errors import TrackingError, UnreachableError
from ipcnn_ray.tracking import buffered_tracker as module
from ipcnn_ray.tracking.buffered_tracker import BufferedTracker
from ipcnn_ray.tracking.storage import LocalStorage


class Server:
    """What a server holds; every call may be refused, or lost after it has been taken."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, object]] = []
        self.points: list[tuple[str, str, int, float]] = []
        self.times: list[tuple[int, int | None]] = []
        """Last epoch and time of each request of metrics."""
        self.opened: list[str] = []
        self.calls: Iterator[str] = iter(())
        """Of the next calls `away`, `lost`, `refused` or `ok`; after them all is well."""
        self.is_away = False

    def call(self) -> bool:
        """Whether the call arrives."""
        fate = next(self.calls, "ok")
        if self.is_away or fate == "away":
            raise UnreachableError("connection refused")
        if fate == "refused":
            raise TrackingError("the same run cannot have two settings")
        return fate == "lost"


class FakeTracker:
    """A tracker of a server, without MLflow."""

    uri = "http://record"

    def __init__(self, server: Server) -> None:
        self.server = server

    def _open(self, run_id: str) -> FakeRun:
        self.server.call()
        if run_id not in self.server.opened:
            self.server.opened.append(run_id)
        return FakeRun(self.server, f"own-{run_id}")

    def open_parent(self, experiment: str, run_id: str, *, fresh: bool = False) -> FakeRun:
        return self._open(run_id)

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> FakeRun:
        assert parent.startswith("own-")
        return self._open(run_id)

    def attach(self, handle: str) -> FakeRun:
        assert handle.startswith("own-")
        return FakeRun(self.server, handle)

    def find(self, experiment: str, run_id: str | None = None) -> list[object]:
        self.server.call()
        return [experiment]


class FakeRun:
    """Idempotent as the real one: numbers that are there are skipped by (metric, step), read anew by each process."""

    def __init__(self, server: Server, handle: str) -> None:
        self.server = server
        self.handle = handle

    def _say(self, what: str, said: object) -> None:
        lost = self.server.call()
        self.server.said.append((self.handle, what, said))
        if lost:
            raise UnreachableError("no answer")

    def log_params(self, values):
        self._say("params", dict(values))

    def set_tags(self, values):
        self._say("tags", dict(values))

    def set_description(self, text):
        self._say("note", text)

    def log_text(self, content, path):
        self._say("text", (content, path))

    def log_file(self, local, folder):
        self._say("file", (folder, local.name, local.read_bytes()))

    def set_state(self, state, cause="", when=None):
        self._say("state", state)

    def log_model(self, module, example, readme):
        self._say("model", readme)

    def log_metrics(self, history, when=None):
        lost = self.server.call()
        self.server.times.append((int(history[-1]["epoch"]), when))
        there = {point[:3] for point in self.server.points}
        for row in history:
            for key, value in row.items():
                point = (self.handle, key, int(row["epoch"]))
                if point not in there and math.isfinite(value):
                    self.server.points.append((*point, value))
        if lost:
            raise UnreachableError("no answer")


RUN, PARENT = "sweep-1-r1", "sweep-1"


@pytest.fixture
def server(monkeypatch) -> Server:
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)
    monkeypatch.setattr(module, "RETRY_PAUSE_S", 0.0)
    return Server()


@pytest.fixture
def place(tmp_path) -> LocalStorage:
    return LocalStorage(tmp_path / "spool")


def opened(server, place, timeout=0.0):
    """A process's view of the run."""
    tracker = BufferedTracker(FakeTracker(server), place, timeout)
    parent = tracker.open_parent("sweep", PARENT)
    return tracker, tracker.open_child("sweep", RUN, parent.handle)


def history(epochs):
    return [{"epoch": float(epoch), "loss": 1 / epoch} for epoch in range(1, epochs + 1)]


def words(server):
    return [(what, said) for handle, what, said in server.said if handle == f"own-{RUN}"]


def steps(server, key="loss"):
    return [(step, value) for handle, name, step, value in server.points if name == key]


def test_without_trouble_nothing_waits(server, place):
    _, run = opened(server, place)
    run.log_params({"a": "1"})
    run.log_metrics(history(2))
    run.set_state("succeeded")
    assert server.opened == [PARENT, RUN]
    assert words(server) == [("params", {"a": "1"}), ("state", "succeeded")]
    assert place.list() == []


def test_a_run_begins_and_ends_while_the_server_is_away(server, place, tmp_path):
    server.is_away = True
    tracker, run = opened(server, place)
    weights = tmp_path / "weights"
    weights.write_bytes(b"\x00\x01")
    run.set_state("running")
    run.log_params({"a": "1"})
    for epoch in (1, 2, 3):
        run.log_metrics(history(epoch))
    run.log_file(weights, "weights")
    weights.unlink()
    run.log_text("a traceback", "traceback.txt")
    run.set_description("what it is")
    run.set_tags({"b": "2"})
    run.set_state("succeeded")
    assert (server.said, server.points, server.opened) == ([], [], [])
    assert tracker.flush() == 10

    server.is_away = False
    assert opened(server, place)[0].flush() == 0
    assert words(server) == [
        ("state", "running"),
        ("params", {"a": "1"}),
        ("file", ("weights", "weights", b"\x00\x01")),
        ("text", ("a traceback", "traceback.txt")),
        ("note", "what it is"),
        ("tags", {"b": "2"}),
        ("state", "succeeded"),
    ]
    assert steps(server) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert place.list() == []


def test_what_comes_later_stays_behind_what_waits(server, place):
    _, run = opened(server, place)
    server.calls = iter(["away", "ok", "away"])
    run.set_state("running")  # waits
    run.set_tags({"a": "1"})  # the state is said, then this: away
    assert words(server) == [("state", "running")]
    run.set_tags({"a": "2"})
    assert words(server) == [("state", "running"), ("tags", {"a": "1"}), ("tags", {"a": "2"})]


@pytest.mark.parametrize("fates", [["lost"], ["away", "lost"], ["lost", "lost", "away"], ["lost", "away", "lost"]])
def test_an_answer_that_is_lost_doubles_no_number(server, place, fates):
    _, run = opened(server, place)
    server.calls = iter(fates)
    for epoch in range(1, 6):
        run.log_metrics(history(epoch))
    run.set_state("succeeded")
    assert sorted(steps(server)) == [(epoch, 1 / epoch) for epoch in range(1, 6)]
    assert words(server)[-1] == ("state", "succeeded")
    assert place.list() == []


def test_a_request_that_is_repeated_keeps_its_time(server, place, monkeypatch):
    """MLflow then takes the one that arrives late, after a cut of the network, for the same numbers."""
    now = iter(range(1000, 2000))
    monkeypatch.setattr(module, "_now_ms", lambda: next(now))
    _, run = opened(server, place)
    server.calls = iter(["lost"])
    run.log_metrics(history(1))
    run.log_metrics(history(2))
    times = dict(server.times)
    assert sorted(server.times) == [(1, times[1]), (1, times[1]), (2, times[2])]
    assert None not in times.values() and times[1] < times[2]


@pytest.mark.parametrize("kept", ["before", "after"])
def test_a_process_killed_while_it_delivers(server, place, kept, monkeypatch):
    """Before: the statement was recorded, its file not deleted. After: the first file is gone."""
    server.is_away = True
    _, run = opened(server, place)
    run.log_metrics(history(2))
    run.log_metrics(history(3))
    server.is_away = False

    class Killed(BaseException):
        pass

    def dies(key, real=place.delete):
        if kept == "after":
            real(key)
        raise Killed

    tracker, _ = opened(server, place)
    monkeypatch.setattr(place, "delete", dies)
    with pytest.raises(Killed):
        tracker.flush()
    monkeypatch.undo()
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)
    resumed, run = opened(server, place)
    run.log_metrics(history(4))  # a resumed run repeats its history
    assert sorted(steps(server)) == [(epoch, 1 / epoch) for epoch in range(1, 5)]
    assert resumed.flush() == 0


def test_numbers_that_are_not_finite_are_named_again(server, place):
    server.is_away = True
    _, run = opened(server, place)
    run.log_metrics([{"epoch": 1.0, "loss": math.nan}])
    run.log_metrics([{"epoch": 1.0, "loss": math.nan}, {"epoch": 2.0, "loss": 1.0}])
    said = []
    monkey = FakeRun.log_metrics
    FakeRun.log_metrics = lambda self, history, when=None: said.append(history)
    try:
        server.is_away = False
        opened(server, place)[0].flush()
    finally:
        FakeRun.log_metrics = monkey
    assert [[sorted(row) for row in rows] for rows in said] == [[["epoch", "loss"]], [["epoch", "loss"]] * 2]
    assert math.isnan(said[1][0]["loss"]) and said[1][1] == {"epoch": 2.0, "loss": 1.0}


def test_an_error_that_waiting_does_not_mend_is_raised(server, place):
    _, run = opened(server, place)
    server.calls = iter(["refused"])
    with pytest.raises(TrackingError, match="cannot have two settings"):
        run.log_params({"a": "2"})
    assert place.list() == []


def test_a_question_waits_for_its_answer(server, place):
    tracker, _ = opened(server, place, timeout=30.0)
    server.calls = iter(["away", "away"])
    assert tracker.find("sweep") == ["sweep"]
    hasty, _run = opened(server, place)
    server.is_away = True
    with pytest.raises(UnreachableError, match="refused"):
        hasty.find("sweep")
    with pytest.raises(UnreachableError, match="refused"):
        hasty.open_parent("sweep", PARENT, fresh=True)


def test_a_model_comes_behind_what_waits(server, place):
    _, run = opened(server, place, timeout=30.0)
    server.calls = iter(["away", "away"])
    run.set_state("succeeded")
    run.log_model(None, None, "readme")
    assert words(server) == [("state", "succeeded"), ("model", "readme")]


def test_a_server_that_is_away_is_left_alone_for_a_while(server, place, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", 3600.0)
    _, run = opened(server, place)
    asked = []
    server.calls = iter(lambda: asked.append(1) or "away", None)
    for epoch in range(1, 20):
        run.log_metrics(history(epoch))
    assert len(asked) == 1
    server.calls = iter(())
    assert opened(server, place)[0].flush() == 0
    assert len(steps(server)) == 19


def test_it_pickles(server, place):
    tracker = pickle.loads(pickle.dumps(BufferedTracker(FakeTracker(server), place, 1.0)))
    assert (tracker.uri, tracker.timeout, tracker.buffer.url) == ("http://record", 1.0, place.url)


def test_records_buffered_by_earlier_versions_are_sent(server, place):
    """The files are literal: their format must not change."""
    contents = [
        {"what": "state", "state": "running", "why": "", "when": 1},
        {"what": "params", "values": {"a": "1"}, "when": 2},
        {"what": "tags", "values": {"b": "2"}, "when": 3},
        {"what": "note", "text": "# Run", "when": 4},
        {"what": "metrics", "history": [{"epoch": 1.0, "loss": 0.5}], "when": 5},
        {"what": "text", "content": "name: x", "path": "spec.yaml", "when": 6},
        {"what": "file", "folder": "weights", "name": "final.pt", "when": 7},
    ]
    folder = place.folder / "sweep%2Fsweep-1-r1%2Fsweep-1"
    folder.mkdir(parents=True)
    for number, content in enumerate(contents, 1):
        (folder / f"{number:06}.json").write_text(json.dumps(content))
    (folder / "000007.bin").write_bytes(b"\x00\x01")
    assert BufferedTracker(FakeTracker(server), place, 0.0).flush() == 0
    assert words(server) == [
        ("state", "running"),
        ("params", {"a": "1"}),
        ("tags", {"b": "2"}),
        ("note", "# Run"),
        ("text", ("name: x", "spec.yaml")),
        ("file", ("weights", "final.pt", b"\x00\x01")),
    ]
    assert steps(server) == [(1, 0.5)]
    assert place.list() == []
