"""`ipcnn validate`: is this spec right, and what does it come to?"""

from __future__ import annotations

from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import Problem, SpecError
from ipcnn_ray.spec.dump import resolved_yaml
from ipcnn_ray.spec.expand import experiment_id, grid_runs, named_runs
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.load import Loaded, load
from ipcnn_ray.spec.search import SpaceSearch

Specs = Annotated[list[str], typer.Argument(metavar="SPEC...", help="Specs to check.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Set a field, its value in YAML; may be repeated.", show_default=False),
]
Resolved = Annotated[bool, typer.Option("--resolved", help="Print the spec with every default written out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def validate(specs: Specs, set_: Overrides = None, resolved: Resolved = False, json: Json = False) -> None:
    """Check specs completely; every error of every file is told at once. Starts nothing."""
    sound: list[tuple[str, ExperimentSpec]] = []
    problems: list[Problem] = []
    for path in specs:
        try:
            loaded = load(path, set_ or ())
            check_layers(loaded)
            sound.append((path, loaded.spec))
        except SpecError as error:
            problems += error.problems
    if json:
        told = [{"where": one.where, "what": one.what, "advice": one.advice} for one in problems]
        good = [{"spec": path, "experiment": experiment_id(spec), "runs": _runs(spec)} for path, spec in sound]
        output.print_json({"valid": not problems, "specs": good, "problems": told})
        raise typer.Exit(2 if problems else 0)
    for path, spec in sound:
        if resolved:
            output.text(resolved_yaml(spec))
        else:
            output.say(f"ok     {path}  {experiment_id(spec)}  {_words(spec)}")
    if problems:
        raise SpecError(problems)


def check_layers(loaded: Loaded) -> None:
    """Raises SpecError where an experiment names layers that a torchvision network does not have.

    torch is imported only where there is such a network.
    """
    spec = loaded.spec
    models = [spec.model, *(run.spec.model for run in (*named_runs(spec), *grid_runs(spec)))]
    drawn = isinstance(spec.search, SpaceSearch) and any(path.startswith("model.") for path in spec.search.space)
    if drawn or any(model.backbone for model in models):
        from ipcnn_ray.models.checks import check_backbones

        check_backbones(loaded)


def _runs(spec: ExperimentSpec) -> int:
    drawn = spec.search.trials if isinstance(spec.search, SpaceSearch) else 0
    return len(named_runs(spec)) + len(grid_runs(spec)) + drawn


def _words(spec: ExperimentSpec) -> str:
    runs = _runs(spec)
    return "1 run" if runs == 1 else f"{runs} runs"
