"""`ipcnn status`: recorded experiments and their runs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

from ipcnn_ray.cli import output
from ipcnn_ray.cli.jobs import tracking_uri_of
from ipcnn_ray.cli.options import AddressOption, JsonOption, experiment_argument
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.utils.paths import Paths

Experiment = Annotated[str | None, experiment_argument("[EXPERIMENT]", "Name or id of an experiment, or id of a run.")]


def status(experiment: Experiment = None, json: JsonOption = False, address: AddressOption = None) -> None:
    """Show the recorded experiments, or the runs of one. The record is that of MLFLOW_TRACKING_URI; without one, and
    with a cluster's address, that which its newest job was given."""
    from ipcnn_ray.cli.status_table import runs_json, show_experiments, show_runs
    from ipcnn_ray.report.experiment_record import find_runs

    paths = Paths.from_environment()
    uri = tracking_uri_of(address) if address and not os.environ.get("MLFLOW_TRACKING_URI") else paths.tracking_uri
    tracker = open_tracker(replace(paths, tracking_uri=uri))
    if experiment is None:
        show_experiments(tracker, json)
    else:
        chosen = find_runs(tracker, experiment)
        if json:
            output.print_json([run for parent, runs in chosen for run in runs_json(parent, runs)])
        else:
            show_runs(chosen)
