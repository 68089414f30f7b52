"""The record: nothing lost, nothing twice, and errors that say what to do."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.tracking import mlflow_tracker, tracking_uri
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker, environment
from ipcnn_ray.tracking.tracker import RecordedRun
from ipcnn_ray.utils.text import shortened


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A folder with a prepared, empty record, whose database MLflow has made."""
    folder = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_tracker, "create_store", tracking_uri.create_store)
        tracker_in(folder).prepare("first")
    return folder


def tracker_in(folder: Path) -> MlflowTracker:
    return MlflowTracker(f"sqlite:///{folder}/new/mlflow.db", str(folder / "artifacts"))


@pytest.fixture
def tracker(store, request) -> MlflowTracker:
    """The record, with an experiment named like the test."""
    tracker = tracker_in(store)
    tracker.prepare(request.node.name)
    return tracker


@pytest.fixture
def name(request) -> str:
    return request.node.name


def client(tracker: MlflowTracker) -> Any:
    return mlflow_tracker._client(tracker.uri)


def only(tracker: MlflowTracker, experiment: str, run_id: str) -> RecordedRun:
    (found,) = tracker.find(experiment, run_id)
    return found


def points(tracker: MlflowTracker, handle: str) -> list[tuple[str, int, float]]:
    """Every number of a run that is in the database: key, step, value."""
    with sqlite3.connect(tracker.uri.removeprefix("sqlite:///")) as connection:
        rows = connection.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (handle,))
        return sorted(rows.fetchall())


def history(epochs: int) -> list[dict[str, float]]:
    return [{"epoch": float(epoch), "train_loss": 1 / epoch} for epoch in range(1, epochs + 1)]


def test_prepare_may_be_repeated(tracker, name, store):
    tracker.prepare(name, "# What it asks")
    tracker.prepare(name, "# What it asks")
    tracker.prepare(name)
    found = client(tracker).get_experiment_by_name(name)
    assert found.tags["mlflow.note.content"] == "# What it asks"
    assert found.artifact_location == (store / "artifacts" / name).as_uri()
    assert (store / "new/mlflow.db").is_file()


def test_reading_creates_nothing(tmp_path):
    tracker = tracker_in(tmp_path)
    assert tracker.experiments() == []
    assert tracker.find("any") == []
    assert list(tmp_path.iterdir()) == []


def test_a_relative_file_is_the_same_one_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MlflowTracker("sqlite:///mlflow.db").uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_runs_are_found_again(tracker, name):
    parent = tracker.open_parent(name, f"{name}-1")
    child = tracker.open_child(name, f"{name}-1-r1", parent.handle)
    assert tracker.open_parent(name, f"{name}-1").handle == parent.handle
    assert tracker.open_child(name, f"{name}-1-r1", parent.handle).handle == child.handle
    trial, experiment = tracker.find(name)
    assert (trial.run_id, trial.handle, trial.parent) == (f"{name}-1-r1", child.handle, parent.handle)
    assert (experiment.run_id, experiment.parent, experiment.state) == (f"{name}-1", "", "queued")
    assert only(tracker, name, f"{name}-1-r1") == trial
    assert tracker.find("no_such_experiment") == []
    assert tracker.experiments()[0] == name


def test_fresh_supersedes_the_old_run_with_its_trials(tracker, name):
    parent = tracker.open_parent(name, "x")
    tracker.open_child(name, "x-r1", parent.handle)
    fresh = tracker.open_parent(name, "x", fresh=True)
    assert [run.handle for run in tracker.find(name)] == [fresh.handle]
    assert client(tracker).get_run(parent.handle).data.tags["ipcnn.superseded"] == fresh.handle
    trial = tracker.open_child(name, "x-r1", fresh.handle)
    assert only(tracker, name, "x-r1").handle == trial.handle
    assert only(tracker, name, "x-r1").parent == fresh.handle
    again = tracker.open_child(name, "x-r1", fresh.handle, fresh=True)
    assert only(tracker, name, "x-r1").handle == again.handle


def test_states_are_those_of_mlflow_too(tracker, name):
    statuses = {"queued": "SCHEDULED", "running": "RUNNING", "succeeded": "FINISHED", "failed": "FAILED"}
    statuses |= {"stopped": "KILLED", "pruned": "KILLED"}
    record = tracker.open_parent(name, "x")
    for given, status in statuses.items():
        for state, cause, mlflow_status in ((given, "because", status), ("running", "", "RUNNING")):
            record.set_state(state, cause)
            assert (only(tracker, name, "x").state, only(tracker, name, "x").cause) == (state, cause)
            assert client(tracker).get_run(record.handle).info.status == mlflow_status


def test_a_history_may_be_told_again_and_again(tracker, name):
    record = tracker.open_parent(name, "x")
    for epochs in (1, 2, 2):
        record.log_metrics(history(epochs))
    tracker.attach(record.handle).log_metrics(history(3))  # another process, resumed
    expected = [("epoch", e, float(e)) for e in (1, 2, 3)] + [("train_loss", e, 1 / e) for e in (1, 2, 3)]
    assert points(tracker, record.handle) == expected
    assert only(tracker, name, "x").metrics == {"epoch": 3.0, "train_loss": 1 / 3}


def test_what_is_missing_of_an_epoch_is_added(tracker, name):
    """Of an epoch that was half recorded, and the numbers of the whole run, which come with its last epoch."""
    record = tracker.open_parent(name, "x")
    client(tracker).log_metric(record.handle, "train_loss", 1.0, step=1)
    record.log_metrics(history(2))
    record.log_metrics([*history(1), {**history(2)[1], "best_val_error": 0.1}])
    expected = [("best_val_error", 2, 0.1), ("epoch", 1, 1.0), ("epoch", 2, 2.0)]
    assert points(tracker, record.handle) == [*expected, ("train_loss", 1, 1.0), ("train_loss", 2, 0.5)]


def test_an_epoch_is_one_call(tracker, name, monkeypatch):
    record = tracker.open_parent(name, "x")
    record.log_metrics(history(1))
    calls = []
    known = client(tracker)
    original = known.log_batch
    monkeypatch.setattr(known, "log_batch", lambda *a, **k: (calls.append(k), original(*a, **k)))
    monkeypatch.setattr(known, "get_run", None)
    record.log_metrics(history(2))
    record.log_metrics(history(2))
    assert len(calls) == 1


def test_a_call_that_failed_is_made_again(tracker, name, monkeypatch):
    record = tracker.open_parent(name, "x")
    record.log_metrics(history(1))
    known = client(tracker)

    def written_but_lost(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise ConnectionError("the answer was lost")

    original = known.log_batch
    with monkeypatch.context() as patch:
        patch.setattr(known, "log_batch", written_but_lost)
        with pytest.raises(TrackingError, match=r"the answer was lost\nCheck that the disk"):
            record.log_metrics(history(2))
    record.log_metrics(history(3))
    assert [point[1] for point in points(tracker, record.handle) if point[0] == "epoch"] == [1, 2, 3]


def test_a_request_that_arrives_twice_is_recorded_once(tracker, name):
    """Late, after the one that repeated it: neither finds the epoch among what it has read."""
    record = tracker.open_parent(name, "x")
    again = tracker.attach(record.handle)
    for one in (record, again):
        one.log_metrics(history(1))
    for one in (record, again):
        one.log_metrics(history(2), when=1_700_000_000_000)
    assert [point[1] for point in points(tracker, record.handle) if point[0] == "train_loss"] == [1, 2]


def test_numbers_that_are_not_finite_are_named(tracker, name):
    record = tracker.open_parent(name, "x")
    odd = [{"epoch": 1.0, "train_loss": math.nan}, {"epoch": 2.0, "train_loss": math.inf, "val_error": 0.5}]
    record.log_metrics(odd)
    tracker.attach(record.handle).log_metrics([*odd, {"epoch": 3.0, "train_loss": 0.1}])
    assert points(tracker, record.handle) == [
        ("epoch", 1, 1.0),
        ("epoch", 2, 2.0),
        ("epoch", 3, 3.0),
        ("train_loss", 3, 0.1),
        ("val_error", 2, 0.5),
    ]
    assert (
        only(tracker, name, "x").tags["ipcnn.not_finite"] == "train_loss = nan in epoch 1; train_loss = inf in epoch 2"
    )


def test_params_are_written_once(tracker, name):
    """A resumed run may use other resources."""
    record = tracker.open_parent(name, "x")
    many = {f"p{i}": str(i) for i in range(150)}
    record.log_params({"train.epochs": "3", "compute.workers": "1"})
    record.log_params({"train.epochs": "3", "compute.workers": "8", **many})
    run = only(tracker, name, "x")
    assert (run.params, run.tags["ipcnn.compute.workers"]) == ({"train.epochs": "3", **many}, "8")
    message = rf"run {record.handle} is recorded with train.epochs = 3, not 4\nThe same run .* --fresh"
    with pytest.raises(TrackingError, match=message):
        record.log_params({"train.epochs": "4"})


def test_values_at_mlflows_limits_are_stored_and_longer_ones_shortened(tracker, name, tmp_path):
    from mlflow.utils import validation

    param, tag, experiment_tag = (
        validation.MAX_PARAM_VAL_LENGTH,
        validation.MAX_TAG_VAL_LENGTH,
        validation.MAX_EXPERIMENT_TAG_VAL_LENGTH,
    )
    record = tracker.open_parent(name, "x")
    for _ in range(2):
        record.log_params({"long": "p" * (param + 1), "at_limit": "p" * param})
        record.set_tags({"long": "t" * (tag + 1), "at_limit": "t" * tag})
    run = only(tracker, name, "x")
    assert (run.params["at_limit"], run.tags["at_limit"]) == ("p" * param, "t" * tag)
    assert run.params["long"].endswith(f"ppp ... ({param + 1} characters in all)")
    assert (len(run.params["long"]), len(run.tags["long"])) == (param, tag)
    whole = client(tracker).download_artifacts(record.handle, "params/long.txt", str(tmp_path))
    assert Path(whole).read_text() == "p" * (param + 1)
    for length in (experiment_tag, experiment_tag + 1):
        tracker.prepare(name, "d" * length)
        description = client(tracker).get_experiment_by_name(name).tags["mlflow.note.content"]
        assert description == shortened("d" * length, experiment_tag)


def test_requests_hold_as_many_entries_as_mlflow_allows(tracker, name, monkeypatch):
    from mlflow.utils import validation

    record = tracker.open_parent(name, "x")
    requests = []
    original = client(tracker).log_batch
    monkeypatch.setattr(client(tracker), "log_batch", lambda *a, **k: (requests.append(k), original(*a, **k)))
    most = validation.MAX_PARAMS_TAGS_PER_BATCH
    record.log_params({f"p{i}": "1" for i in range(most + 1)})
    record.set_tags({f"t{i}": "1" for i in range(most + 1)})
    record.log_metrics(history(validation.MAX_METRICS_PER_BATCH // 2 + 1))
    assert len(points(tracker, record.handle)) == validation.MAX_METRICS_PER_BATCH + 2
    sizes = [len(entries) for request in requests for entries in request.values() if entries]
    assert sizes == [most, 1, most, 1, validation.MAX_METRICS_PER_BATCH, 2]


def test_tags_notes_and_files(tracker, name, tmp_path):
    record = tracker.open_parent(name, "x")
    record.set_tags({f"t{i}": "1" for i in range(150)} | {"code.commit": "abc"})
    record.set_tags({"t0": "2"})
    record.set_description("# Which template won")
    (tmp_path / "picture.png").write_bytes(b"png")
    record.log_file(tmp_path / "picture.png", "pictures")
    record.log_text("name: x\n", "spec.yaml")
    tags = only(tracker, name, "x").tags
    assert (tags["t0"], tags["t149"]) == ("2", "1")
    assert tags["mlflow.source.git.commit"] == "abc"
    assert tags["mlflow.note.content"] == "# Which template won"
    root = Path(client(tracker).get_run(record.handle).info.artifact_uri.removeprefix("file://"))
    assert (root / "pictures/picture.png").read_bytes() == b"png"
    assert (root / "spec.yaml").read_text() == "name: x\n"


@pytest.mark.slow
def test_a_model_is_loadable_for_any_batch(tracker, name, monkeypatch):
    import mlflow
    import torch

    class Net(torch.nn.Module):
        """Mean of an image times 2."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x_N3HW: torch.Tensor) -> torch.Tensor:
            return x_N3HW.mean((1, 2, 3)) * self.weight

    record = tracker.open_parent(name, "x")
    net = Net().eval()
    with pytest.raises(ValueError, match="example has 1 images"):
        record.log_model(net, torch.zeros(1, 3, 4, 4), "")
    left = client(tracker).create_logged_model(  # what an interrupted attempt leaves
        client(tracker).get_run(record.handle).info.experiment_id, name="model", source_run_id=record.handle
    )
    for _ in range(2):
        record.log_model(net, torch.zeros(2, 3, 4, 4), "# Reads crops\nload {uri}")
    with pytest.raises(mlflow.exceptions.MlflowException, match="not found"):
        client(tracker).get_logged_model(left.model_id)
    (made,) = client(tracker).get_run(record.handle).outputs.model_outputs
    folder = Path(client(tracker).get_logged_model(made.model_id).artifact_location.removeprefix("file://"))
    readme = f"# Reads crops\nload runs:/{record.handle}/model"
    assert (folder / "README.md").read_text() == readme
    assert client(tracker).get_logged_model(made.model_id).tags["mlflow.note.content"] == readme
    assert not list(folder.rglob("*.pth"))
    assert not list(folder.rglob("*.pkl"))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    x_N3HW = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 4, 4).contiguous()
    expected = torch.tensor([0.0, 2.0, 4.0, 6.0, 8.0])
    loaded = mlflow.pytorch.load_model(f"runs:/{record.handle}/model")
    assert torch.equal(loaded(x_N3HW), expected)
    served = mlflow.pyfunc.load_model(f"runs:/{record.handle}/model")
    assert torch.equal(torch.from_numpy(served.predict(x_N3HW.numpy())), expected)
    assert str(served.metadata.signature.inputs) == "[Tensor('float32', (-1, 3, 4, 4))]"


def test_a_run_is_called_by_its_title_and_found_by_its_id(tracker, name):
    record = tracker.open_child(name, f"{name}-12345678-l1", tracker.open_parent(name, f"{name}-12345678").handle)
    record.set_tags({"ipcnn.title": "l1: L1 β2", "code.commit": "0123456"})
    run = client(tracker).get_run(record.handle)
    assert run.info.run_name == run.data.tags["mlflow.runName"] == "l1: L1 β2"
    assert (run.data.tags["mlflow.source.name"], run.data.tags["mlflow.source.git.commit"]) == (
        "ipcnn submit",
        "0123456",
    )
    (found,) = tracker.find(name, f"{name}-12345678-l1")
    assert found.handle == record.handle


def write_run(tracker: MlflowTracker, handle: str) -> None:
    record = tracker.attach(handle)
    record.set_state("running")
    for epochs in range(1, 16):
        record.log_metrics([{**epoch, **{f"m{i}": 1.0 for i in range(10)}} for epoch in history(epochs)])
        record.set_tags({"last": str(epochs)})
    record.set_state("succeeded")


def prepare_and_open(tracker: MlflowTracker) -> None:
    tracker.prepare("race")
    tracker.open_parent("race", "race-1")


def together(target: Any, arguments: list[tuple[Any, ...]]) -> None:
    """Run in processes of their own at the same time; all must end well. They share one import of mlflow."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store"])
    processes = [context.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.slow
def test_four_writers_lose_nothing(tracker, name):
    parent = tracker.open_parent(name, "x")
    handles = [tracker.open_child(name, f"x-r{i}", parent.handle).handle for i in range(4)]
    together(write_run, [(tracker, handle) for handle in handles])
    for handle in handles:
        numbers = points(tracker, handle)
        assert len(numbers) == 15 * 12
        assert len({number[:2] for number in numbers}) == 15 * 12
    assert {run.state for run in tracker.find(name) if run.parent} == {"succeeded"}
    assert {run.tags["last"] for run in tracker.find(name) if run.parent} == {"15"}


@pytest.mark.slow
def test_two_launchers_make_one_record_and_nothing_else(tmp_path, monkeypatch, capfd):
    tracker = tracker_in(tmp_path / "record")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    together(prepare_and_open, [(tracker,), (tracker,)])
    assert len(tracker.find("race")) == 1
    assert os.listdir() == []
    assert capfd.readouterr() == ("", "")


def test_it_pickles(tracker, name):
    tracker.open_parent(name, "x")
    assert pickle.loads(pickle.dumps(tracker)).find(name)[0].run_id == "x"


def test_a_server_that_is_down_is_told_at_once():
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9: .*refused\nCheck that the server is up") as caught:
        MlflowTracker("http://me:hidden@127.0.0.1:9").prepare("x")
    assert "hidden" not in str(caught.value)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("uri", ["/some/folder", "file:///some/folder", "sqlite://"])
def test_folders_and_memory_are_no_record(uri):
    with pytest.raises(TrackingError, match=r"neither a server nor a database file\nGive the address of a server"):
        MlflowTracker(uri).prepare("x")


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, " * 100)
    with pytest.raises(TrackingError, match=r"mlflow.db cannot be written: file is not a database\nSet IPCNN_HOME"):
        MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db").prepare("x")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "new").write_text("a file, not a folder")
    with pytest.raises(TrackingError, match=r"cannot be written: .*\nSet IPCNN_HOME to a folder that you may write"):
        tracker_in(tmp_path).prepare("x")


def test_a_store_of_another_version(tracker, tmp_path):
    copy = tmp_path / "old.db"
    shutil.copy(tracker.uri.removeprefix("sqlite:///"), copy)
    with sqlite3.connect(copy) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    advice = "If that was a later one, install it; else copy the store, then run: mlflow db upgrade sqlite:///"
    with pytest.raises(TrackingError, match=f"written by another version of MLflow\n{advice}"):
        MlflowTracker(f"sqlite:///{copy}").experiments()


def test_system_metrics_are_recorded_but_no_result(tracker, name):
    record = tracker.open_parent(name, "x")
    record.log_metrics([{"epoch": 1.0, "system/rank_0/cpu_utilization_percentage": 50.0}])
    record.log_metrics([{"epoch": 1.0, "val_error": 0.25}])
    record.log_metrics([{"epoch": 1.0, "system/rank_0/cpu_utilization_percentage": 90.0}])  # of a resumed run
    assert only(tracker, name, "x").metrics == {"epoch": 1.0, "val_error": 0.25}
    assert tracker.history(record.handle, "system/rank_0/cpu_utilization_percentage") == [(1, 50.0)]


def test_a_run_is_deleted_with_its_trials_and_what_it_superseded(tracker, name):
    kept = tracker.open_parent(name, "y")
    handles = []
    for fresh in (False, True, True):
        parent = tracker.open_parent(name, "x", fresh=fresh)
        handles += [parent.handle, tracker.open_child(name, "x-r1", parent.handle, fresh=fresh).handle]
    model = client(tracker).create_logged_model(
        client(tracker).get_run(parent.handle).info.experiment_id, name="model", source_run_id=handles[-1]
    )
    tracker.delete(handles[-1])
    assert set(tracker.deleted()) == {handles[-1]}
    tracker.delete(parent.handle)
    assert set(tracker.deleted()) == set(handles)
    assert [run.handle for run in tracker.find(name)] == [kept.handle]
    assert model.model_id not in {
        one.model_id
        for one in client(tracker).search_logged_models([client(tracker).get_run(kept.handle).info.experiment_id])
    }


def test_purge_removes_what_is_marked_as_deleted(tmp_path):
    tracker = tracker_in(tmp_path)
    tracker.prepare("a")
    gone, kept = tracker.open_parent("a", "a-1"), tracker.open_parent("a", "a-2")
    for record in (gone, kept):
        record.log_text("a note", "note.txt")
    tracker.delete(gone.handle)
    (place,) = tracker.deleted().values()
    assert Path(place.removeprefix("file://"), "note.txt").exists()
    tracker.purge()
    assert tracker.deleted() == {} and not Path(place.removeprefix("file://")).exists()
    assert tracker.read(kept.handle, "note.txt") == "a note"
    with pytest.raises(TrackingError, match=r"http://\[::1\]:1: run `mlflow gc` where the server runs"):
        MlflowTracker("http://user:secret@[::1]:1").purge()


def test_an_experiment_that_was_deleted(tracker, name):
    identity = client(tracker).get_experiment_by_name(name).experiment_id
    client(tracker).delete_experiment(identity)
    with pytest.raises(
        TrackingError, match=rf"was deleted .*\nBring it back: mlflow experiments restore -x {identity}"
    ):
        tracker.prepare(name)
    assert tracker.find(name) == []
    assert name not in tracker.experiments()


def test_an_experiment_that_was_never_prepared_and_runs_that_are_gone(tracker, name):
    with pytest.raises(TrackingError, match="experiment other is not in the record"):
        tracker.open_parent("other", "x")
    missing = r"not found\nIt may have been deleted in the MLflow UI. Submit with --fresh"
    with pytest.raises(TrackingError, match=missing):
        tracker.attach("0" * 32).set_tags({"a": "b"})
    old = tracker.open_parent(name, "x")
    client(tracker).delete_run(old.handle)
    assert tracker.open_parent(name, "x").handle != old.handle


def test_mlflow_reports_nothing_to_anybody(monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    assert environment()["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    assert environment()["MLFLOW_DISABLE_TELEMETRY"] == "false"
