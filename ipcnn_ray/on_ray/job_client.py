"""Experiments as jobs of a cluster, over Ray's Jobs API: a submission goes on without the one who submitted it.

The id of a job is that of its experiment, so that the same spec twice is one job; one that is submitted again after it
has ended gets a number behind it.
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

from ray.job_submission import JobSubmissionClient

import ipcnn_ray
from ipcnn_ray.errors import IpcnnError, UnreachableError
from ipcnn_ray.on_ray.ray_session import SETTINGS
from ipcnn_ray.tracking.lineage import PACKAGE, SHIPPED, code
from ipcnn_ray.tracking.storage import is_url
from ipcnn_ray.tracking.tracker import State
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.utils.text import shortened

EXPERIMENT, ATTEMPT, RECORD = "ipcnn.experiment", "ipcnn.attempt", "ipcnn.record"
"""Keys of a job's metadata."""
STATES: dict[str, State] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
STOPPED_CODE = 130
PAUSE_S, GIVE_UP_S, HELPER_S = 2.0, 600.0, 120.0
TUNNEL = "ssh -L 8265:localhost:8265 HEAD   or   ray dashboard CLUSTER.yaml"


@dataclass(frozen=True)
class Submission:
    """One job of an experiment."""

    experiment: str
    id: str
    attempt: int
    """1, 2, ... on this cluster."""
    state: State
    why: str
    """Cause of a failure or stop, in a sentence."""
    began: int
    """Milliseconds since 1970."""
    ended: int | None
    exit_code: int | None
    """Of the job's process, as of the command that it runs; None while it has none."""
    record: str = ""
    """Address of the record, where whoever submitted it named one."""

    @property
    def over(self) -> bool:
        return self.state not in ("queued", "running")


class Cluster:
    """The jobs of a Ray cluster."""

    def __init__(self, address: str) -> None:
        """address: of its dashboard, http://host:8265. Raises IpcnnError where no cluster answers."""
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise IpcnnError(
                f"--address {address} is not the address of a cluster's dashboard\n"
                f"Give http://HOST:8265 (tunnel: {TUNNEL})."
            )
        for noisy in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(noisy).setLevel(logging.ERROR)  # they tell of every upload and connection
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(self.address, headers=_token())
        except (ConnectionError, RuntimeError) as error:
            raise _told(self.address, error) from error

    def submissions(self, experiment: str | None = None) -> list[Submission]:
        """The experiments' jobs, newest first."""
        jobs = [job for job in self._client.list_jobs() if (job.metadata or {}).get(EXPERIMENT)]
        found = [_submission(job) for job in jobs]
        wanted = [one for one in found if experiment in (None, one.experiment)]
        return sorted(wanted, key=lambda one: (one.began, one.attempt), reverse=True)

    def submission(self, id: str) -> Submission:
        return _submission(self._client.get_job_info(id))

    def named(self, wanted: str) -> Submission:
        """The newest job of an experiment, by its id or its name. Raises IpcnnError."""
        found = self.submissions()
        for one in found:
            if wanted in (one.experiment, one.id, one.experiment.rpartition("-")[0]):
                return one
        known = ", ".join(dict.fromkeys(one.experiment for one in found)) or "none yet"
        raise IpcnnError(f"no job of {wanted!r} on {self.address}\nThere are: {known}.")

    def submit(
        self, experiment: str, folder: Path, arguments: Sequence[str], env: Mapping[str, str]
    ) -> tuple[Submission, bool]:
        """Run `ipcnn` with these arguments on the cluster, in a copy of `folder`; gives the job, and whether it was
        started now: an experiment that is under way is not started again."""
        before = self.submissions(experiment)
        if before and not before[0].over:
            return before[0], False
        attempt = max((one.attempt for one in before), default=0) + 1
        id = experiment if attempt == 1 else f"{experiment}-a{attempt}"
        metadata = {EXPERIMENT: experiment, ATTEMPT: str(attempt)}
        metadata[RECORD] = travelling(env).get("MLFLOW_TRACKING_URI", "")
        try:
            self._start(id, folder, arguments, env, metadata)
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise _told(self.address, error) from error
            return self.submission(id), False  # somebody submitted it at the same moment
        return self.submission(id), True

    def ask(self, folder: Path, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        """Run `ipcnn` with these arguments on the cluster and wait until it has ended. Raises IpcnnError."""
        id = f"ipcnn-{arguments[0]}-{secrets.token_hex(4)}"
        self._start(id, folder, arguments, env, {})
        end = time.monotonic() + HELPER_S
        while not (job := self.submission(id)).over:
            if time.monotonic() > end:
                raise IpcnnError(
                    f"`ipcnn {arguments[0]}` on {self.address} has not ended in {HELPER_S:.0f} s\nTry again."
                )
            time.sleep(0.5)
        if job.state != "succeeded":
            raise IpcnnError(f"`ipcnn {arguments[0]}` on {self.address} has {job.state}: {job.why}")

    def end(self, id: str) -> None:
        """End a job now."""
        self._client.stop_job(id)

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        """What a job has said, in pieces; follow: until it has ended, however often the connection is lost."""
        if not follow:
            yield self._client.get_job_logs(id)
            return
        told, heard = 0, time.monotonic()
        while True:
            seen = 0
            try:
                for piece in self._tail(id):
                    new = piece[max(0, told - seen) :]
                    seen += len(piece)
                    told, heard = max(told, seen), time.monotonic()
                    if new:
                        yield new
                if self.submission(id).over:
                    return
                heard = time.monotonic()
            except Exception as error:  # aiohttp's, requests', the system's
                if time.monotonic() - heard > GIVE_UP_S:
                    raise UnreachableError(
                        f"{self.address} has not answered for {GIVE_UP_S / 60:.0f} minutes: {error}\n"
                        "If the cluster is gone, submit to a new one: the experiment goes on from its storage."
                    ) from error
            time.sleep(PAUSE_S)

    def _tail(self, id: str) -> Iterator[str]:
        """What a job has said, from its beginning, until it has ended or the connection is lost."""
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

    def _start(
        self, id: str, folder: Path, arguments: Sequence[str], env: Mapping[str, str], metadata: dict[str, str]
    ) -> None:
        self._client.submit_job(
            entrypoint=shlex.join(["python", "-m", "ipcnn_ray.cli.app", *arguments]),
            submission_id=id,
            metadata=metadata,
            runtime_env={"working_dir": str(folder), "env_vars": travelling(env)},
        )


def _token() -> dict[str, str] | None:
    """Header with the cluster's token, from where Ray itself looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,
    ~/.ray/auth_token."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token and file.is_file():
        token = file.read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else None


def _told(address: str, error: Exception) -> IpcnnError:
    text = str(error)
    if "401" in text or "403" in text or "nauthorized" in text or "token" in text.lower():
        return IpcnnError(
            f"the cluster at {address} asks for another token\n"
            "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file; on the head: ray get-auth-token."
        )
    if isinstance(error, ConnectionError):
        return IpcnnError(
            f"no Ray cluster answers at {address}\nCheck that it is up, and the way to it (tunnel: {TUNNEL})."
        )
    return IpcnnError(f"the cluster at {address} refuses: {shortened(text, 400)}")


def _submission(job: Any) -> Submission:
    metadata = job.metadata or {}
    state = STATES[job.status.value]
    if state == "failed" and job.driver_exit_code == STOPPED_CODE:
        state = "stopped"
    return Submission(
        experiment=metadata.get(EXPERIMENT, ""),
        id=job.submission_id,
        attempt=int(metadata.get(ATTEMPT, 1)),
        state=state,
        why=_why(job) if state in ("failed", "stopped") else "",
        began=job.start_time or 0,
        ended=job.end_time,
        exit_code=job.driver_exit_code,
        record=metadata.get(RECORD, ""),
    )


def _why(job: Any) -> str:
    """The last error that the job's process told; else what Ray says of it."""
    message = str(job.message or "")
    told = re.findall(r"^error\s+(.+)$", message, re.MULTILINE)
    if told:
        return str(told[-1])
    if job.driver_exit_code == STOPPED_CODE or job.status.value == "STOPPED":
        return "stopped on request"
    raised = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*$", message, re.MULTILINE)
    first = message.partition("\n")[0].partition(", last available logs")[0]
    return shortened(": ".join([first, *raised[-1:]]), 300)


SPEC = "spec.yaml"
PLACES = ("IPCNN_STORAGE", "IPCNN_DATA", "IPCNN_WEIGHTS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")
"""Travel where they are addresses."""
OPTIONS = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "OMP_NUM_THREADS",
)
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""A job that is stopped at once says so in the record before it ends."""


def travelling(env: Mapping[str, str]) -> dict[str, str]:
    """Environment of a job on a cluster. Anybody who may ask the cluster about its jobs can read it.

    Raises IpcnnError for an address with a password in it.
    """
    paths = {name: env[name] for name in PLACES if is_url(env.get(name, "")) and not env[name].startswith("sqlite:")}
    for name, value in paths.items():
        if without_password(value) != value:
            raise IpcnnError(
                f"{name} holds a user or a password, which everybody who can reach the cluster could read\n"
                f"Give the address alone ({without_password(value)}), and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or the keys of the storage, in the environment of the nodes."
            )
    options = {name: env[name] for name in OPTIONS if env.get(name)}
    return {**SETTINGS, **STOPPING, **paths, **options}


def pack(folder: Path, spec: str) -> None:
    """Put the package and a resolved spec into an empty folder: the working directory of a job."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(ipcnn_ray.__file__).parent, folder / "ipcnn_ray", ignore=ignored)
    (folder / SPEC).write_text(spec, encoding="utf-8")
    (folder / SHIPPED).write_text(json.dumps(code(PACKAGE)), encoding="utf-8")
