"""`ipcnn submit`: train an experiment to its end, on this machine's own Ray or on a cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ipcnn_ray.cli import output
from ipcnn_ray.cli.exit_codes import RUN_FAILED, STOPPED
from ipcnn_ray.cli.jobs import check_shared, log_file, submit_to
from ipcnn_ray.cli.options import AddressOption
from ipcnn_ray.errors import IpcnnError

if TYPE_CHECKING:
    from ipcnn_ray.on_ray.outcome import Outcome, RunOutcome
    from ipcnn_ray.spec.experiment import ExperimentSpec
    from ipcnn_ray.spec.loader import Loaded
    from ipcnn_ray.tracking.tracker import Tracker
    from ipcnn_ray.utils.paths import Paths

EXPERIMENT_DESCRIPTION = (
    "Interpretable CNNs. Each submission is a parent run with one child per trained network; the parent's description "
    "ranks them. `combined` is the objective (1 is the control, lower is better), `instability` the location "
    "instability as a share of the image diagonal, `val_error` the validation error as a share. Tags `code.*` say from "
    "what code, `data.*` and `model.*` from what data and weights, `ipcnn.*` how a run ended."
)
"""Description of every experiment in the record."""


def submit(
    spec: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    set: Annotated[list[str] | None, typer.Option("--set", help="Set a field: a.b=value. May be repeated.")] = None,
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

    loaded = load(spec, set or ())
    experiment = loaded.spec
    if address and not on_cluster:
        submit_to(address, experiment, fresh=fresh, wait=wait, detach=detach, as_json=as_json)
        return
    if detach:
        raise IpcnnError("--detach is for a cluster\nGive its --address, or leave --detach out.")
    from ipcnn_ray.cli.live import Progress
    from ipcnn_ray.data.prepare import prepare
    from ipcnn_ray.on_ray.experiment_dir import experiment_folder
    from ipcnn_ray.on_ray.submission import Interrupted, run_experiment
    from ipcnn_ray.spec.objectives import Objectives
    from ipcnn_ray.spec.runs import experiment_id, resolved_yaml
    from ipcnn_ray.tracking import RETRY_S, open_tracker
    from ipcnn_ray.tracking.lineage import lineage
    from ipcnn_ray.tracking.storage import below, preflight
    from ipcnn_ray.train.data_sync import local_paths
    from ipcnn_ray.utils.paths import Paths

    paths = Paths.from_environment()
    if on_cluster:
        check_shared(paths, os.environ)
        os.chdir(tempfile.gettempdir())  # Ray may unpack the job's folder anew below the feet of its driver
    identity, root = experiment_id(experiment), experiment_folder(experiment, paths)
    output.print_progress(f"{identity}: data")
    paths = local_paths(paths)
    _check_models(loaded, paths)
    preflight(paths.storage)
    store = prepare(
        experiment.data, experiment.model.table.image_size, paths, output.CountedProgress("  data:", "images")
    )
    tracker = open_tracker(paths, buffer=below(root, "spool"))
    tracker.prepare(experiment.name, description=EXPERIMENT_DESCRIPTION)
    try:
        goals = Objectives.of(experiment.search).goals
        with (
            _log(log_file(identity, paths)) as file,
            Progress(output.stderr, experiment.train.epochs, goals) as screen,
            Progress(file, experiment.train.epochs, goals) as log,
        ):
            outcome = run_experiment(
                experiment,
                paths,
                tracker,
                listener=lambda event: (screen(event), log(event))[0],
                fresh=fresh,
                tags={**lineage(), **store.tags, "data.digest": store.digest},
                texts={"spec.yaml": resolved_yaml(experiment)},
                address="auto" if on_cluster else None,
                wait=60 * wait,
            )
    except (Interrupted, KeyboardInterrupt):
        again = "Submitted again, it goes on" if on_cluster else "The same command goes on"
        output.print_note(f"Stopped. {again} from the last epoch{'' if on_cluster else f': ipcnn submit {spec}'}")
        raise typer.Exit(STOPPED) from None
    _keep(experiment, outcome, tracker)
    if left := tracker.flush(RETRY_S):
        output.print_note(f"{left} statements wait in {root}/spool for the record; submitted again, they are recorded")
    if as_json:
        output.print_json(_as_json(outcome))
    else:
        _print(outcome)
    if not any(run.state == "succeeded" for run in outcome.runs) or any(
        run.state == "failed" and not run.drawn for run in outcome.runs
    ):
        raise typer.Exit(RUN_FAILED)
    if not as_json and not on_cluster:
        for index, command in enumerate((f"report {experiment.name}", f"pictures {experiment.name}", "ui")):
            output.print_note(f"{'' if index else 'next:':<7}ipcnn {command}")


@contextmanager
def _log(file: Path) -> Iterator[Console]:
    """What is told goes to a file, too: `ipcnn logs`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", buffering=1) as out:
        yield Console(file=out, width=200, highlight=False, markup=False)


def _check_models(loaded: Loaded, paths: Paths) -> None:
    """Unknown layers of a torchvision network, and a missing or unfit weight file, are told before anything starts."""
    from ipcnn_ray.models.model_checks import check_backbones, check_weights

    check_backbones(loaded)
    for report in check_weights(loaded.spec, paths.weights):
        output.print_progress(report)


def _template(run: RunOutcome) -> str:

    return run.run.spec.template.label()


def _keep(experiment: ExperimentSpec, outcome: Outcome, tracker: Tracker) -> None:
    """What a person looks for in the record beside numbers: pictures of the templates, models, the ranking."""
    from ipcnn_ray.models.build import interpretable_layers, unit_template
    from ipcnn_ray.models.model_card import as_markdown, loading
    from ipcnn_ray.report.ranking import Ranking
    from ipcnn_ray.report.template_figure import save_template_figure
    from ipcnn_ray.train.final_model import final_model
    from ipcnn_ray.train.run_dir import TEMPLATE_FILE, read_file
    from ipcnn_ray.train.run_metadata import run_description
    from ipcnn_ray.train.tailored_template import trained_template

    with tempfile.TemporaryDirectory() as folder:
        for run in outcome.runs:
            model = run.run.spec.model
            layer = run.run.spec.eval.layer or interpretable_layers(model)[-1]
            unfitted = (
                run.run.spec.template.shape == "tailored" and read_file(run.request.folder, TEMPLATE_FILE) is None
            )
            if not run.fresh or unfitted:  # recorded before, or ended before its template was fitted
                continue
            template = trained_template(run.request)
            unit_Pnn = unit_template(model, template, layer)
            if unit_Pnn is not None:
                picture = Path(folder) / "template.png"
                save_template_figure(unit_Pnn.numpy(), template.label(), picture)
                tracker.attach(run.request.handle).log_file(picture, "pictures")
    wanted = {"none": [], "all": [run for run in outcome.runs if run.state == "succeeded"]}.get(
        experiment.compute.models,
        _worth_keeping(outcome),
    )
    for run in wanted:
        output.print_progress(f"{run.run.label}: storing its model")
        module, example = final_model(run.request)
        trained = run.run.spec
        template, categories = trained_template(run.request), trained.data.categories
        readme = as_markdown(trained.model, template, trained.train.freeze_through, len(categories))
        readme = f"{readme}\n{run_description(run.request, run.metrics)}\n{loading(trained.model, categories)}"
        tracker.attach(run.request.handle).log_model(module, example, readme)
    ranking = Ranking.of([run.row for run in outcome.runs], outcome.objectives).markdown()
    parent = tracker.attach(outcome.parent)
    parent.log_text(ranking, "ranking.md")
    parent.set_description(ranking)


def _worth_keeping(outcome: Outcome) -> list[RunOutcome]:
    """The best run, or those on the Pareto front, and the control; of repeats the first."""
    controls = [run for run in outcome.runs if run.run.group == outcome.control and run.state == "succeeded"]
    return [run for run in outcome.runs if run in outcome.winners or run in controls[:1]]


def _as_json(outcome: Outcome) -> dict[str, Any]:
    from ipcnn_ray.report.ranking import Ranking, as_json

    return {
        "experiment": outcome.experiment_id,
        "control": outcome.control,
        "best": outcome.best.run.label if outcome.best else None,
        "runs": [
            {
                "run_id": run.request.run_id,
                "group": run.run.group,
                "seed": run.run.spec.seed,
                "template": _template(run),
                "settings": dict(run.run.settings),
                "state": run.state,
                "why": run.why,
                "metrics": dict(run.metrics),
            }
            for run in outcome.runs
        ],
        **as_json(Ranking.of([run.row for run in outcome.runs], outcome.objectives)),
    }


def _print(outcome: Outcome) -> None:
    from ipcnn_ray.report.ranking import Ranking

    output.print_line()
    output.print_line(f"{outcome.experiment_id}: {len(outcome.runs)} runs", style="bold")
    output.print_ranking(Ranking.of([run.row for run in outcome.runs], outcome.objectives))
