"""`ipcnn submit`: train an experiment to its end, on this machine's own Ray or on a cluster."""

from __future__ import annotations

import os
import shlex
import tempfile
from typing import TYPE_CHECKING, Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.cli.jobs import submit_job
from ipcnn_ray.cli.options import RUN_FAILED, STOPPED, AddressOption, OverridesOption, SpecArgument
from ipcnn_ray.errors import IpcnnError

if TYPE_CHECKING:
    from ipcnn_ray.on_ray.submission import Outcome


def submit(
    spec: SpecArgument,
    set_: OverridesOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train everything again, beside what was recorded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The outcome as JSON on stdout.")] = False,
    address: AddressOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="With --address: do not follow the job's log.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Minutes that a cluster may take to have room for a run.")
    ] = 30.0,
    on_cluster: Annotated[bool, typer.Option("--on-cluster", hidden=True)] = False,
) -> None:
    """Train an experiment; submitted again, it goes on where it stopped."""
    from ipcnn_ray.spec.loader import load

    loaded = load(spec, set_ or ())
    experiment = loaded.spec
    if address and not on_cluster:
        submit_job(address, experiment, fresh=fresh, wait=wait, detach=detach, as_json=as_json)
        return
    if detach:
        raise IpcnnError("--detach is for a cluster\nGive its --address, or leave --detach out.")
    from ipcnn_ray.cli.experiments import submit_here
    from ipcnn_ray.on_ray.tuner import Interrupted
    from ipcnn_ray.utils.paths import Paths

    if on_cluster:
        os.chdir(tempfile.gettempdir())  # Ray may unpack the job's working directory again while its driver runs
    ray_address = "auto" if on_cluster else None
    try:
        outcome = submit_here(loaded, Paths.from_environment(), fresh=fresh, wait=wait, ray_address=ray_address)
    except (Interrupted, KeyboardInterrupt):
        again = "Submitted again, it goes on" if on_cluster else "The same command goes on"
        command = "" if on_cluster else f": {shlex.join(['ipcnn', 'submit', str(spec)])}"
        output.print_note(f"Stopped. {again} from the last epoch{command}")
        raise typer.Exit(STOPPED) from None
    if as_json:
        output.print_json(outcome.as_json())
    else:
        _print(outcome)
    if outcome.failed:
        raise typer.Exit(RUN_FAILED)
    if not as_json and not on_cluster:
        for index, command in enumerate((f"report {experiment.name}", f"pictures {experiment.name}", "ui")):
            output.print_note(f"{'' if index else 'next:':<7}ipcnn {command}")


def _print(outcome: Outcome) -> None:
    output.print_line()
    output.print_line(f"{outcome.experiment_id}: {len(outcome.runs)} runs", style="bold")
    output.print_ranking(outcome.ranking)
