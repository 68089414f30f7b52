"""An experiment from its first run to its outcome: named runs first, then what the search draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.on_ray import experiment_dir as home
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.outcome import Outcome, RunOutcome
from ipcnn_ray.on_ray.resources import gpus_per_worker, runs_at_once, this_machine
from ipcnn_ray.on_ray.tune_callback import Listener, PhaseStarted, Warned
from ipcnn_ray.on_ray.tuner import Ended, Interrupted, Tuning
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.objectives import COMBINED, Objectives
from ipcnn_ray.spec.runs import Run, experiment_id
from ipcnn_ray.spec.search import Combined, Search, SpaceSearch
from ipcnn_ray.tracking.tracker import RunRecord, Tracker
from ipcnn_ray.train.run_metrics import objective
from ipcnn_ray.train.run_request import ControlReference
from ipcnn_ray.utils.paths import Paths

__all__ = ["Interrupted", "Outcome", "RunOutcome", "run_experiment"]


def run_experiment(
    spec: ExperimentSpec,
    paths: Paths,
    tracker: Tracker,
    *,
    listener: Listener,
    fresh: bool = False,
    tags: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    address: str | None = None,
    wait: float = 0.0,
) -> Outcome:
    """Train all runs of an experiment; those that ended before are not trained again, those that failed are.

    The data must be prepared, and the tracker. fresh: put aside what was trained before. tags: lineage, for the
    record of the experiment and of each run; texts: path -> content, files of the experiment's record. address: the
    cluster's; without one, this machine's own Ray. wait: seconds that a cluster may take to have room for a run.

    Raises ResourceError before anything starts, IpcnnError when the experiment is under way in another process,
    TrainingError when the control of a search fails, Interrupted after Ctrl-C.
    """
    if address is None:
        runs_at_once(spec.compute, gpus_per_worker(spec.compute, this_machine()), this_machine())
    root = home.experiment_folder(spec, paths)
    with home.alone(root, lambda text: listener(Warned(text))):
        tracker.flush()
        if fresh:
            home.archive(root)
        home.clear_stop_request(root)
        parent = tracker.open_parent(spec.name, experiment_id(spec), fresh=fresh)
        parent.set_state("running")
        submissions = {"ipcnn.submissions": str(home.count_submission(root))}
        parent.set_tags({**(tags or {}), **Objectives.of(spec.search).tags(), **submissions})
        for path, content in (texts or {}).items():
            parent.log_text(content, path)
        context = ExperimentContext(spec, paths, tracker, parent.handle, gpus=0.0, tags=tags or {})
        known = home.ended_before(root)
        try:
            with Tuning(listener, address, wait) as tuning:
                runs = _phases(context, tuning, listener, known)
        except (Interrupted, KeyboardInterrupt):
            parent.set_state("stopped", "interrupted; submitted again, it goes on")
            raise Interrupted from None
        except BaseException as error:
            parent.set_state("failed", str(error))
            raise
        outcome = Outcome.of(experiment_id(spec), parent.handle, runs, context.objectives)
        _conclude(outcome, spec, parent, tracker)
        return outcome


def _phases(context: ExperimentContext, tuning: Tuning, listener: Listener, known: set[str]) -> list[RunOutcome]:
    """Train the named runs, then those of the search, measured against the control."""
    search = context.spec.search
    listener(PhaseStarted("named runs" if search else "training", len(context.named)))
    ended = tuning.listed(context, context.named, early_stopping=False)
    named = _outcomes(context, context.named, ended, known, drawn=False)
    if search is None:
        return named
    context = replace(context, references=_references(context, search, ended))
    named = [_with_objective(outcome, context) for outcome in named]
    if isinstance(search, SpaceSearch) and search.algorithm != "random":
        listener(PhaseStarted("search", search.trials))
        runs, ended = tuning.learned(context, search)
    elif runs := context.planned:
        listener(PhaseStarted("search", len(runs)))
        ended = tuning.listed(context, runs, early_stopping=True)
    return named + _outcomes(context, runs, ended, known, drawn=True)


def _references(context: ExperimentContext, search: Search, ended: Ended) -> dict[int, ControlReference]:
    """The control's numbers by seed; none where the objective does not need them. Raises TrainingError."""
    found: dict[int, ControlReference] = {}
    for label, run in context.named.items():
        if run.group != search.objective.control:
            continue
        control = ended[label]
        if control.state != "succeeded":
            raise TrainingError(
                f"the control run {label!r} has {control.state}: {control.why}\n"
                "Every other run is measured against it; mend it and submit again."
            )
        if isinstance(search.objective, Combined):
            if not control.metrics["instability"] > 0:
                raise TrainingError(
                    f"the control run {label!r} has location instability {control.metrics['instability']}: "
                    "nothing can be measured against it\nTrain it longer, or use more objects."
                )
            weight = search.objective.instability_weight
            numbers = control.metrics["instability"], control.metrics["val_error"]
            found[run.spec.seed] = ControlReference(*numbers, weight)
    return found


def _outcomes(
    context: ExperimentContext, runs: Mapping[str, Run], ended: Ended, known: set[str], *, drawn: bool
) -> list[RunOutcome]:
    return [
        RunOutcome(run, context.request(run), end.state, end.why, end.metrics, drawn=drawn, fresh=label not in known)
        for label, run in runs.items()
        if (end := ended.get(label))
    ]


def _with_objective(outcome: RunOutcome, context: ExperimentContext) -> RunOutcome:
    """A named run was trained before the control was known: its objective follows from its last epoch."""
    reference = context.reference(outcome.run)
    if reference is None or "val_error" not in outcome.metrics:
        return outcome
    value = objective(outcome.metrics, reference)
    context.record(outcome.run).log_metrics([{"epoch": outcome.metrics["epoch"], COMBINED: value}])
    return replace(outcome, metrics={**outcome.metrics, COMBINED: value})


def _conclude(outcome: Outcome, spec: ExperimentSpec, parent: RunRecord, tracker: Tracker) -> None:
    """What a person wants to see of the experiment without opening its runs."""
    states = [run.state for run in outcome.runs]
    counts = {f"runs_{state}": float(states.count(state)) for state in ("succeeded", "failed", "stopped")}
    failed = [run.run.label for run in outcome.runs if run.state == "failed"]
    winners = ", ".join(run.run.label for run in outcome.winners)
    if any(run.fresh for run in outcome.runs):
        (recorded, *_) = tracker.find(spec.name, outcome.experiment_id)
        submission = recorded.metrics.get("epoch", 0.0) + 1
        kept = {*outcome.objectives.goals, COMBINED, "instability", "val_error"}
        means = next((group.means for group in outcome.groups if group.wins), {}) if outcome.best else {}
        numbers = {f"best_{key}": value for key, value in means.items() if key in kept}
        parent.log_metrics([{"epoch": submission, **counts, **numbers}])
        several = len(outcome.objectives.goals) > 1
        parent.set_tags({"ipcnn.best": "" if several else winners} | ({"ipcnn.front": winners} if several else {}))
        _mark(outcome, tracker)
    parent.set_state(
        "succeeded" if "succeeded" in states else "failed", f"failed: {', '.join(failed)}" if failed else ""
    )


def _mark(outcome: Outcome, tracker: Tracker) -> None:
    """Where a run alone does not tell: whether it is on the Pareto front, and which bounds it does not keep."""
    for group in outcome.groups:
        tags = {"ipcnn.front": str(group.wins).lower()} if len(outcome.objectives.goals) > 1 else {}
        if outcome.objectives.constraints:
            tags["ipcnn.beyond"] = "; ".join(group.violated)
        if tags:
            for run in (run for run in outcome.runs if run.run.group == group.name):
                tracker.attach(run.request.handle).set_tags(tags)
