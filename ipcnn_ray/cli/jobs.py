"""`ipcnn list`, `logs` and `stop`, and `submit --address`: experiments on this machine or as jobs of a cluster."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import (
    RUN_FAILED,
    STOPPED,
    AddressOption,
    ExperimentArgument,
    JsonOption,
    submitted_experiments,
)
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.run_summary import State
from ipcnn_ray.tracking.storage import is_url, join_path
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean, printable

if TYPE_CHECKING:
    from ipcnn_ray.on_ray.job_client import ExperimentJob, JobClient
    from ipcnn_ray.spec.experiment import ExperimentSpec

COLUMNS = ("experiment", "state", "times", "began", "took", "why")
POLL_S = 0.5
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the experiment has ended.")]
NowOption = Annotated[bool, typer.Option("--now", help="Do not let the runs end their epoch.")]
OnClusterOption = Annotated[bool, typer.Option("--on-cluster", hidden=True)]


@dataclass(frozen=True)
class ListedExperiment:
    """Row of `ipcnn list`, and its JSON."""

    experiment: str
    state: State
    submitted: int
    """Number of submissions, on a cluster those to it."""
    began: int
    """Milliseconds since 1970."""
    ended: int | None
    why: str

    def row(self) -> list[str]:
        began = time.strftime("%m-%d %H:%M", time.localtime(self.began / 1000))
        took = output.format_clock((self.ended - self.began) / 1000) if self.ended else "-"
        return [self.experiment, self.state, str(self.submitted), began, took, self.why]


def list_(address: AddressOption = None, json: JsonOption = False) -> None:
    """List the submitted experiments, newest first."""
    paths = Paths.from_environment()
    experiments = _on_cluster(address) if address else _recorded(paths)
    if json:
        output.print_json([asdict(experiment) for experiment in experiments])
    elif experiments:
        output.print_table(COLUMNS, [experiment.row() for experiment in experiments], right=("times", "took"))
    else:
        output.print_line(f"nothing is submitted yet to {address or without_password(paths.tracking_uri)}")


def _recorded(paths: Paths) -> list[ListedExperiment]:
    tracker = open_tracker(paths)
    parents = [run for name in tracker.experiments() for run in tracker.find(name) if not run.parent]
    return [
        ListedExperiment(
            run.run_id,
            run.state,
            int(run.tags.get("ipcnn.submissions", 1)),
            round(1000 * (run.started or 0)),
            None if run.state in ("queued", "running") or run.ended is None else round(1000 * run.ended),
            run.cause,
        )
        for run in sorted(parents, key=lambda run: run.started or 0, reverse=True)
    ]


def _on_cluster(address: str) -> list[ListedExperiment]:
    newest: dict[str, ListedExperiment] = {}
    for job in cluster_client(address).jobs():
        newest.setdefault(
            job.experiment,
            ListedExperiment(job.experiment, job.state, job.attempt, job.began, job.ended, job.cause),
        )
    return list(newest.values())


def cluster_client(address: str) -> JobClient:
    """Return the client of a cluster's jobs."""
    from ipcnn_ray.on_ray import job_client

    return job_client.JobClient(address)


def logs(experiment: ExperimentArgument, follow: FollowOption = False, address: AddressOption = None) -> None:
    """Show the log of an experiment."""
    if address:
        client = cluster_client(address)
        pieces = client.logs(client.find(experiment).id, follow=follow)
    else:
        pieces = _local_log(experiment, follow)
    try:
        for piece in pieces:
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        output.print_note("The experiment goes on.")
        raise typer.Exit(STOPPED) from None


def _local_log(experiment: str, follow: bool) -> Iterator[str]:
    from ipcnn_ray.on_ray.experiment_dir import is_running

    paths = Paths.from_environment()
    identity = submitted_here(experiment, paths)
    with log_file(identity, paths).open(encoding="utf-8") as file:
        while True:
            running = follow and is_running(join_path(paths.storage, identity))
            if text := file.read():
                yield text
            if not running:
                return
            time.sleep(POLL_S)


def log_file(identity: str, paths: Paths) -> Path:
    """Return the log file of an experiment that is submitted on this machine."""
    return paths.home / "logs" / f"{identity}.log"


def submitted_here(name: str, paths: Paths) -> str:
    """Return the id of an experiment that was submitted on this machine, from its id or name. Raises IpcnnError."""
    known = submitted_experiments(paths)
    for identity in known:
        if name in (identity, re.sub(r"-[0-9a-f]{8}$", "", identity)):
            return identity
    guess = did_you_mean(name, known).strip()
    submitted = f"Submitted: {', '.join(known)}." if known else "Nothing was submitted yet."
    raise IpcnnError(f"no experiment {name!r} was submitted on this machine\n{guess or submitted}")


def stop(
    experiment: ExperimentArgument,
    now: NowOption = False,
    address: AddressOption = None,
    on_cluster: OnClusterOption = False,
) -> None:
    """Stop an experiment: its runs end the epoch that they are in, and store it. Submitted again, it goes on."""
    if on_cluster:
        _request_stop(experiment, Paths.from_environment())
    elif address:
        _stop_on_cluster(experiment, address, now)
    else:
        _stop_here(experiment, now)


def _request_stop(identity: str, paths: Paths) -> None:
    from ipcnn_ray.on_ray.experiment_dir import is_running, request_stop

    root = join_path(paths.storage, identity)
    if not is_running(root):
        raise IpcnnError(f"{identity} is not under way in {paths.storage}\nSee what is: ipcnn list")
    request_stop(root)


def _stop_on_cluster(name: str, address: str, now: bool) -> None:
    from ipcnn_ray.on_ray.job_client import write_working_dir

    client = cluster_client(address)
    job = client.find(name)
    if job.finished:
        raise IpcnnError(f"{job.experiment} is not under way on {address}: it has {job.state}\nSee: ipcnn list")
    if now or job.predicts:
        client.stop(job.id)
    else:
        with tempfile.TemporaryDirectory(prefix="ipcnn-") as folder:
            write_working_dir(Path(folder), "")
            client.run_command(Path(folder), ["stop", job.experiment, "--on-cluster"], os.environ)
    _wait_for_end(job.experiment, lambda: client.job(job.id).finished)


def _stop_here(name: str, now: bool) -> None:
    from ipcnn_ray.on_ray.experiment_dir import is_running, lock_holder_pid

    paths = Paths.from_environment()
    identity = submitted_here(name, paths)
    root = join_path(paths.storage, identity)
    if now:
        pid = None if is_url(root) else lock_holder_pid(root)
        if pid is None:
            raise IpcnnError(
                f"{identity} is not under way in a folder of this machine ({paths.storage})\n"
                "Where it was submitted, Ctrl-C ends it now."
            )
        os.kill(pid, signal.SIGINT)
    else:
        _request_stop(identity, paths)
    _wait_for_end(identity, lambda: not is_running(root))


def _wait_for_end(identity: str, ended: Callable[[], bool]) -> None:
    output.print_note(f"{identity} is asked to stop; its runs end first (Ctrl-C: they do so without you watching)")
    try:
        while not ended():
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    output.print_line(f"{identity} has ended; submitted again, it goes on")


def submit_job(
    address: str, experiment: ExperimentSpec, *, fresh: bool, wait: float, detach: bool, as_json: bool
) -> None:
    """Submit an experiment as a job, follow its log and exit with its exit code.

    wait: Minutes that the cluster may take to provide the resources of one run. detach: Return after the submission.
    """
    client, job, started = start_job(address, experiment, fresh=fresh, wait=wait)
    follow_job(client, job, address, started=started, detach=detach, as_json=as_json)


def follow_job(
    client: JobClient, job: ExperimentJob, address: str, *, started: bool, detach: bool, as_json: bool
) -> None:
    """Show the log of a job until it ends and exit with its exit code. started: Whether this command has started it.
    detach: Return at once."""
    how = f"submitted to {address}" if started else f"is under way on {address} already; nothing was submitted"
    output.print_note(f"{job.experiment}: {how} (job {job.id})")
    names = ("logs -f", "stop") if job.predicts else ("logs -f", "status", "stop")
    commands = "  |  ".join(f"ipcnn {word} {job.experiment} --address {address}" for word in names)
    if not detach:
        try:
            for piece in client.logs(job.id, follow=True):
                print(piece, end="", flush=True, file=sys.stderr if as_json else sys.stdout)
        except KeyboardInterrupt:
            output.print_note(f"\nThe job goes on without you:  {commands}")
            raise typer.Exit(STOPPED) from None
        job = client.job(job.id)
    if as_json:
        output.print_json({**asdict(job), "address": address, "submitted": started})
    if not detach:
        _exit_as(job)
    elif not as_json:
        output.print_note(f"next:  {commands}")


def start_job(
    address: str, experiment: ExperimentSpec, *, fresh: bool, wait: float
) -> tuple[JobClient, ExperimentJob, bool]:
    """Submit an experiment as a job, unless it is under way. Returns the client, the job, and whether it was started.

    wait: Minutes that the cluster may take to provide the resources of one run. Raises IpcnnError.
    """
    from ipcnn_ray.on_ray.job_client import SPEC, write_working_dir
    from ipcnn_ray.spec.runs import experiment_id, resolved_yaml

    identity, client = experiment_id(experiment), cluster_client(address)
    arguments = ["submit", SPEC, "--on-cluster", "--wait", f"{wait:g}", *(["--fresh"] if fresh else [])]
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as folder:
        write_working_dir(Path(folder), resolved_yaml(experiment))
        job, started = client.submit(identity, Path(folder), arguments, os.environ)
    if not started and fresh:
        raise IpcnnError(
            f"{identity} is under way on {address}; --fresh would begin it anew beside itself\n"
            f"Stop it first: ipcnn stop {identity} --address {address}"
        )
    return client, job, started


def _exit_as(job: ExperimentJob) -> None:
    """Exit with the exit code of a finished job."""
    if job.state == "failed" and job.exit_code is None:
        output.print_error(
            IpcnnError(f"{job.id} has failed: {job.cause}\nSubmit it again: it goes on where it stopped.")
        )
    if job.state != "succeeded":
        raise typer.Exit(STOPPED if job.state == "stopped" else job.exit_code or RUN_FAILED)


def tracking_uri_of(address: str) -> str:
    """Return the tracking URI of the newest job on a cluster that was given one. Raises IpcnnError."""
    record = next((job.record for job in cluster_client(address).jobs() if job.record), "")
    if not record:
        raise IpcnnError(f"no job on {address} was given a record\nSet MLFLOW_TRACKING_URI to the cluster's MLflow.")
    return record
