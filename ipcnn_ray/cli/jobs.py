"""`ipcnn list`: the submitted experiments, from the record or from a cluster."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.exit_codes import RUN_FAILED, STOPPED
from ipcnn_ray.cli.options import AddressOption, ExperimentArgument, JsonOption, submitted_experiments
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import experiment_id, resolved_yaml
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.storage import below, is_url
from ipcnn_ray.tracking.tracker import State
from ipcnn_ray.tracking.tracking_uri import is_server, without_password
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean

if TYPE_CHECKING:
    from ipcnn_ray.on_ray.job_client import Submission

COLUMNS = ("experiment", "state", "times", "began", "took", "why")


@dataclass(frozen=True)
class Listed:
    """One experiment."""

    experiment: str
    state: State
    submitted: int
    """Times; on a cluster: there."""
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
    found = _on_cluster(address) if address else _recorded(paths)
    if json:
        output.print_json([asdict(one) for one in found])
    elif found:
        output.print_table(COLUMNS, [one.row() for one in found], right=("times", "took"))
    else:
        output.print_line(f"nothing is submitted yet to {address or without_password(paths.tracking_uri)}")


def _recorded(paths: Paths) -> list[Listed]:
    tracker = open_tracker(paths)
    parents = [run for name in tracker.experiments() for run in tracker.find(name) if not run.parent]
    return [
        Listed(
            run.run_id,
            run.state,
            int(run.tags.get("ipcnn.submissions", 1)),
            round(1000 * (run.started or 0)),
            None if run.state in ("queued", "running") or run.ended is None else round(1000 * run.ended),
            run.why,
        )
        for run in sorted(parents, key=lambda run: run.started or 0, reverse=True)
    ]


def _on_cluster(address: str) -> list[Listed]:
    from ipcnn_ray.on_ray.job_client import Cluster

    newest: dict[str, Listed] = {}
    for job in Cluster(address).submissions():
        listed = Listed(job.experiment, job.state, job.attempt, job.began, job.ended, job.why)
        newest.setdefault(job.experiment, listed)
    return list(newest.values())


PAUSE_S = 0.5
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the experiment has ended.")]


def logs(experiment: ExperimentArgument, follow: Follow = False, address: AddressOption = None) -> None:
    """Show what an experiment has told."""
    try:
        for piece in _of_cluster(address, experiment, follow) if address else _of_this_machine(experiment, follow):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        output.print_note("The experiment goes on.")
        raise typer.Exit(STOPPED) from None


def _of_cluster(address: str, experiment: str, follow: bool) -> Iterator[str]:
    from ipcnn_ray.on_ray.job_client import Cluster

    cluster = Cluster(address)
    return cluster.logs(cluster.named(experiment).id, follow=follow)


def _of_this_machine(experiment: str, follow: bool) -> Iterator[str]:
    paths = Paths.from_environment()
    identity = submitted_here(experiment, paths)
    from ipcnn_ray.on_ray.experiment_dir import at_work

    with log_file(identity, paths).open(encoding="utf-8") as file:
        while True:
            working = follow and at_work(below(paths.storage, identity))
            if text := file.read():
                yield text
            if not working:
                return
            time.sleep(PAUSE_S)


def log_file(identity: str, paths: Paths) -> Path:
    """Where a submission on this machine writes what it tells."""
    return paths.home / "logs" / f"{identity}.log"


def submitted_here(wanted: str, paths: Paths) -> str:
    """Id of the experiment that was submitted on this machine, from its id or its name. Raises IpcnnError."""
    known = submitted_experiments(paths)
    for identity in known:
        if wanted in (identity, re.sub(r"-[0-9a-f]{8}$", "", identity)):
            return identity
    guess = did_you_mean(wanted, known).strip()
    listed = f"Submitted: {', '.join(known)}." if known else "Nothing was submitted yet."
    raise IpcnnError(f"no experiment {wanted!r} was submitted on this machine\n{guess or listed}")


PAUSE_S_STOP = 0.5
Now = Annotated[bool, typer.Option("--now", help="Do not let the runs end their epoch.")]
OnCluster = Annotated[bool, typer.Option("--on-cluster", hidden=True)]


def stop(
    experiment: ExperimentArgument, now: Now = False, address: AddressOption = None, on_cluster: OnCluster = False
) -> None:
    """Stop an experiment: its runs end the epoch that they are in, and store it. Submitted again, it goes on."""
    if on_cluster:
        _ask(experiment, Paths.from_environment())
    elif address:
        _on_cluster_stop(experiment, address, now)
    else:
        _here(experiment, now)


def _ask(identity: str, paths: Paths) -> None:
    from ipcnn_ray.on_ray.experiment_dir import at_work, request_stop

    root = below(paths.storage, identity)
    if not at_work(root):
        raise IpcnnError(f"{identity} is not under way in {paths.storage}\nSee what is: ipcnn list")
    request_stop(root)


def _on_cluster_stop(wanted: str, address: str, now: bool) -> None:
    from ipcnn_ray.on_ray.job_client import Cluster, pack

    cluster = Cluster(address)
    job = cluster.named(wanted)
    if job.over:
        raise IpcnnError(f"{job.experiment} is not under way on {address}: it has {job.state}\nSee: ipcnn list")
    if now:
        cluster.end(job.id)
    else:
        with tempfile.TemporaryDirectory(prefix="ipcnn-") as folder:
            pack(Path(folder), "")
            cluster.ask(Path(folder), ["stop", job.experiment, "--on-cluster"], os.environ)
    _wait(job.experiment, lambda: cluster.submission(job.id).over)


def _here(wanted: str, now: bool) -> None:
    from ipcnn_ray.on_ray.experiment_dir import at_work, lock_holder_pid
    from ipcnn_ray.tracking.storage import is_url

    paths = Paths.from_environment()
    identity = submitted_here(wanted, paths)
    root = below(paths.storage, identity)
    if now:
        process = None if is_url(root) else lock_holder_pid(root)
        if process is None:
            raise IpcnnError(
                f"{identity} is not under way in a folder of this machine ({paths.storage})\n"
                "Where it was submitted, Ctrl-C ends it now."
            )
        os.kill(process, signal.SIGINT)
    else:
        _ask(identity, paths)
    _wait(identity, lambda: not at_work(root))


def _wait(identity: str, over: Callable[[], bool]) -> None:
    output.print_note(f"{identity} is asked to stop; its runs end first (Ctrl-C: they do so without you watching)")
    try:
        while not over():
            time.sleep(PAUSE_S_STOP)
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    output.print_line(f"{identity} has ended; submitted again, it goes on")


def submit_to(
    address: str, experiment: ExperimentSpec, *, fresh: bool, wait: float, detach: bool, as_json: bool
) -> None:
    """Submit, and follow the job's log until it ends or the reader goes away.

    wait: minutes that the cluster may take to have room for a run.
    """
    from ipcnn_ray.on_ray.job_client import SPEC, Cluster, pack

    identity, cluster = experiment_id(experiment), Cluster(address)
    arguments = ["submit", SPEC, "--on-cluster", "--wait", f"{wait:g}", *(["--fresh"] if fresh else [])]
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as folder:
        pack(Path(folder), resolved_yaml(experiment))
        job, started = cluster.submit(identity, Path(folder), arguments, os.environ)
    if not started and fresh:
        raise IpcnnError(
            f"{identity} is under way on {address}; --fresh would begin it anew beside itself\n"
            f"Stop it first: ipcnn stop {identity} --address {address}"
        )
    how = f"submitted to {address}" if started else f"is under way on {address} already; nothing was submitted"
    output.print_note(f"{identity}: {how} (job {job.id})")
    if not detach:
        _follow(cluster.logs(job.id, follow=True), sys.stderr if as_json else sys.stdout, identity, address)
        job = cluster.submission(job.id)
    if as_json:
        output.print_json({**asdict(job), "address": address, "submitted": started})
    if detach and not as_json:
        output.print_note(f"next:  {_next(identity, address)}")
    if not detach:
        _end(job)


def _next(identity: str, address: str) -> str:
    return "  |  ".join(f"ipcnn {word} {identity} --address {address}" for word in ("logs -f", "status", "stop"))


def _follow(pieces: Iterable[str], stream: object, identity: str, address: str) -> None:
    try:
        for piece in pieces:
            print(piece, end="", flush=True, file=stream)  # type: ignore[call-overload]
    except KeyboardInterrupt:
        output.print_note(f"\nThe job goes on without you:  {_next(identity, address)}")
        raise typer.Exit(STOPPED) from None


def _end(job: Submission) -> None:
    """End as the job has ended."""
    if job.state == "failed" and job.exit_code is None:
        output.print_error(
            IpcnnError(f"{job.id} has failed: {job.why}\nSubmit it again: it goes on from its last epoch.")
        )
    if job.state != "succeeded":
        raise typer.Exit(STOPPED if job.state == "stopped" else job.exit_code or RUN_FAILED)


def record_of(address: str) -> str:
    """Address of the record that the cluster's newest job was given. Raises IpcnnError."""
    from ipcnn_ray.on_ray.job_client import Cluster

    record = next((job.record for job in Cluster(address).submissions() if job.record), "")
    if not record:
        raise IpcnnError(f"no job on {address} was given a record\nSet MLFLOW_TRACKING_URI to the cluster's MLflow.")
    return record


def check_shared(paths: Paths, env: Mapping[str, str]) -> None:
    """What the nodes of a cluster must have in common, on the cluster. Raises IpcnnError."""
    missing = []
    if not is_server(paths.tracking_uri):
        missing.append("MLFLOW_TRACKING_URI, the address of an MLflow server")
    if not is_url(paths.storage) and not env.get("IPCNN_STORAGE"):
        missing.append("IPCNN_STORAGE, s3://bucket/prefix or a folder that all nodes share")
    if missing:
        raise IpcnnError(
            f"the nodes of this cluster have no record or no storage in common: {'; '.join(missing)}\n"
            "Set it where you submit, or in the environment of the nodes."
        )
