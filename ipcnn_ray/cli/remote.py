"""`ipcnn submit --address`: the experiment as a job of a cluster, which goes on without the one who submitted it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.dump import resolved_yaml
from ipcnn_ray.spec.expand import experiment_id
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.address import is_server
from ipcnn_ray.tracking.storage import is_url

if TYPE_CHECKING:
    from ipcnn_ray.on_ray.jobs import Submission

RUN_FAILED, STOPPED = 1, 130

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="IPCNN_ADDRESS",
        metavar="URL",
        help="A cluster's dashboard, http://host:8265; without it this machine.",
        show_default=False,
    ),
]


def submit_to(
    address: str, experiment: ExperimentSpec, *, fresh: bool, wait: float, detach: bool, as_json: bool
) -> None:
    """Submit, and follow the job's log until it ends or the reader goes away.

    wait: minutes that the cluster may take to have room for a run.
    """
    from ipcnn_ray.on_ray.jobs import Cluster
    from ipcnn_ray.on_ray.shipping import SPEC, pack

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
    output.note(f"{identity}: {how} (job {job.id})")
    if not detach:
        _follow(cluster.logs(job.id, follow=True), sys.stderr if as_json else sys.stdout, identity, address)
        job = cluster.submission(job.id)
    if as_json:
        output.print_json({**asdict(job), "address": address, "submitted": started})
    if detach and not as_json:
        output.note(f"next:  {_next(identity, address)}")
    if not detach:
        _end(job)


def _next(identity: str, address: str) -> str:
    return "  |  ".join(f"ipcnn {word} {identity} --address {address}" for word in ("logs -f", "status", "stop"))


def _follow(pieces: Iterable[str], stream: object, identity: str, address: str) -> None:
    try:
        for piece in pieces:
            print(piece, end="", flush=True, file=stream)  # type: ignore[call-overload]
    except KeyboardInterrupt:
        output.note(f"\nThe job goes on without you:  {_next(identity, address)}")
        raise typer.Exit(STOPPED) from None


def _end(job: Submission) -> None:
    """End as the job has ended."""
    if job.state == "failed" and job.exit_code is None:
        output.error(IpcnnError(f"{job.id} has failed: {job.why}\nSubmit it again: it goes on from its last epoch."))
    if job.state != "succeeded":
        raise typer.Exit(STOPPED if job.state == "stopped" else job.exit_code or RUN_FAILED)


def record_of(address: str) -> str:
    """Address of the record that the cluster's newest job was given. Raises IpcnnError."""
    from ipcnn_ray.on_ray.jobs import Cluster

    record = next((job.record for job in Cluster(address).submissions() if job.record), "")
    if not record:
        raise IpcnnError(f"no job on {address} was given a record\nSet MLFLOW_TRACKING_URI to the cluster's MLflow.")
    return record


def check_shared(places: Places, env: Mapping[str, str]) -> None:
    """What the nodes of a cluster must have in common, on the cluster. Raises IpcnnError."""
    missing = []
    if not is_server(places.tracking_uri):
        missing.append("MLFLOW_TRACKING_URI, the address of an MLflow server")
    if not is_url(places.storage) and not env.get("IPCNN_STORAGE"):
        missing.append("IPCNN_STORAGE, s3://bucket/prefix or a folder that all nodes share")
    if missing:
        raise IpcnnError(
            f"the nodes of this cluster have no record or no storage in common: {'; '.join(missing)}\n"
            "Set it where you submit, or in the environment of the nodes."
        )
