"""Job client: one job per experiment, states and causes, logs across lost connections, environment of a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ipcnn_ray.errors import IpcnnError, ResourceError, UnreachableError
from ipcnn_ray.on_ray import job_client
from ipcnn_ray.on_ray.job_client import JobClient, job_environment, write_working_dir

URL = "http://127.0.0.1:8265"
ENV = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "IPCNN_STORAGE": "s3://bucket/runs"}


class FakeClient:
    """Ray's JobSubmissionClient with the jobs in memory."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.log = ""
        self.breaks: list[int] = []
        """Numbers of characters after which the connection to the log is lost, one per connection."""

    def submit_job(self, *, entrypoint, submission_id, metadata, runtime_env):
        if submission_id in self.jobs:
            raise RuntimeError(f"Request failed: Job with submission_id {submission_id} already exists.")
        self.submitted.append({"entrypoint": entrypoint, "env": runtime_env["env_vars"]})
        self.add(submission_id, metadata, "PENDING")

    def add(self, id, metadata, status, **more):
        facts = {"start_time": len(self.jobs), "end_time": None, "driver_exit_code": None, "message": "", **more}
        self.jobs[id] = SimpleNamespace(
            submission_id=id, metadata=metadata, status=SimpleNamespace(value=status), **facts
        )

    def set(self, id, status, **more):
        job = self.jobs[id]
        job.status = SimpleNamespace(value=status)
        for name, value in more.items():
            setattr(job, name, value)

    def stop_job(self, id):
        self.stopped.append(id)

    def list_jobs(self):
        return list(self.jobs.values())

    def get_job_info(self, id):
        if id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {id} does not exist.")
        return self.jobs[id]

    def get_job_logs(self, id):
        return self.log

    async def tail_job_logs(self, id):
        end = self.breaks.pop(0) if self.breaks else None
        for start in range(0, len(self.log), 7):
            piece = self.log[start : start + 7]
            if end is not None and start + len(piece) > end:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece
        if end is not None:
            raise ConnectionResetError


@pytest.fixture
def client(monkeypatch) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr(job_client, "JobSubmissionClient", lambda address, headers: client)
    monkeypatch.setattr(job_client, "POLL_S", 0.0)
    return client


def submit(folder, experiment="sweep-12345678"):
    return JobClient(URL).submit(experiment, folder, ["submit", "spec.yaml", "--on-cluster"], ENV)


def test_a_running_experiment_is_one_job(client, tmp_path):
    job, started = submit(tmp_path)
    assert started and (job.id, job.experiment, job.attempt, job.state) == (*["sweep-12345678"] * 2, 1, "queued")
    client.set(job.id, "RUNNING")
    again, started = submit(tmp_path)
    assert not started and again.id == job.id and again.state == "running"
    other, started = submit(tmp_path, "other-12345678")
    assert started and other.id == "other-12345678"
    assert len(client.submitted) == 2
    assert client.submitted[0]["entrypoint"] == "python -m ipcnn_ray.cli.app submit spec.yaml --on-cluster"


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_finished_job_is_submitted_again_under_a_new_id(client, tmp_path, state):
    for attempt, id in enumerate(["sweep-12345678", "sweep-12345678-a2", "sweep-12345678-a3"], start=1):
        job, started = submit(tmp_path)
        assert started and (job.id, job.attempt) == (id, attempt)
        client.set(job.id, state)
    assert [one.attempt for one in JobClient(URL).jobs("sweep-12345678")] == [3, 2, 1]


def test_simultaneous_submissions_share_the_job(client, tmp_path, monkeypatch):
    submit(tmp_path)
    monkeypatch.setattr(JobClient, "jobs", lambda self, experiment=None: [])
    job, started = submit(tmp_path)
    assert job.id == "sweep-12345678" and not started


RAISED = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\nTraceback\n"


@pytest.mark.parametrize(
    ("status", "code", "message", "state", "cause"),
    [
        (
            "FAILED",
            2,
            "... logs:\nerror  a run asks for 4 workers\n       Ways out",
            "failed",
            "a run asks for 4 workers",
        ),
        ("FAILED", 130, "Job entrypoint command failed with exit code 130", "stopped", "stopped on request"),
        ("STOPPED", None, "Job was intentionally stopped.", "stopped", "stopped on request"),
        (
            "FAILED",
            1,
            RAISED + "  ValueError in words\nKeyError: 'x'\n",
            "failed",
            "Job entrypoint command failed with exit code 1: KeyError: 'x'",
        ),
        ("FAILED", None, "The actor died\nunexpectedly", "failed", "The actor died"),
        ("SUCCEEDED", 0, "Job finished successfully.", "succeeded", ""),
        ("RUNNING", None, "Job is currently running.", "running", ""),
    ],
)
def test_states_and_causes(client, status, code, message, state, cause):
    client.add("a-1", {job_client.EXPERIMENT: "a-1"}, status, driver_exit_code=code, message=message)
    job = JobClient(URL).job("a-1")
    assert (job.state, job.cause, job.exit_code) == (state, cause, code)


def test_foreign_jobs_are_not_listed(client):
    client.add("raysubmit_1", {}, "RUNNING")
    client.add("none", None, "RUNNING")
    client.add("sweep-12345678", {job_client.EXPERIMENT: "sweep-12345678"}, "RUNNING")
    cluster = JobClient(URL)
    assert [one.id for one in cluster.jobs()] == ["sweep-12345678"]
    assert cluster.find("sweep").id == cluster.find("sweep-12345678").id == "sweep-12345678"
    with pytest.raises(IpcnnError, match=r"no job of 'swep' on http://127.0.0.1:8265\nThere are: sweep-12345678\."):
        cluster.find("swep")


def test_a_log_is_yielded_once_across_lost_connections(client):
    client.add("a-1", {job_client.EXPERIMENT: "a-1"}, "SUCCEEDED")
    client.log = "".join(f"line {number}\n" for number in range(50))
    client.breaks = [0, 20, 25, 300]
    assert "".join(JobClient(URL).logs("a-1", follow=True)) == client.log
    assert client.breaks == []
    assert "".join(JobClient(URL).logs("a-1")) == client.log


def test_an_unreachable_cluster_is_given_up(client, monkeypatch):
    client.add("a-1", {job_client.EXPERIMENT: "a-1"}, "RUNNING")
    monkeypatch.setattr(job_client, "RECONNECT_S", -1.0)
    client.breaks = [0]
    with pytest.raises(UnreachableError, match=r"has not answered(.|\n)*submit to a new one"):
        list(JobClient(URL).logs("a-1", follow=True))


def test_the_log_of_a_cluster_that_was_started_anew_ends_at_once(client):
    """A new head knows no job of the one before, and would be asked in vain for RECONNECT_S."""
    client.log, client.breaks = "line 1\n", [7]
    pieces = JobClient(URL).logs("a-1", follow=True)
    assert next(pieces) == client.log
    with pytest.raises(UnreachableError, match=r"has no job a-1 any more(.|\n)*Submit the experiment again"):
        next(pieces)


def test_a_job_gets_addresses_and_no_secrets(tmp_path):
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "marked",
        "AWS_ACCESS_KEY_ID": "marked",
        "AWS_SESSION_TOKEN": "marked",
        "MLFLOW_TRACKING_PASSWORD": "marked",
        "RAY_AUTH_TOKEN": "marked",
    }
    local = {"IPCNN_DATA": "/home/marked/data", "IPCNN_HOME": "/home/marked", "IPCNN_WEIGHTS": "s3://bucket/weights"}
    passed = job_environment({**ENV, **secrets, **local, "AWS_DEFAULT_REGION": "eu-west-1"})
    assert "marked" not in json.dumps(passed)
    assert {key: passed[key] for key in ("IPCNN_STORAGE", "IPCNN_WEIGHTS", "AWS_DEFAULT_REGION")} == {
        "IPCNN_STORAGE": "s3://bucket/runs",
        "IPCNN_WEIGHTS": "s3://bucket/weights",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    assert "MLFLOW_TRACKING_URI" not in job_environment({"MLFLOW_TRACKING_URI": "sqlite:////tmp/mlflow.db"})


def test_an_address_with_a_password_is_refused():
    with pytest.raises(
        IpcnnError, match=r"MLFLOW_TRACKING_URI holds a user or a password(.|\n)*\(http://mlflow:5000\)"
    ) as e:
        job_environment({"MLFLOW_TRACKING_URI": "http://me:marked@mlflow:5000"})
    assert "marked" not in str(e.value)


def test_the_working_directory_runs_and_knows_its_commit(tmp_path):
    write_working_dir(tmp_path, "name: x\n")
    code = "import ipcnn_ray, sys; from ipcnn_ray.tracking.lineage import PACKAGE, code; print(PACKAGE, code(PACKAGE))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    shipped = json.loads((tmp_path / "shipped.json").read_text())
    assert done.stdout.strip() == f"{tmp_path / 'ipcnn_ray'} {shipped}"
    assert set(shipped) == {"code.commit", "code.dirty"}
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if "__pycache__" not in str(file)) < 5 << 20


def test_a_command_on_the_cluster(client, tmp_path, monkeypatch):
    submit_job = client.submit_job

    def end_as(status, **facts):
        def submit(**job):
            submit_job(**job)
            client.set(job["submission_id"], status, **facts)

        monkeypatch.setattr(client, "submit_job", submit)

    end_as("SUCCEEDED")
    JobClient(URL).run_command(tmp_path, ["stop", "sweep-12345678", "--on-cluster"], ENV)
    assert client.submitted[0]["entrypoint"] == "python -m ipcnn_ray.cli.app stop sweep-12345678 --on-cluster"
    end_as("FAILED", message="error  sweep-12345678 is not under way", driver_exit_code=2)
    with pytest.raises(IpcnnError, match=f"`ipcnn stop` on {URL} has failed: sweep-12345678 is not under way"):
        JobClient(URL).run_command(tmp_path, ["stop", "sweep-12345678"], ENV)
    end_as("PENDING")
    with pytest.raises(ResourceError, match=r"did not run a small job within -1 s; it is queued\nLook at it: RAY_API"):
        JobClient(URL).run("doctor", "true", tmp_path, {}, timeout=-1)
    assert client.jobs[client.stopped[0]].submission_id.startswith("ipcnn-doctor-")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("refused"), "no Ray cluster answers at http://127.0.0.1:8265\nCheck that it is up"),
        (RuntimeError("Request failed with status code 401"), "asks for another token\nSet RAY_AUTH_TOKEN"),
        (RuntimeError("No available agent to submit job"), "refuses: No available agent to submit job\nThe job agent"),
        (
            RuntimeError("Ray version mismatch"),
            "refuses: Ray version mismatch\nCheck the address, and that",
        ),
    ],
)
def test_a_refused_connection(monkeypatch, error, message):
    def refuses(address, headers):
        raise error

    monkeypatch.setattr(job_client, "JobSubmissionClient", refuses)
    with pytest.raises(IpcnnError) as caught:
        JobClient(URL)
    assert message in str(caught.value)


def test_an_address_of_another_scheme_is_refused():
    with pytest.raises(
        IpcnnError, match="--address ray://h:10001 is not the address of a cluster's dashboard\nGive http"
    ):
        JobClient("ray://h:10001")


@pytest.mark.parametrize("source", ["variable", "file"])
def test_the_token_is_read_from_where_ray_reads_it(monkeypatch, tmp_path, source):
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token") if source == "file" else "/nowhere")
    if source == "variable":
        assert job_client._token_header() is None
        monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    assert job_client._token_header() == {"Authorization": "Bearer abc"}


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_given_address_goes_before_the_environment(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://127.0.0.1:10")
    with pytest.raises(IpcnnError, match=r"no Ray cluster answers at http://127\.0\.0\.1:9\n") as raised:
        JobClient("http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in str(raised.value.__cause__)
    assert os.environ[variable] == "http://127.0.0.1:10"
