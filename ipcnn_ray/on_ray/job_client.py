"""Experiments as jobs of a Ray cluster, through Ray's Jobs API. A job runs on without its client.

The id of a job is the id of its experiment, so submitting the same spec twice gives one job. A job that is submitted
again after its end has the id `<experiment>-a<attempt>`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import ipcnn_ray
from ipcnn_ray.errors import IpcnnError, ResourceError, UnreachableError
from ipcnn_ray.on_ray.ray_session import RAY_VARIABLES, environment_variables
from ipcnn_ray.tracking.lineage import PACKAGE, SHIPPED, code
from ipcnn_ray.tracking.run_summary import State
from ipcnn_ray.tracking.storage import is_url
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.utils.text import shortened

EXPERIMENT, ATTEMPT, RECORD = "ipcnn.experiment", "ipcnn.attempt", "ipcnn.record"
"""Keys of a job's metadata."""
PREDICTION = "predict."
"""Beginning of the ids of predictions, which are jobs, too; those of experiments have no dot."""
STATES: dict[str, State] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
STOPPED_CODE = 130
POLL_S = 2.0
COMMAND_TIMEOUT_S = 120.0
RECONNECT_S = 600.0
"""Seconds that a cluster may be unreachable while its log is followed."""
TUNNEL = "ssh -L 8265:localhost:8265 HEAD   or   ray dashboard CLUSTER.yaml"
SPEC = "spec.yaml"
ADDRESS_VARIABLES = ("IPCNN_STORAGE", "IPCNN_DATA", "IPCNN_WEIGHTS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")
"""Environment variables that are passed to a job if they are URLs."""
OPTION_VARIABLES = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "OMP_NUM_THREADS",
)
"""Environment variables that are passed to a job as they are."""
STOP_VARIABLES = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Give a job that is stopped at once the time to record its state."""


@dataclass(frozen=True)
class ExperimentJob:
    """A job of an experiment."""

    experiment: str
    id: str
    attempt: int
    """1, 2, ... on this cluster."""
    state: State
    cause: str
    """Why it failed or was stopped; empty otherwise."""
    began: int
    """Milliseconds since 1970."""
    ended: int | None
    exit_code: int | None
    """Of the job's process; None before its end."""
    record: str = ""
    """Tracking URI that the job was given, if any."""

    @property
    def finished(self) -> bool:
        return self.state not in ("queued", "running")

    @property
    def predicts(self) -> bool:
        """Whether it is an `ipcnn predict`: it can be stopped at any time, and goes on with the parts that it lacks."""
        return self.experiment.startswith(PREDICTION)


class JobClient:
    """Client of the jobs of a Ray cluster."""

    def __init__(self, address: str) -> None:
        """address: URL of the dashboard, http://host:8265. Raises IpcnnError if no cluster answers."""
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise IpcnnError(
                f"--address {address} is not the address of a cluster's dashboard\n"
                f"Give http://HOST:8265 (tunnel: {TUNNEL})."
            )
        for name in (
            "ray.dashboard.modules.dashboard_sdk",
            "ray.dashboard.modules.job.sdk",
            "ray._private.runtime_env.packaging",
        ):
            logging.getLogger(name).setLevel(logging.ERROR)  # they log every upload and connection
        try:
            # Ray prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to the address that it is given.
            with environment_variables({"RAY_API_SERVER_ADDRESS": self.address}):
                self._client = JobSubmissionClient(self.address, headers=_token_header())
        except (ConnectionError, RuntimeError, AuthenticationError) as error:
            raise _request_failed(self.address, error) from error

    def jobs(self, experiment: str | None = None) -> list[ExperimentJob]:
        """Return the jobs of all experiments or of one, newest first."""
        jobs = [_parse_job(job) for job in self._client.list_jobs() if (job.metadata or {}).get(EXPERIMENT)]
        selected = [job for job in jobs if experiment in (None, job.experiment)]
        return sorted(selected, key=lambda job: (job.began, job.attempt), reverse=True)

    def job(self, id: str) -> ExperimentJob:
        return _parse_job(self._client.get_job_info(id))

    def find(self, name: str) -> ExperimentJob:
        """Return the newest job with this id, or of the experiment with this id or name. Raises IpcnnError."""
        jobs = self.jobs()
        for job in jobs:
            if name in (job.experiment, job.id, job.experiment.rpartition("-")[0]):
                return job
        known = ", ".join(dict.fromkeys(job.experiment for job in jobs)) or "none yet"
        raise IpcnnError(f"no job of {name!r} on {self.address}\nThere are: {known}.")

    def submit(
        self, experiment: str, folder: Path, arguments: Sequence[str], env: Mapping[str, str]
    ) -> tuple[ExperimentJob, bool]:
        """Run `ipcnn` on the cluster, unless a job of the experiment is queued or running.

        Args:
            experiment: Id of the experiment.
            folder: Working directory of the job, which is uploaded.
            arguments: Command line of `ipcnn`.
            env: Environment of this process; see `job_environment`.

        Returns:
            The job, and whether it was started by this call.
        """
        earlier = self.jobs(experiment)
        if earlier and not earlier[0].finished:
            return earlier[0], False
        attempt = max((job.attempt for job in earlier), default=0) + 1
        id = experiment if attempt == 1 else f"{experiment}-a{attempt}"
        variables = job_environment(env)
        metadata = {EXPERIMENT: experiment, ATTEMPT: str(attempt), RECORD: variables.get("MLFLOW_TRACKING_URI", "")}
        command = shlex.join(["python", "-m", "ipcnn_ray.cli.app", *arguments])
        try:
            self._start(id, command, folder, variables, metadata)
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise _request_failed(self.address, error) from error
            return self.job(id), False  # another client submitted it at the same moment
        return self.job(id), True

    def run_command(self, folder: Path, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        """Run a short `ipcnn` command on the cluster and wait for its end. Raises IpcnnError if it fails."""
        command = shlex.join(["python", "-m", "ipcnn_ray.cli.app", *arguments])
        job = self.run(arguments[0], command, folder, job_environment(env), COMMAND_TIMEOUT_S)
        if job.state != "succeeded":
            raise IpcnnError(f"`ipcnn {arguments[0]}` on {self.address} has {job.state}: {job.cause}")

    def run(self, name: str, command: str, folder: Path, env: Mapping[str, str], timeout: float) -> ExperimentJob:
        """Run a command on the cluster, in a copy of `folder`, and wait for its end.

        Raises IpcnnError if the cluster refuses the job, ResourceError if it has not ended after `timeout` seconds.
        """
        id = f"ipcnn-{name}-{secrets.token_hex(4)}"
        try:
            self._start(id, command, folder, env, {})
        except (RuntimeError, ConnectionError, ValueError, AuthenticationError) as error:
            raise _request_failed(self.address, error) from error
        end = time.monotonic() + timeout
        while not (job := self.job(id)).finished:
            if time.monotonic() > end:
                self.stop(id)
                raise ResourceError(
                    f"the cluster at {self.address} did not run a small job within {timeout:.0f} s; it is {job.state}\n"
                    f"Look at it: RAY_API_SERVER_ADDRESS={self.address} ray job logs {id}"
                )
            time.sleep(0.5)
        return job

    def stop(self, id: str) -> None:
        """Stop a job at once."""
        self._client.stop_job(id)

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the log of a job in pieces; with `follow` until its end, across lost connections.

        Raises UnreachableError if the cluster does not answer for RECONNECT_S seconds, or answers and has no such job:
        its head was started anew.
        """
        if not follow:
            yield self._client.get_job_logs(id)
            return
        yielded, answered = 0, time.monotonic()
        while True:
            position = 0  # every connection starts at the beginning of the log
            try:
                for piece in self._tail(id):
                    new = piece[max(0, yielded - position) :]
                    position += len(piece)
                    yielded, answered = max(yielded, position), time.monotonic()
                    if new:
                        yield new
                if self.job(id).finished:
                    return
                answered = time.monotonic()
            except Exception as error:  # aiohttp, requests and the system have their own classes
                if self._forgotten(id):
                    raise UnreachableError(
                        f"{self.address} has no job {id} any more: the cluster was started anew\n"
                        "Submit the experiment again: it goes on from its storage."
                    ) from error
                if time.monotonic() - answered > RECONNECT_S:
                    raise UnreachableError(
                        f"{self.address} has not answered for {RECONNECT_S / 60:.0f} minutes: {error}\n"
                        "If the cluster is gone, submit to a new one: the experiment goes on from its storage."
                    ) from error
            time.sleep(POLL_S)

    def _forgotten(self, id: str) -> bool:
        """Whether the cluster answers and has no such job."""
        try:
            self._client.get_job_info(id)
        except RuntimeError as error:
            return "does not exist" in str(error)
        except Exception:  # not reached
            return False
        return False

    def _tail(self, id: str) -> Iterator[str]:
        """Yield the log of a job from its beginning until the job ends or the connection is lost."""
        loop = asyncio.new_event_loop()
        pieces: Any = self._client.tail_job_logs(id)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(pieces))
                except StopAsyncIteration:
                    return
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def _start(self, id: str, command: str, folder: Path, env: Mapping[str, str], metadata: dict[str, str]) -> None:
        runtime_env = {"working_dir": str(folder), "env_vars": dict(env)}
        self._client.submit_job(entrypoint=command, submission_id=id, metadata=metadata, runtime_env=runtime_env)


def job_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a job. Everybody who can reach the cluster can read them.

    Raises IpcnnError for an address that contains a user or a password.
    """
    addresses = {
        name: env[name]
        for name in ADDRESS_VARIABLES
        if is_url(env.get(name, "")) and not env[name].startswith("sqlite:")
    }
    for name, value in addresses.items():
        if without_password(value) != value:
            raise IpcnnError(
                f"{name} holds a user or a password, which everybody who can reach the cluster could read\n"
                f"Give the address alone ({without_password(value)}), and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or the keys of the storage, in the environment of the nodes."
            )
    options = {name: env[name] for name in OPTION_VARIABLES if env.get(name)}
    return {**RAY_VARIABLES, **STOP_VARIABLES, **addresses, **options}


def write_working_dir(folder: Path, spec: str) -> None:
    """Write the working directory of a job into an empty folder: the package and a resolved spec."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(ipcnn_ray.__file__).parent, folder / "ipcnn_ray", ignore=ignored)
    (folder / SPEC).write_text(spec, encoding="utf-8")
    (folder / SHIPPED).write_text(json.dumps(code(PACKAGE)), encoding="utf-8")


def _token_header() -> dict[str, str] | None:
    """Return the header with the cluster's token, which is read from the same places as Ray reads it from:
    RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token and file.is_file():
        token = file.read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else None


def _request_failed(address: str, error: Exception) -> IpcnnError:
    text = str(error)
    if isinstance(error, AuthenticationError) or re.search("401|403|unauthorized|token", text, re.I):
        return IpcnnError(
            f"the cluster at {address} asks for another token\n"
            "Set RAY_AUTH_TOKEN, or RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file (`source DIR/env.sh` for a "
            "local cluster); on the head: ray get-auth-token."
        )
    if isinstance(error, ConnectionError):
        return IpcnnError(
            f"no Ray cluster answers at {address}\nCheck that it is up, and the way to it (tunnel: {TUNNEL})."
        )
    if "No available agent" in text:
        advice = "The job agent of the head is down: its dashboard_agent.log says why; restart the head."
    else:
        advice = "Check the address, and that the cluster runs the same Ray as this machine."
    return IpcnnError(f"the cluster at {address} refuses: {shortened(' '.join(text.split()), 400)}\n{advice}")


def _parse_job(job: Any) -> ExperimentJob:
    metadata = job.metadata or {}
    state = STATES[job.status.value]
    if state == "failed" and job.driver_exit_code == STOPPED_CODE:
        state = "stopped"
    return ExperimentJob(
        experiment=metadata.get(EXPERIMENT, ""),
        id=job.submission_id,
        attempt=int(metadata.get(ATTEMPT, 1)),
        state=state,
        cause=_cause(job) if state in ("failed", "stopped") else "",
        began=job.start_time or 0,
        ended=job.end_time,
        exit_code=job.driver_exit_code,
        record=metadata.get(RECORD, ""),
    )


def _cause(job: Any) -> str:
    """Return the last error that the job's process printed, else Ray's message."""
    message = str(job.message or "")
    printed = re.findall(r"^error\s+(.+)$", message, re.MULTILINE)
    if printed:
        return str(printed[-1])
    if job.driver_exit_code == STOPPED_CODE or job.status.value == "STOPPED":
        return "stopped on request"
    raised = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*$", message, re.MULTILINE)
    first = message.partition("\n")[0].partition(", last available logs")[0]
    return shortened(": ".join([first, *raised[-1:]]), 300)
