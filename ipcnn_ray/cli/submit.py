"""`ipcnn submit`: train an experiment to its end, on this machine's own Ray or on a cluster."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from ipcnn_ray.cli import output
from ipcnn_ray.cli.jobs import log_file, submit_job
from ipcnn_ray.cli.options import RUN_FAILED, STOPPED, AddressOption, OverridesOption, SpecArgument
from ipcnn_ray.errors import IpcnnError

if TYPE_CHECKING:
    from ipcnn_ray.on_ray.events import Event
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
    from ipcnn_ray.cli.live import Progress
    from ipcnn_ray.on_ray.submission import run_submission
    from ipcnn_ray.on_ray.tuner import Interrupted
    from ipcnn_ray.spec.runs import experiment_id
    from ipcnn_ray.spec.search import Objectives
    from ipcnn_ray.utils.paths import Paths

    paths = Paths.from_environment()
    if on_cluster:
        os.chdir(tempfile.gettempdir())  # Ray may unpack the job's working directory again while its driver runs
    epochs, landmarks = experiment.train.epochs, bool(experiment.data.landmarks)
    goals = Objectives.of(experiment.search, landmarks=landmarks).goals
    try:
        with (
            closing(_LogFile(log_file(experiment_id(experiment), paths))) as log,
            Progress(output.stderr, epochs, goals) as on_screen,
            Progress(Console(file=cast("IO[str]", log), width=200), epochs, goals) as in_log,
        ):

            def report(event: Event) -> None:
                on_screen(event)
                in_log(event)

            outcome = run_submission(
                loaded,
                paths,
                listener=report,
                fresh=fresh,
                address="auto" if on_cluster else None,
                wait=60 * wait,
            )
    except (Interrupted, KeyboardInterrupt):
        again = "Submitted again, it goes on" if on_cluster else "The same command goes on"
        output.print_note(f"Stopped. {again} from the last epoch{'' if on_cluster else f': ipcnn submit {spec}'}")
        raise typer.Exit(STOPPED) from None
    if as_json:
        output.print_json(_as_json(outcome))
    else:
        _print(outcome)
    if not any(run.state == "succeeded" for run in outcome.runs) or any(
        run.state == "failed" and run.origin == "named" for run in outcome.runs
    ):
        raise typer.Exit(RUN_FAILED)
    if not as_json and not on_cluster:
        commands = ["report", *(["pictures"] if landmarks else [])]
        for index, command in enumerate((*(f"{name} {experiment.name}" for name in commands), "ui")):
            output.print_note(f"{'' if index else 'next:':<7}ipcnn {command}")


class _LogFile:
    """The file that `ipcnn logs` shows; created by its first line, so that a refused spec leaves none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def write(self, text: str) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return self._file.write(text)

    def flush(self) -> None:
        """Lines are written as they come."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _as_json(outcome: Outcome) -> dict[str, Any]:
    from ipcnn_ray.report.ranking_table import Ranking, as_json
    from ipcnn_ray.report.verdict import Verdicts

    ranking = Ranking.of(outcome.runs, outcome.objectives)
    return {
        "experiment": outcome.experiment_id,
        "control": outcome.control,
        "best": outcome.best.label if outcome.best else None,
        "runs": [
            {
                "run_id": run.run_id,
                "group": run.group,
                "seed": run.seed,
                "template": run.template,
                "settings": dict(run.settings),
                "origin": run.origin,
                "state": run.state,
                "why": run.cause,
                "metrics": dict(run.metrics),
            }
            for run in outcome.runs
        ],
        **as_json(ranking),
        **Verdicts.of(ranking).as_json(),
    }


def _print(outcome: Outcome) -> None:
    from ipcnn_ray.report.ranking_table import Ranking

    output.print_line()
    output.print_line(f"{outcome.experiment_id}: {len(outcome.runs)} runs", style="bold")
    output.print_ranking(Ranking.of(outcome.runs, outcome.objectives))
