"""Arguments and options that several commands share, how the shell completes them, and the exit codes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ipcnn_ray.utils.paths import Paths

RUN_FAILED = 1
"""A run failed, or `doctor` found something wrong."""
WRONG_REQUEST = 2
"""The request was wrong: a spec, an argument or a setting of the environment."""
STOPPED = 130
"""Stopped by a person; the code that shells give to Ctrl-C."""


def submitted_experiments(paths: Paths) -> list[str]:
    """Ids of the experiments that were submitted on this machine, newest first. Each has a log file."""
    files = (paths.home / "logs").glob("*.log")
    return [file.stem for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)]


def complete_experiment(incomplete: str) -> list[str]:
    """Ids for shell completion. Reads the log folder, not the record: importing MLflow takes seconds."""
    return [name for name in submitted_experiments(Paths.from_environment()) if name.startswith(incomplete)]


def experiment_argument(metavar: str, help: str) -> Any:
    """An argument that the shell completes with experiments."""
    return typer.Argument(metavar=metavar, help=help, show_default=False, autocompletion=complete_experiment)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="The experiment, a YAML file.", show_default=False)]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Set a field, its value in YAML; may be repeated.", show_default=False),
]
ExperimentArgument = Annotated[str, experiment_argument("EXPERIMENT", "Name or id of an experiment.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="IPCNN_ADDRESS",
        metavar="URL",
        help="A cluster's dashboard, http://host:8265; without it this machine.",
        show_default=False,
    ),
]
