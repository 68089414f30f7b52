"""`ipcnn delete` and `ipcnn gc`: what they delete, what they leave, and that an interrupted one can be repeated."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from fakes.commands import run_command

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray import bucket_lease, experiment_dir, garbage, job_client
from ipcnn_ray.on_ray.job_client import ExperimentJob
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.tracking.tracker import RunRecord
from ipcnn_ray.utils.locks import file_lock
from ipcnn_ray.utils.paths import Paths

pytestmark = pytest.mark.usefixtures("wide")
URL = "http://head:8265"
SWEEP, OTHER = "sweep-12345678", "other-87654321"


@pytest.fixture(params=["folder", "bucket"])
def paths(request, home, monkeypatch, empty_record) -> Paths:
    """A home with an empty record, and its storage in a folder or in a bucket."""
    if request.param == "bucket":
        request.getfixturevalue("fake_s3")
        monkeypatch.setenv("IPCNN_STORAGE", "s3://bucket/runs")
        for name, seconds in {"HEARTBEAT_S": 0.02, "LEASE_S": 0.3, "SETTLE_S": 0.0}.items():
            monkeypatch.setattr(bucket_lease, name, seconds)
    temporary = home.with_name("tmp")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    home.mkdir()
    shutil.copy(empty_record, home)
    return Paths.from_environment()


class Killed(BaseException):
    """What ends a process at once."""


def dies(*_: object) -> None:
    raise Killed


def tracker_of(paths: Paths) -> MlflowTracker:
    return MlflowTracker(paths.tracking_uri, paths.artifacts)


def submitted(
    paths: Paths, identity: str = SWEEP, labels: tuple[str, ...] = ("l1", "l2"), fresh: bool = False
) -> dict[str, RunRecord]:
    """An experiment that has ended: record, files in the storage and a log."""
    name, tracker = identity.partition("-")[0], tracker_of(paths)
    tracker.prepare(name)
    parent = tracker.open_parent(name, identity, fresh=fresh)
    root = f"{paths.storage}/{identity}"
    experiment_dir.count_submission(root, tracker.uri)
    records = {"": parent}
    for label in labels:
        records[label] = record = tracker.open_child(name, f"{identity}-{label}", parent.handle, fresh=fresh)
        record.set_tags(
            {"ipcnn.label": label, "data.digest": f"data-{name}", "ipcnn.frozen_features": f"features-{name}"}
        )
        record.set_state("succeeded")
        files = open_storage(f"{root}/{label}")
        files.put_bytes(b"12345678", "weights.safetensors")
        files.put_bytes(b"{}", "result.json")
        files.put_bytes(b"{}", "checkpoints/epoch-0001/meta.json")
    parent.set_state("succeeded")
    log = paths.home / "logs" / f"{identity}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("epoch 1\n")
    return records


def files_of(paths: Paths) -> set[str]:
    """Folders of the storage that hold files: of experiments, and of runs. A lease that was released stays."""
    files = open_storage(paths.storage).list()
    keys = [key.split("/") for key in files if not key.startswith(".") and not key.endswith("/driver.json")]
    return {key[0] for key in keys} | {"/".join(key[:2]) for key in keys if len(key) > 2}


def recorded(paths: Paths) -> set[str]:
    tracker = tracker_of(paths)
    return {run.run_id for name in tracker.experiments() for run in tracker.find(name)}


def make_old(*places: Path | str, seconds: float = 2 * garbage.UNFINISHED_S) -> None:
    for place in map(Path, places):
        for path in [*place.rglob("*"), place]:
            os.utime(path, (0, time.time() - seconds))


def test_an_experiment_is_deleted_with_its_files_record_and_log(paths):
    submitted(paths), submitted(paths, OTHER)
    shown = run_command("delete", "sweep", "--yes").stdout
    assert f"{SWEEP}: 7 files (" in shown and f") in {paths.storage}, deleted for good" in shown
    assert "3 runs in the record at sqlite:///" in shown and f"{SWEEP} is deleted" in shown
    assert files_of(paths) == {OTHER, f"{OTHER}/l1", f"{OTHER}/l2"}
    assert recorded(paths) == {OTHER, f"{OTHER}-l1", f"{OTHER}-l2"}
    assert [file.name for file in (paths.home / "logs").iterdir()] == [f"{OTHER}.log"]
    with pytest.raises(IpcnnError, match=f"no experiment and no run is recorded as '{SWEEP}'"):
        run_command("delete", SWEEP, "--yes")
    submitted(paths)  # the name can be used again
    assert recorded(paths) >= {SWEEP, f"{SWEEP}-l1"}


def test_one_run_is_deleted(paths):
    records = submitted(paths)
    assert "1 run in the record" in run_command("delete", f"{SWEEP}-l1", "--yes").stdout
    assert files_of(paths) == {SWEEP, f"{SWEEP}/l2"}
    assert recorded(paths) == {SWEEP, f"{SWEEP}-l2"}
    assert set(tracker_of(paths).deleted()) == {records["l1"].handle}
    assert (paths.home / "logs" / f"{SWEEP}.log").exists()


def test_what_fresh_has_set_aside_is_deleted_too(paths):
    earlier = submitted(paths)
    experiment_dir.archive(f"{paths.storage}/{SWEEP}")
    again = submitted(paths, fresh=True)
    assert len(files_of(paths)) == 6 and recorded(paths) == {SWEEP, f"{SWEEP}-l1", f"{SWEEP}-l2"}
    run_command("delete", SWEEP, "--yes")
    assert files_of(paths) == set()
    handles = {record.handle for records in (earlier, again) for record in records.values()}
    assert len(handles) == 6 and set(tracker_of(paths).deleted()) == handles


def test_an_experiment_in_progress_is_left_alone(paths):
    submitted(paths)
    with experiment_dir.exclusive(f"{paths.storage}/{SWEEP}", lambda text: None):
        before = files_of(paths)
        for name in (SWEEP, f"{SWEEP}-l1"):
            with pytest.raises(IpcnnError, match=f"ipcnn stop {SWEEP}"):
                run_command("delete", name, "--yes")
        garbage_found = garbage.find_garbage(tracker_of(paths), paths)
        assert not [one for one in garbage_found if one.kind in ("experiment", "run", "checkpoints")]
        assert files_of(paths) == before
    run_command("delete", SWEEP, "--yes")
    assert files_of(paths) == set()


def test_a_driver_that_died_is_waited_for_and_no_hindrance(paths):
    submitted(paths)
    if "://" not in paths.storage:
        return
    open_storage(f"{paths.storage}/{SWEEP}").put_bytes(b'{"owner": "dead", "beat": 3}', "driver.json")
    run_command("delete", SWEEP, "--yes")
    assert files_of(paths) == set() and recorded(paths) == set()


@pytest.mark.parametrize("call", [1, 3])
def test_an_interrupted_deletion_is_repeated(paths, monkeypatch, call):
    """Killed between files, and between the files and the record."""
    submitted(paths)
    storage, calls = type(open_storage(paths.storage)), iter(range(1, 99))
    real = storage.delete

    def killed(self, key):
        if next(calls) == call:
            raise Killed
        real(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", killed)
        patch.setattr(garbage, "_delete_path", lambda path: None)
        with pytest.raises(Killed):
            run_command("delete", SWEEP, "--yes")
    assert recorded(paths) >= {SWEEP} and files_of(paths)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, "delete", dies)
        with pytest.raises(Killed):
            run_command("delete", SWEEP, "--yes")
    assert recorded(paths) >= {SWEEP} and files_of(paths) == set()
    run_command("delete", SWEEP, "--yes")
    assert recorded(paths) == set()


def test_files_whose_record_is_gone_are_deleted_by_id(paths):
    records = submitted(paths)
    tracker_of(paths).delete(records[""].handle)
    with pytest.raises(IpcnnError, match="no experiment and no run is recorded as 'sweep'"):
        run_command("delete", "sweep", "--yes")
    run_command("delete", SWEEP, "--yes")
    assert files_of(paths) == set()


def test_a_name_of_several_experiments_is_refused(paths):
    submitted(paths), submitted(paths, "sweep-abcdef01")
    with pytest.raises(
        IpcnnError, match=r"2 experiments are recorded as 'sweep'\nGive the id of one: sweep-abcdef01, sweep-1"
    ):
        run_command("delete", "sweep", "--yes")


def test_delete_asks(paths, ipcnn, monkeypatch):
    submitted(paths)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, error = ipcnn("delete", SWEEP)
    assert code == 2 and "nothing was deleted: nobody answered" in error and "Give --yes" in error
    for answer, kept in (("n\n", True), ("y\n", False)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        code, shown, _ = ipcnn("delete", SWEEP)
        assert code == 0 and ("nothing was deleted" in shown) == kept
        assert (SWEEP in recorded(paths)) == kept


class FakeJobClient:
    """A cluster with one job; keeps the commands that it was asked to run."""

    job = ExperimentJob("tiny-12345678", "tiny-12345678", 1, "running", "", 1_800_000_000_000, None, None)
    asked: ClassVar[list[list[str]]] = []

    def __init__(self, address):
        assert address == URL

    def find(self, name):
        assert name in ("tiny", "tiny-12345678")
        return self.job

    def run_command(self, folder, arguments, env):
        self.asked.append(list(arguments))


def test_delete_on_a_cluster(home, monkeypatch):
    monkeypatch.setattr(job_client, "JobClient", FakeJobClient)
    stop = f"ipcnn stop tiny-12345678 --address {URL}"
    with pytest.raises(IpcnnError, match=f"in progress on {URL}\nStop it first: {stop}"):
        run_command("delete", "tiny", "--address", URL, "--yes")
    monkeypatch.setattr(FakeJobClient, "job", replace(FakeJobClient.job, state="succeeded", exit_code=0))
    assert run_command("delete", "tiny", "--address", URL, "--yes").stdout == "tiny-12345678 is deleted\n"
    run_command("delete", "tiny-12345678-l1", "--address", URL, "--yes")
    assert FakeJobClient.asked == [
        ["delete", "tiny-12345678", "--yes"],
        ["delete", "tiny-12345678-l1", "--yes"],
    ]


def found(paths: Paths) -> dict[str, set[str]]:
    """Last names of the places of garbage, by kind."""
    kinds: dict[str, set[str]] = {}
    for one in garbage.find_garbage(tracker_of(paths), paths):
        kinds.setdefault(one.kind, set()).add(one.place.rpartition("/")[2])
    return kinds


def test_runs_without_a_record_are_garbage(paths):
    submitted(paths), submitted(paths, OTHER)
    tracker, files = tracker_of(paths), open_storage(paths.storage)
    files.put_bytes(b"1", "notes-12345678/readme.txt")  # another one's folder
    files.put_bytes(b"1", "elsewhere-12345678/run/result.json")
    files.put_bytes(
        json.dumps({"count": 1, "record": "http://another"}).encode(), "elsewhere-12345678/submissions.json"
    )
    files.put_bytes(b"1", "buffered-12345678/run/result.json")
    files.put_bytes(b"1", "buffered-12345678/spool/a/000001.json")
    assert found(paths) == {}
    for run in tracker.find("other", OTHER) + tracker.find("sweep", f"{SWEEP}-l1"):
        tracker.delete(run.handle)
    assert found(paths) == {"experiment": {OTHER}, "run": {"l1"}, "record": {"mlflow.db"}}
    shown = run_command("gc", "--dry-run").stdout
    assert all(f"1 {kind}" in shown for kind in ("experiment", "run", "record"))
    (unrecorded,) = (one for one in garbage.find_garbage(tracker, paths) if one.kind == "experiment")
    assert unrecorded.reason == f"not recorded at {tracker.uri}"
    assert f"{OTHER}/l1" in files_of(paths)
    run_command("gc", "--yes")
    assert files_of(paths) == {
        *(SWEEP, f"{SWEEP}/l2"),
        *(f"{name}-12345678" for name in ("notes", "elsewhere", "buffered")),
        *("elsewhere-12345678/run", "buffered-12345678/run", "buffered-12345678/spool"),
    }
    assert tracker.deleted() == {} and recorded(paths) == {SWEEP, f"{SWEEP}-l2"}
    assert run_command("gc").stdout == "nothing to delete\n"


def test_an_empty_record_explains_no_storage(paths):
    open_storage(paths.storage).put_bytes(b"1", f"{SWEEP}/run/result.json")
    assert found(paths) == {}


def test_what_ended_runs_need_no_more(paths):
    submitted(paths)
    files = open_storage(f"{paths.storage}/{SWEEP}")
    for name in ("model.pt", "training.pt", "state.pt"):
        for label in ("l1", "l2"):
            files.put_bytes(b"1234", f"{label}/checkpoints/epoch-0001/{name}")
    files.delete("l2/weights.safetensors")  # pruned
    (first, second) = sorted(garbage.find_garbage(tracker_of(paths), paths), key=lambda one: one.place)
    assert (first.kind, first.size, second.size) == ("checkpoints", 12, 4)
    run_command("gc", "--yes")
    assert [key for key in files.list() if "/checkpoints/" in key and not key.endswith("meta.json")] == [
        "l2/checkpoints/epoch-0001/model.pt",
        "l2/checkpoints/epoch-0001/state.pt",
    ]


def test_caches_that_no_recorded_run_uses(paths):
    submitted(paths)
    cache = paths.cache
    for kind, names in {
        "crops": ("data-sweep", "unused", "just-used", "locked"),
        "features": ("features-sweep", "unused", ".half"),
        "staged": ("copy",),
    }.items():
        for name in names:
            (cache / kind / name).mkdir(parents=True)
            (cache / kind / name / "file").write_bytes(b"12345")
    (cache / "crops/index").mkdir()
    for digest in ("unused", "data-sweep"):
        (cache / f"crops/index/{digest}.json").write_text(json.dumps({"digest": digest, "stamps": {}}))
    for name in ("unused", "gone", "data-sweep"):
        (cache / f"crops/{name}.lock").touch()
    (cache / "crops/.partial-ab").touch()
    abandoned, new = Path(tempfile.gettempdir(), "ipcnn-old"), Path(tempfile.gettempdir(), "ipcnn-new")
    abandoned.mkdir(), new.mkdir()
    make_old(cache, abandoned)
    os.utime(cache / "crops/just-used")
    with file_lock(cache / "crops/locked.lock"):
        kinds = found(paths)
        assert kinds == {
            "crops": {"unused"},
            "features": {"unused"},
            "copy": {"copy"},
            "lock": {"gone.lock"},
            "temporary": {".half", ".partial-ab", "ipcnn-old"},
        }
        run_command("gc", "--yes")
        assert found(paths) == {"lock": {"unused.lock"}}
    assert {path.name for path in (cache / "crops").iterdir()} >= {"data-sweep", "just-used", "locked", "index"}
    assert [path.name for path in (cache / "crops/index").iterdir()] == ["data-sweep.json"]
    assert [path.name for path in (cache / "features").iterdir()] == ["features-sweep"]
    assert new.exists() and not abandoned.exists()


def test_gc_says_what_it_could_not_delete(paths, monkeypatch, ipcnn):
    submitted(paths)
    (paths.cache / "crops/unused").mkdir(parents=True)
    make_old(paths.cache)

    def refuses(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(garbage, "_delete_path", refuses)
    code, _, error = ipcnn("gc", "--yes")
    assert code == 2 and "not everything was deleted" in error
    assert "crops/unused:" in error and "[Errno 13] Permission denied" in error


def test_a_record_on_a_server_is_left_to_it(paths, monkeypatch):
    monkeypatch.setattr(garbage, "find_garbage", lambda tracker, paths: [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    shown = run_command("gc")
    assert shown.stdout == "nothing to delete\n" and "run `mlflow gc` where the server runs" in shown.stderr


def test_both_commands_are_listed(ipcnn):
    assert {"delete", "gc"} <= set(ipcnn("--help")[1].split())
