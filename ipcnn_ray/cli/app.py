"""The `ipcnn` command with its subcommands, options and exit codes.

Commands raise IpcnnError for errors that a user can fix, and typer.Exit(RUN_FAILED) after reporting failed runs.
"""

from __future__ import annotations

import resource
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from ipcnn_ray import __version__
from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import RUN_FAILED, STOPPED, WRONG_REQUEST
from ipcnn_ray.errors import IpcnnError, TrainingError
from ipcnn_ray.utils.text import without_passwords

try:
    from ipcnn_ray.cli.cleanup import delete, gc
    from ipcnn_ray.cli.datasets import data
    from ipcnn_ray.cli.doctor import doctor
    from ipcnn_ray.cli.jobs import list_, logs, stop
    from ipcnn_ray.cli.pictures import pictures
    from ipcnn_ray.cli.predict import predict
    from ipcnn_ray.cli.report import compare, report
    from ipcnn_ray.cli.specs import init, plan, schema, validate
    from ipcnn_ray.cli.status import status
    from ipcnn_ray.cli.submit import submit
    from ipcnn_ray.cli.ui import ui
except IpcnnError as error:  # an entry point of another package is wrong
    output.print_error(error)
    sys.exit(WRONG_REQUEST)

app = typer.Typer(name="ipcnn", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (
    *(submit, status, logs, stop, report, compare, pictures, predict, ui),
    *(validate, plan, schema, init, doctor, delete, gc),
):
    app.command()(command)
app.command("list")(list_)
app.add_typer(data)


def _print_version(requested: bool) -> None:
    if requested:
        output.print_line(__version__)
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train interpretable CNNs: describe an experiment in YAML, submit it, get its results and figures."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `ipcnn` script; exits with one of the codes of `cli/options.py`."""
    without_core_dumps()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # --debug belongs to `ipcnn` itself but is accepted anywhere.
    words.sort(key=lambda word: word != "--debug")
    try:
        app(words, prog_name="ipcnn")
    except IpcnnError as error:
        if "--debug" in words:
            sys.stderr.write(without_passwords(traceback.format_exc()))
        output.print_error(error)
        sys.exit(RUN_FAILED if isinstance(error, TrainingError) else WRONG_REQUEST)
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def without_core_dumps() -> None:
    """Keep this process and those that it starts from writing their memory into a file when they crash: it holds tokens
    and keys. `prlimit --core=unlimited --pid PID` allows it again."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    main()
