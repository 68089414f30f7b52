"""`ipcnn submit --address`, `list`, `logs` and `stop`, with a fake job client and on this machine."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from fakes.commands import run_command

from ipcnn_ray.cli import jobs
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray import experiment_dir, job_client
from ipcnn_ray.on_ray.job_client import ExperimentJob
from ipcnn_ray.on_ray.submission import check_shared
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.utils.paths import Paths

pytestmark = pytest.mark.usefixtures("wide")
URL = "http://head:8265"
SPEC = """
name: tiny
data: {kind: drawn_animals, objects: 24, negatives: 16}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 1, batch_size: 16, learning_rate: 0.01}
"""
RUNNING = ExperimentJob("tiny-12345678", "tiny-12345678", 1, "running", "", 1_800_000_000_000, None, None)
ENDED = replace(RUNNING, state="succeeded", ended=1_800_000_065_000, exit_code=0)


class FakeJobClient:
    """The job client as the commands use it."""

    known: ClassVar[list[ExperimentJob]] = []
    asked: ClassVar[list[object]] = []
    started: ClassVar[bool] = True

    def __init__(self, address: str) -> None:
        assert address == URL

    def jobs(self, experiment=None):
        return self.known

    def job(self, id):
        return self.known[0]

    find = job

    def submit(self, experiment, folder, arguments, env):
        files = {path.name for path in folder.iterdir()}
        self.asked.append((experiment, files, list(arguments), (folder / "spec.yaml").read_text()))
        return self.known[0], self.started

    def logs(self, id, *, follow=False):
        yield from ("epoch 1\nepo", "ch 2\n") if follow else ("epoch 1\n",)

    def stop(self, id):
        self.asked.append(("end", id))
        FakeJobClient.known = [replace(self.known[0], state="stopped")]

    def run_command(self, folder, arguments, env):
        self.asked.append(("ask", list(arguments)))
        FakeJobClient.known = [replace(self.known[0], state="stopped")]


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    monkeypatch.setattr(job_client, "JobClient", FakeJobClient)
    monkeypatch.setattr(FakeJobClient, "known", [RUNNING])
    monkeypatch.setattr(FakeJobClient, "asked", [])
    monkeypatch.setattr(FakeJobClient, "started", True)
    return FakeJobClient


@pytest.fixture
def paths(home) -> Paths:
    return Paths.from_environment()


def run(*words: str, code: int = 0) -> str:
    return run_command(*words, code=code).stdout


@pytest.fixture
def spec(tmp_path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(SPEC)
    return str(file)


def test_a_submission_is_followed_to_its_end(cluster, spec, monkeypatch):
    monkeypatch.setattr(FakeJobClient, "job", lambda self, id: ENDED)
    assert run("submit", spec, "--address", URL, "--set", "seed=3") == "epoch 1\nepoch 2\n"
    ((experiment, files, arguments, text),) = cluster.asked
    assert re.fullmatch(r"tiny-[0-9a-f]{8}", experiment)
    assert files == {"ipcnn_ray", "spec.yaml", "shipped.json"}
    assert arguments == ["submit", "spec.yaml", "--on-cluster", "--wait", "30"]
    assert "seed: 3" in text  # the resolved spec travels


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ({"state": "failed", "exit_code": 2}, 2),
        ({"state": "failed", "exit_code": 1}, 1),
        ({"state": "failed", "cause": "the node died"}, 1),
        ({"state": "stopped", "exit_code": 130}, 130),
    ],
)
def test_a_submission_ends_as_its_job(cluster, spec, monkeypatch, ended, code):
    monkeypatch.setattr(FakeJobClient, "job", lambda self, id: replace(RUNNING, **ended))
    run("submit", spec, "--address", URL, code=code)


def test_a_detached_submission_and_the_same_again(cluster, spec):
    job = json.loads(run("submit", spec, "--address", URL, "--detach", "--json"))
    assert (job["id"], job["state"], job["submitted"]) == ("tiny-12345678", "running", True)
    cluster.started = False
    assert json.loads(run("submit", spec, "--address", URL, "--detach", "--json"))["submitted"] is False
    with pytest.raises(IpcnnError, match=r"is under way on http://head:8265; --fresh would(.|\n)*ipcnn stop tiny-"):
        run("submit", spec, "--address", URL, "--detach", "--fresh")


def test_detach_without_a_cluster_is_refused(spec):
    with pytest.raises(IpcnnError, match="--detach is for a cluster\nGive its --address"):
        run("submit", spec, "--detach")


def test_nodes_must_share_a_record_and_a_storage(paths):
    with pytest.raises(
        IpcnnError, match=r"no storage in common: MLFLOW_TRACKING_URI, .*; IPCNN_STORAGE, s3://(.|\n)*nodes"
    ):
        check_shared(paths, {})
    shared = {"MLFLOW_TRACKING_URI": "http://m:5000", "IPCNN_HOME": "/h", "IPCNN_STORAGE": "s3://b/p"}
    check_shared(Paths.from_environment(shared), shared)
    folder = {**shared, "IPCNN_STORAGE": "/shared"}
    check_shared(Paths.from_environment(folder), folder)


def test_list_of_a_cluster_and_of_the_record_look_the_same(cluster, paths):
    assert run("list") == f"nothing is submitted yet to {paths.tracking_uri}\n"
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    tracker.prepare("tiny")
    parent = tracker.open_parent("tiny", "tiny-12345678")
    tracker.open_child("tiny", "tiny-12345678-r1", parent.handle)
    parent.set_tags({"ipcnn.submissions": "1"})
    parent.set_state("running")
    recorded, listed = run("list").splitlines(), run("list", "--address", URL).splitlines()
    assert recorded[0].split() == listed[0].split() == ["experiment", "state", "times", "began", "took", "why"]
    cells = [
        [re.sub(r"\d\d-\d\d \d\d:\d\d", "when", cell) for cell in re.split(r"\s{2,}", lines[1].strip())]
        for lines in (recorded, listed)
    ]
    assert cells == [["tiny-12345678", "running", "1", "when", "-"]] * 2
    cluster.known = [replace(ENDED, attempt=2), ENDED]
    assert re.split(r"\s{2,}", run("list", "--address", URL).splitlines()[1].strip())[2:5:2] == ["2", "1:05"]
    (one,) = json.loads(run("list", "--json"))
    assert (one["experiment"], one["state"], one["submitted"], one["ended"]) == ("tiny-12345678", "running", 1, None)


def test_logs_of_a_cluster(cluster):
    assert run("logs", "tiny", "--address", URL) == "epoch 1\n"
    assert run("logs", "-f", "tiny", "--address", URL) == "epoch 1\nepoch 2\n"


def start_driver(paths: Paths, work: Callable[[], None]) -> threading.Thread:
    """An experiment on this machine that is under way until `work` has ended."""
    ready = threading.Event()

    def hold() -> None:
        with experiment_dir.exclusive(f"{paths.storage}/tiny-12345678", lambda text: None):
            ready.set()
            work()

    driver = threading.Thread(target=hold)
    driver.start()
    ready.wait(20)
    return driver


def write_log(paths: Paths) -> Path:
    file = paths.home / "logs/tiny-12345678.log"
    file.parent.mkdir(parents=True)
    file.write_text("epoch 1\n")
    return file


def test_logs_of_this_machine_follow_until_the_end(paths, monkeypatch):
    monkeypatch.setattr(jobs, "POLL_S", 0.05)
    file = write_log(paths)

    def append() -> None:
        time.sleep(0.2)
        with file.open("a") as log:
            log.write("epoch 2\n")

    driver = start_driver(paths, append)
    assert run("logs", "tiny", "--follow") == "epoch 1\nepoch 2\n"
    driver.join()
    assert run("logs", "tiny-12345678") == "epoch 1\nepoch 2\n"
    with pytest.raises(
        IpcnnError, match=r"no experiment 'tony' was submitted on this machine\nSubmitted: tiny-12345678"
    ):
        run("logs", "tony")


def test_stop_on_a_cluster(cluster):
    assert run("stop", "tiny", "--address", URL) == "tiny-12345678 has ended; submitted again, it goes on\n"
    assert cluster.asked == [("ask", ["stop", "tiny-12345678", "--on-cluster"])]
    with pytest.raises(IpcnnError, match="tiny-12345678 is not under way on http://head:8265: it has stopped"):
        run("stop", "tiny", "--address", URL)
    cluster.known, cluster.asked = [RUNNING], []
    run("stop", "tiny", "--now", "--address", URL)
    assert cluster.asked == [("end", "tiny-12345678")]


def test_stop_on_this_machine(paths, monkeypatch):
    monkeypatch.setattr(jobs, "POLL_S", 0.05)
    write_log(paths)
    for words in (["stop", "tiny"], ["stop", "tiny", "--now"]):
        with pytest.raises(IpcnnError, match="tiny-12345678 is not under way in "):
            run(*words)
    root = f"{paths.storage}/tiny-12345678"

    def end_on_request() -> None:
        while not experiment_dir.stop_requested(root):
            time.sleep(0.02)

    driver = start_driver(paths, end_on_request)
    assert "has ended; submitted again, it goes on" in run("stop", "tiny")
    driver.join()


def test_status_uses_the_tracking_uri_of_the_job(cluster, paths, tmp_path):
    with pytest.raises(IpcnnError, match="no job on http://head:8265 was given a record\nSet MLFLOW_TRACKING_URI"):
        run("status", "--address", URL)
    uri = f"sqlite:///{tmp_path}/other.db"
    MlflowTracker(uri, str(tmp_path)).prepare("elsewhere")
    MlflowTracker(uri, str(tmp_path)).open_parent("elsewhere", "elsewhere-12345678")
    cluster.known = [replace(RUNNING, record=uri)]
    assert "elsewhere-12345678" in run("status", "--address", URL)
