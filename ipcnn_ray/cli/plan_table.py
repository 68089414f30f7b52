"""What `ipcnn validate` and `ipcnn plan` say of a spec: its runs, their cost, and layers that its network lacks.

It is apart from the commands, so that those that read no spec do not wait for the import of all sections.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ipcnn_ray.cli import output
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import Loaded
from ipcnn_ray.spec.runs import Plan, PlannedRun, Run, grid_runs, named_runs, seeds
from ipcnn_ray.spec.search import Choice, Distribution, LogUniform, SpaceSearch
from ipcnn_ray.utils.text import counted


def check_layers(loaded: Loaded) -> None:
    """Raise SpecError if an experiment names layers or weights that its torchvision network does not have.

    Imports torch only for experiments with such a network.
    """
    spec = loaded.spec
    models = [spec.model, *(run.spec.model for run in _listed_runs(spec))]
    sampled = isinstance(spec.search, SpaceSearch) and any(path.startswith("model.") for path in spec.search.space)
    if sampled or any(model.backbone or (model.weights and model.weights.published) for model in models):
        from ipcnn_ray.models.model_checks import check_backbones

        check_backbones(loaded)


def _listed_runs(spec: ExperimentSpec) -> list[Run]:
    """The runs that are known before the search starts."""
    return [*named_runs(spec), *grid_runs(spec)]


def count_runs(spec: ExperimentSpec) -> int:
    sampled = spec.search.trials if isinstance(spec.search, SpaceSearch) else 0
    return len(_listed_runs(spec)) + sampled


def plan_row(run: PlannedRun) -> list[str]:
    steps = "after preparation" if run.steps is None else output.format_count(run.steps)
    images = "" if run.images is None else output.format_count(run.images)
    return [run.label, run.template, str(run.epochs), str(run.batch_size), steps, images]


def plan_notes(experiment: ExperimentSpec, planned: Plan, data: Path | None = None) -> list[tuple[str, str]]:
    """(heading, text) of the lines below the table. data: the folder IPCNN_DATA."""
    search, notes = experiment.search, []
    if isinstance(search, SpaceSearch):
        for index, (path, distribution) in enumerate(search.space.items()):
            notes.append(("" if index else "drawn from", f"{path}: {_range(distribution)}"))
    if any(run.spec.template.shape == "tailored" for run in _listed_runs(experiment)):
        notes.append(("tailored", "fitted to the training split when a run starts; the record says to what"))
    if any(_augments_behind_frozen_layers(run.spec) for run in _listed_runs(experiment)):
        notes.append(("augmented", "frozen layers run in every epoch: outputs for augmented images are not cached"))
    if search is not None and search.repeats > 1:
        repeated = "every named run" if isinstance(search, SpaceSearch) else "every run"
        notes.append(("seeds", f"{seeds(experiment)[0]} to {seeds(experiment)[-1]}, {repeated} with each of them"))
    total = "steps after preparation (set IPCNN_DATA)"
    if planned.steps is not None and planned.images is not None:
        total = f"{output.format_count(planned.steps)} steps, {output.format_count(planned.images)} images"
    runs, workers = counted(len(planned.runs) + planned.drawn, "run"), counted(planned.workers, "worker")
    notes.append(("in all", f"{runs} of {workers}, {total}"))
    if planned.grace_epochs is not None:
        notes.append(("early stopping", f"may end a run after epoch {planned.grace_epochs}"))
    named = len(named_runs(experiment))
    most = max(named, len(planned.runs) - named, planned.drawn)  # the named runs are trained first
    if sharing := _sharing_of_gpus(experiment, most, data):
        notes.append(("GPUs", sharing))
    return notes


def _sharing_of_gpus(experiment: ExperimentSpec, runs: int, data: Path | None) -> str:
    """How many runs share a GPU of this machine; without one, that runs may. Empty if none shares one by default."""
    compute = experiment.compute
    if compute.workers > 1 or compute.gpus_per_worker is not None or (compute.concurrent_runs or runs) == 1:
        return ""
    from ipcnn_ray.on_ray.gpu_share import SHARING, gpu_share, largest_run, own_gpus

    if shutil.which("nvidia-smi") and (gpus := own_gpus())["GPU"]:  # without the first, torch is not imported
        node = {"CPU": float(os.cpu_count() or 1), **gpus}
        share = gpu_share(compute, [node], runs, lambda: largest_run(experiment, data))
        return share.reason or "one run on each"
    return f"up to {SHARING[0]} runs at a time on each, as cores and memory allow"


def _augments_behind_frozen_layers(run: ExperimentSpec) -> bool:
    augment = run.data.augment
    return augment is not None and augment.active and run.train.freeze_through is not None


def _range(distribution: Distribution) -> str:
    if isinstance(distribution, Choice):
        text = ", ".join(str(value) for value in distribution.choice)
    elif isinstance(distribution, LogUniform):
        text = f"{distribution.log_uniform[0]:g} to {distribution.log_uniform[1]:g}, logarithmic"
    else:
        text = f"{distribution.uniform[0]:g} to {distribution.uniform[1]:g}"
    conditions = " and ".join(f"{path} is {value}" for path, value in (distribution.when or {}).items())
    return f"{text}, when {conditions}" if conditions else text
