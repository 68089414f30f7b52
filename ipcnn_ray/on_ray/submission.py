"""What a submission does: checks, data, runs (the named ones, then the search), stored models and the ranking."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path

from ipcnn_ray.core.multi_objective import comparable
from ipcnn_ray.data.fetch import progress_lines
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import IpcnnError, TrainingError, UnreachableError
from ipcnn_ray.models.build import interpretable_layers, unit_template
from ipcnn_ray.models.model_card import model_card_markdown, usage_markdown
from ipcnn_ray.models.model_checks import check_backbones, check_weights, models_of
from ipcnn_ray.on_ray import experiment_dir
from ipcnn_ray.on_ray.events import DataProgress, Listener, Logged, PhaseStarted, Warned
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.gpu_share import gpu_share, largest_run
from ipcnn_ray.on_ray.ray_session import max_concurrent_runs, this_machine
from ipcnn_ray.on_ray.tuner import Ended, ExperimentTuner, Interrupted
from ipcnn_ray.report.experiment_result import ExperimentResult
from ipcnn_ray.report.filter_figures import save_template_figure
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import Loaded, Source
from ipcnn_ray.spec.runs import Run, experiment_id, named_runs, resolved_yaml
from ipcnn_ray.spec.search import COMBINED, Combined, Search, SpaceSearch, metric_info
from ipcnn_ray.tracking import RETRY_S, open_tracker
from ipcnn_ray.tracking.buffered_tracker import retry
from ipcnn_ray.tracking.lineage import lineage
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.storage import is_url, join_path, preflight
from ipcnn_ray.tracking.tracker import SPEC_ARTIFACT, Tracker
from ipcnn_ray.tracking.tracking_uri import is_server
from ipcnn_ray.train.checkpoint import drop_training_states
from ipcnn_ray.train.data_sync import fetch_weights, local_paths
from ipcnn_ray.train.evaluate import check_metrics
from ipcnn_ray.train.final_model import final_model, trained_template
from ipcnn_ray.train.run_dir import TEMPLATE_FILE, read_file
from ipcnn_ray.train.run_metadata import ControlReference, RunRequest, run_description
from ipcnn_ray.utils.paths import Paths

EXPERIMENT_DESCRIPTION = (
    "Interpretable CNNs. Each submission is a parent run with one child per trained network; the parent's description "
    "ranks them. `combined` is the objective (1 is the control, lower is better), `instability` the location "
    "instability as a share of the image diagonal, `val_error` the validation error as a share. Tags `code.*` say from "
    "what code, `data.*` and `model.*` from what data and weights, `ipcnn.*` how a run ended."
)
"""Description of every MLflow experiment."""
VERDICT_ARTIFACT = "verdict.md"
"""Artifact of an experiment's parent run: the verdict on each setting."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome(RunSummary):
    """A run at the end of an experiment, with what is needed to load its model."""

    request: RunRequest
    fresh: bool
    """Whether this submission trained it, at least in part."""


@dataclass(frozen=True, kw_only=True)
class Outcome(ExperimentResult):
    """The ranked runs of an experiment that has ended, as the process that submitted it has them."""

    runs: tuple[RunOutcome, ...]
    """As of `ExperimentResult`, each with what is needed to load its model."""
    parent: str
    """Tracker handle of the experiment's run."""


def run_submission(
    experiment: Loaded | ExperimentSpec,
    paths: Paths | None = None,
    *,
    listener: Listener = lambda event: None,
    fresh: bool = False,
    address: str | None = None,
    wait: float = 0.0,
) -> Outcome:
    """Check, prepare and train an experiment; store its models, template pictures and ranking in the tracker.

    An experiment that was submitted before resumes: finished runs are kept, all others continue from their last epoch.

    Args:
        experiment: A spec, or a loaded one, whose error messages then name file and line.
        paths: Storage, data and tracker; by default those of the environment.
        listener: Called with one event at a time, in the thread of the caller; during the only run of an experiment, if
            that has several workers, in another one.
        fresh: Archive what an earlier submission trained, and train everything again.
        address: Address of a Ray cluster (``auto``: the one of this machine). By default an embedded Ray is started.
        wait: Seconds that a cluster may take to provide the resources of one run.

    Returns:
        The ranked runs, those that failed included.

    Raises:
        SpecError: A layer of a torchvision network, or the name of its weights, is unknown.
        DataError: The data or a weight file is unusable or cannot be downloaded, or the data lack what a metric needs.
        TrackingError: The storage or the tracker is unusable.
        ResourceError: The machine or the cluster cannot run the experiment.
        TrainingError: The control of the search failed.
        IpcnnError: Another process trains this experiment, or the nodes of the cluster share no storage.
        Interrupted: Somebody stopped the experiment.
    """
    loaded = experiment if isinstance(experiment, Loaded) else Loaded(experiment, Source(experiment.name))
    spec, paths = loaded.spec, paths or Paths.from_environment()
    if address is not None:
        check_shared(paths, os.environ)
    if paths.data_url or paths.weights_url:
        listener(Logged("copying data and weights to this machine"))
    paths = local_paths(paths)
    check_backbones(loaded)
    downloading = progress_lines(lambda line: listener(Logged(f"downloading {line}")))
    fetch_weights(models_of(spec), paths, shared=address is not None, progress=downloading)
    weight_reports = check_weights(spec, paths)
    preflight(paths.storage)
    for report in weight_reports:
        listener(Logged(report))
    listener(Logged(f"{experiment_id(spec)}: data"))
    image_size = spec.model.table.image_size
    crops = prepare(spec.data, image_size, paths, lambda done, total: listener(DataProgress(done, total)))
    for reason, count in crops.left_out.items():
        listener(Logged(f"left out {count}: {reason}"))
    check_metrics(spec, crops)
    root = experiment_dir.experiment_folder(spec, paths)
    spool = join_path(root, "spool")
    tracker = open_tracker(paths, buffer=spool)
    with ExperimentTuner(listener, address, wait) as tuner:
        if address is None and _trains_named_runs(spec, root, fresh):
            _check_fits_here(spec, paths)
            tuner.start_ray(spec)
        prepare_record(tracker, spec.name, listener, timeout=0.0 if address is None else RETRY_S)
        tags = {**lineage(), **crops.tags, "data.digest": crops.digest}
        outcome = run_experiment(spec, paths, tracker, listener=listener, fresh=fresh, tags=tags, tuner=tuner)
    _store_template_pictures(outcome, tracker)
    _store_models(outcome, spec.compute.models, tracker, listener)
    parent, ranking = tracker.attach(outcome.parent), outcome.ranking.markdown()
    parent.log_text(ranking, "ranking.md")
    parent.set_description("\n".join(filter(None, (outcome.verdicts.markdown(), ranking))))
    if left := tracker.flush(RETRY_S):
        listener(Warned(f"{left} records are buffered in {spool}; the next submission sends them to the tracker"))
    return outcome


def _check_fits_here(spec: ExperimentSpec, paths: Paths) -> None:
    """Raises ResourceError if a run of the experiment does not fit on this machine."""
    nodes = this_machine()
    share = gpu_share(spec.compute, nodes, runs=1, memory=lambda: largest_run(spec, paths.data))
    max_concurrent_runs(spec.compute, share.gpus, nodes)


def _trains_named_runs(spec: ExperimentSpec, root: str, fresh: bool) -> bool:
    """Whether this submission trains runs that are known before the search."""
    if experiment_dir.is_running(root):
        return False  # another process trains it: `run_experiment` raises
    return fresh or not {run.label for run in named_runs(spec)} <= experiment_dir.finished_runs(root)


def prepare_record(tracker: Tracker, experiment: str, listener: Listener, timeout: float) -> None:
    """Prepare the record of an experiment. If the tracking server does not respond, as one that restarts, try again for
    `timeout` seconds. Raises UnreachableError."""

    def prepare() -> None:
        tracker.prepare(experiment, description=EXPERIMENT_DESCRIPTION)

    try:
        return prepare()
    except UnreachableError as error:
        if not timeout:
            raise
        fact = str(error).partition("\n")[0]
        listener(Warned(f"{fact}; tried again for {timeout / 60:.0f} min"))
    retry(prepare, timeout)


def check_shared(paths: Paths, env: Mapping[str, str]) -> None:
    """Check that the nodes of a cluster share a tracker and a storage. Raises IpcnnError."""
    missing = []
    if not is_server(paths.tracking_uri):
        missing.append("MLFLOW_TRACKING_URI, the address of an MLflow server")
    if not is_url(paths.storage) and not env.get("IPCNN_STORAGE"):
        missing.append("IPCNN_STORAGE, s3://bucket/prefix or a folder that all nodes share")
    if missing:
        raise IpcnnError(
            f"the nodes of this cluster have no record or no storage in common: {'; '.join(missing)}\n"
            "Set it in the environment of the nodes; a URL can be set where you submit instead."
        )


def run_experiment(
    spec: ExperimentSpec,
    paths: Paths,
    tracker: Tracker,
    *,
    listener: Listener,
    fresh: bool = False,
    tags: Mapping[str, str] | None = None,
    address: str | None = None,
    wait: float = 0.0,
    tuner: ExperimentTuner | None = None,
) -> Outcome:
    """Train the runs of an experiment whose data and tracker are prepared. Finished runs are not trained again.

    The other arguments, and the errors of the cluster and of training, are those of `run_submission`.

    Args:
        paths: Storage, data and weights; none of them a URL but the storage.
        tracker: Prepared for the experiment.
        tags: Lineage tags of the experiment and of each run.
        tuner: Closed when the runs have ended. By default one for `listener`, `address` and `wait`.
    """
    tuner = tuner or ExperimentTuner(listener, address, wait)
    if tuner.address is None:
        _check_fits_here(spec, paths)
    root = experiment_dir.experiment_folder(spec, paths)
    with experiment_dir.exclusive(root, lambda text: listener(Warned(text))):
        tracker.flush()
        if fresh:
            experiment_dir.archive(root)
        experiment_dir.clear_stop_request(root)
        parent = tracker.open_parent(spec.name, experiment_id(spec), fresh=fresh)
        parent.set_state("running")
        submissions = {"ipcnn.submissions": str(experiment_dir.count_submission(root, tracker.uri))}
        context = ExperimentContext(spec, paths, tracker, parent.handle, gpus=0.0, tags=tags or {})
        parent.set_tags({**(tags or {}), **context.objectives.tags(), **submissions})
        parent.log_text(resolved_yaml(spec), SPEC_ARTIFACT)
        known = experiment_dir.finished_runs(root)
        drop_training_states(root, known)  # of runs whose process was killed first, or of an earlier version
        try:
            with tuner:
                runs = _train_runs(context, tuner, listener, known)
        except (Interrupted, KeyboardInterrupt):
            parent.set_state("stopped", "interrupted; submitted again, it goes on")
            raise Interrupted from None
        except BaseException as error:
            parent.set_state("failed", str(error))
            raise
        outcome = Outcome.of(experiment_id(spec), runs, context.objectives, parent=parent.handle)
        _record_outcome(outcome, context)
        return outcome


def _train_runs(
    context: ExperimentContext, tuner: ExperimentTuner, listener: Listener, known: set[str]
) -> list[RunOutcome]:
    """Train the named runs, then those of the search, whose objective is relative to the control."""
    search = context.spec.search
    listener(PhaseStarted("named runs" if search else "training", len(context.named)))
    ended = tuner.run_fixed(context, context.named, early_stopping=False)
    named = _outcomes(context, context.named, ended, known)
    if search is None:
        return named
    context = replace(context, references=_control_references(context, search, ended))
    named = [_with_objective(outcome, context) for outcome in named]
    if isinstance(search, SpaceSearch) and search.algorithm != "random":
        listener(PhaseStarted("search", search.trials))
        runs, ended = tuner.run_search(context, search)
    elif runs := context.planned:
        listener(PhaseStarted("search", len(runs)))
        ended = tuner.run_fixed(context, runs, early_stopping=True)
    return named + _outcomes(context, runs, ended, known)


def _control_references(context: ExperimentContext, search: Search, ended: Ended) -> dict[int, ControlReference]:
    """Return the control's metrics by seed; none if the objective does not need them. Raises TrainingError."""
    references: dict[int, ControlReference] = {}
    for label, run in context.named.items():
        if run.group != search.objective.control:
            continue
        control = ended[label]
        if control.state != "succeeded":
            raise TrainingError(
                f"the control run {label!r} has {control.state}: {control.cause}\n"
                "Every other run is measured against it; mend it and submit again."
            )
        if isinstance(search.objective, Combined):
            name, weight = search.objective.interpretability, search.objective.instability_weight
            info, value = metric_info(name), control.metrics.get(name, nan)
            if not comparable(value, info.best):
                raise TrainingError(
                    f"the control run {label!r} has {name} {value}: nothing can be measured against it\n"
                    "Train it longer, use more objects, or take another search.objective.interpretability."
                )
            error = control.metrics["val_error"]
            references[run.spec.seed] = ControlReference(value, error, weight, name, info.better, info.best)
    return references


def _outcomes(context: ExperimentContext, runs: Mapping[str, Run], ended: Ended, known: set[str]) -> list[RunOutcome]:
    return [
        RunOutcome(**vars(ended[label]), request=context.request(run), fresh=label not in known)
        for label, run in runs.items()
        if label in ended
    ]


def _with_objective(outcome: RunOutcome, context: ExperimentContext) -> RunOutcome:
    """Compute the objective of a named run, which was trained before or beside the control, from its last epoch."""
    run = context.named[outcome.label]
    reference = context.reference(run)
    if reference is None or "val_error" not in outcome.metrics:
        return outcome
    value = reference.objective(outcome.metrics)
    context.record(run).log_metrics([{"epoch": outcome.metrics["epoch"], COMBINED: value}])
    return replace(outcome, metrics={**outcome.metrics, COMBINED: value})


def _record_outcome(outcome: Outcome, context: ExperimentContext) -> None:
    """Record the state, the best runs, their metrics and the verdict with the experiment.

    Each run is tagged with the outcome of its setting, with whether it is on the Pareto front, and with the constraints
    that it violates.
    """
    tracker, parent = context.tracker, context.tracker.attach(outcome.parent)
    states = [run.state for run in outcome.runs]
    counts = {f"runs_{state}": float(states.count(state)) for state in ("succeeded", "failed", "pruned", "stopped")}
    counts["runs_stopped"] += counts["runs_pruned"]  # as counted before there was a state `pruned`
    failed = [run.label for run in outcome.runs if run.state == "failed"]
    winners = ", ".join(run.label for run in outcome.winners)
    several = len(outcome.objectives.goals) > 1
    if any(run.fresh for run in outcome.runs):
        (recorded, *_) = tracker.find(context.spec.name, outcome.experiment_id)
        submission = recorded.metrics.get("epoch", 0.0) + 1
        kept = {*outcome.objectives.goals, COMBINED, "instability", "val_error"}
        means = next((group.means for group in outcome.groups if group.wins), {}) if outcome.best else {}
        numbers = {f"best_{key}": value for key, value in means.items() if key in kept}
        parent.log_metrics([{"epoch": submission, **counts, **numbers}])
        parent.set_tags({"ipcnn.best": "", "ipcnn.front": winners} if several else {"ipcnn.best": winners})
        verdicts = outcome.verdicts
        if verdicts.lines:
            parent.log_text(verdicts.markdown(), VERDICT_ARTIFACT)
            parent.set_tags({"ipcnn.verdict": " ".join(verdicts.lines)})
        for group in outcome.groups:
            tags = {"ipcnn.front": str(group.wins).lower()} if several else {}
            if group.name in verdicts.outcomes:
                tags["ipcnn.verdict"] = verdicts.outcomes[group.name]
            if outcome.objectives.constraints:
                tags["ipcnn.beyond"] = "; ".join(group.violated)
            for run in outcome.runs:
                if tags and run.group == group.name:
                    tracker.attach(run.request.handle).set_tags(tags)
    cause = f"failed: {', '.join(failed)}" if failed else ""
    parent.set_state("succeeded" if "succeeded" in states else "failed", cause)


def _store_template_pictures(outcome: Outcome, tracker: Tracker) -> None:
    """Store a picture of the part templates with each run that this submission trained."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "template.png"
        for run in outcome.runs:
            spec = run.request.spec
            unfitted = spec.template.shape == "tailored" and read_file(run.request.folder, TEMPLATE_FILE) is None
            if not run.fresh or unfitted:
                continue
            template = trained_template(run.request)
            layer = spec.eval.layer or interpretable_layers(spec.model)[-1]
            unit_Pnn = unit_template(spec.model, template, layer)
            if unit_Pnn is not None:
                save_template_figure(unit_Pnn.numpy(), template.label(), picture)
                tracker.attach(run.request.handle).log_file(picture, "pictures")


def _store_models(outcome: Outcome, models: str, tracker: Tracker, listener: Listener) -> None:
    """Store the networks that `compute.models` asks for: of all runs, of none, or of the best runs and the control."""
    succeeded = [run for run in outcome.runs if run.state == "succeeded"]
    controls = [run for run in succeeded if run.group == outcome.control]
    best_and_control = [run for run in outcome.runs if run in (*outcome.winners, *controls[:1])]
    selected = {"all": succeeded, "none": []}.get(models, best_and_control)
    for run in selected:
        listener(Logged(f"{run.label}: storing its model"))
        module, example = final_model(run.request)
        spec, categories = run.request.spec, run.request.spec.data.categories
        template = trained_template(run.request)
        card = model_card_markdown(spec.model, template, spec.train.freeze_through, len(categories))
        readme = f"{card}\n{run_description(run.request, run.metrics)}\n{usage_markdown(spec.model, categories)}"
        tracker.attach(run.request.handle).log_model(module, example, readme)
