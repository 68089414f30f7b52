"""`ipcnn list`: the submitted experiments, from the record or from a cluster."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.remote import Address
from ipcnn_ray.spec.places import Places
from ipcnn_ray.tracking.address import without_password
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.protocol import State

COLUMNS = ("experiment", "state", "times", "began", "took", "why")
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


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
        took = output.clock((self.ended - self.began) / 1000) if self.ended else "-"
        return [self.experiment, self.state, str(self.submitted), began, took, self.why]


def list_(address: Address = None, json: Json = False) -> None:
    """List the submitted experiments, newest first."""
    places = Places.from_environment()
    found = _on_cluster(address) if address else _recorded(places)
    if json:
        output.print_json([asdict(one) for one in found])
    elif found:
        output.table(COLUMNS, [one.row() for one in found], right=("times", "took"))
    else:
        output.say(f"nothing is submitted yet to {address or without_password(places.tracking_uri)}")


def _recorded(places: Places) -> list[Listed]:
    tracker = MlflowTracker(places.tracking_uri, places.artifacts)
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
    from ipcnn_ray.on_ray.jobs import Cluster

    newest: dict[str, Listed] = {}
    for job in Cluster(address).submissions():
        listed = Listed(job.experiment, job.state, job.attempt, job.began, job.ended, job.why)
        newest.setdefault(job.experiment, listed)
    return list(newest.values())
