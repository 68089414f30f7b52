"""An experiment from its first run to its outcome: named runs first, then what the search draws."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ipcnn_ray.errors import IpcnnError, TrainingError
from ipcnn_ray.on_ray.campaign import Campaign, experiment_folder
from ipcnn_ray.on_ray.progress import METRIC, Listener, PhaseStarted
from ipcnn_ray.on_ray.resources import gpus_per_worker, runs_at_once, this_machine
from ipcnn_ray.on_ray.tuning import Ended, Interrupted, Tuning
from ipcnn_ray.spec.expand import Run, experiment_id
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.places import Places
from ipcnn_ray.spec.search import SpaceSearch
from ipcnn_ray.tracking.protocol import RunRecord, State, Tracker
from ipcnn_ray.train.metrics import objective
from ipcnn_ray.train.request import ControlReference, RunRequest

__all__ = ["Interrupted", "Outcome", "RunOutcome", "run_experiment"]


@dataclass(frozen=True)
class RunOutcome:
    """How one run of an experiment ended."""

    run: Run
    request: RunRequest
    state: State
    why: str
    metrics: Mapping[str, float]
    """Of its last epoch, and of the whole run; none of a run that failed."""
    drawn: bool
    """Drawn by the search, not named in the spec."""
    fresh: bool
    """It was trained, at least in part, by this submission."""


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended."""

    experiment_id: str
    parent: str
    """The tracker's id of the experiment's run."""
    runs: tuple[RunOutcome, ...]
    """Best first: by the combined objective, else by instability; early-stopped ones behind, failed ones last."""
    control: str | None
    """Label of the run that the objective is relative to."""

    @property
    def best(self) -> RunOutcome | None:
        """The best run that was trained to its end."""
        return next((run for run in self.runs if run.state == "succeeded"), None)


def run_experiment(
    spec: ExperimentSpec,
    places: Places,
    tracker: Tracker,
    *,
    listener: Listener,
    fresh: bool = False,
    tags: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    address: str | None = None,
) -> Outcome:
    """Train all runs of an experiment; those that ended before are not trained again, those that failed are.

    The data must be prepared, and the tracker. fresh: put aside what was trained before. tags: lineage, for the
    record of the experiment and of each run; texts: path -> content, files of the experiment's record. address: the
    cluster's; without one, this machine's own Ray.

    Raises ResourceError before anything starts, IpcnnError when the experiment is under way in another process,
    TrainingError when the control of a search fails, Interrupted after Ctrl-C.
    """
    if address is None:
        runs_at_once(spec.compute, gpus_per_worker(spec.compute, this_machine()), this_machine())
    root = experiment_folder(spec, places)
    with _alone(root):
        if fresh and root.exists():
            root.rename(root.with_name(f"{root.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"))
        parent = tracker.open_parent(spec.name, experiment_id(spec), fresh=fresh)
        parent.state("running")
        parent.tags(tags or {})
        for path, content in (texts or {}).items():
            parent.text(content, path)
        campaign = Campaign(spec, places, tracker, parent.handle, gpus=0.0, tags=tags or {})
        known = _ended_before(root)
        try:
            with Tuning(listener, address) as tuning:
                runs, control = _phases(campaign, tuning, listener, known)
        except (Interrupted, KeyboardInterrupt):
            parent.state("stopped", "interrupted; submitted again, it goes on")
            raise Interrupted from None
        except BaseException as error:
            parent.state("failed", str(error))
            raise
        outcome = Outcome(experiment_id(spec), parent.handle, tuple(sorted(runs, key=_rank)), control)
        _conclude(outcome, spec, parent, tracker)
        return outcome


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two processes do not train the same experiment at the same time."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f".{root.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise IpcnnError(
                f"{root.name} is being trained by another process on this storage\n"
                "Wait for it or stop it; or submit under another name."
            ) from error
        yield


def _ended_before(root: Path) -> set[str]:
    """Labels of the runs that have a result."""
    return {path.parent.name for path in root.glob("*/result.json")}


def _phases(
    campaign: Campaign, tuning: Tuning, listener: Listener, known: set[str]
) -> tuple[list[RunOutcome], str | None]:
    """Train the named runs, then those of the search, measured against the control; its label."""
    search = campaign.spec.search
    listener(PhaseStarted("named runs" if search else "training", len(campaign.named)))
    ended = tuning.listed(campaign, campaign.named, early_stopping=False)
    named = _outcomes(campaign, campaign.named, ended, known, drawn=False)
    if search is None:
        return named, None
    control = search.objective.control
    measured = ended[control]
    if measured.state != "succeeded":
        raise TrainingError(
            f"the control run {control!r} has {measured.state}: {measured.why}\n"
            "Every other run is measured against it; mend it and submit again."
        )
    if not measured.metrics["instability"] > 0:
        raise TrainingError(
            f"the control run {control!r} has location instability {measured.metrics['instability']}: "
            "nothing can be measured against it\nTrain it longer, or use more objects."
        )
    references = ControlReference(
        measured.metrics["instability"], measured.metrics["val_error"], search.objective.instability_weight
    )
    campaign = replace(campaign, references=references)
    named = [_with_objective(outcome, campaign) for outcome in named]
    if isinstance(search, SpaceSearch) and search.algorithm == "tpe":
        listener(PhaseStarted("search", search.trials))
        runs, ended = tuning.learned(campaign, search)
    else:
        runs = campaign.planned
        listener(PhaseStarted("search", len(runs)))
        ended = tuning.listed(campaign, runs, early_stopping=True)
    return named + _outcomes(campaign, runs, ended, known, drawn=True), control


def _outcomes(
    campaign: Campaign, runs: Mapping[str, Run], ended: Ended, known: set[str], *, drawn: bool
) -> list[RunOutcome]:
    return [
        RunOutcome(run, campaign.request(run), end.state, end.why, end.metrics, drawn=drawn, fresh=label not in known)
        for label, run in runs.items()
        if (end := ended.get(label))
    ]


def _with_objective(outcome: RunOutcome, campaign: Campaign) -> RunOutcome:
    """A named run was trained before the control was known: its objective follows from its last epoch."""
    if campaign.references is None or "val_error" not in outcome.metrics:
        return outcome
    value = objective(outcome.metrics, campaign.references)
    campaign.record(outcome.run).metrics([{"epoch": outcome.metrics["epoch"], METRIC: value}])
    return replace(outcome, metrics={**outcome.metrics, METRIC: value})


def _rank(outcome: RunOutcome) -> tuple[int, float]:
    order = {"succeeded": 0, "stopped": 1}.get(outcome.state, 2)
    value = outcome.metrics.get(METRIC, outcome.metrics.get("instability", math.inf))
    return order, math.inf if math.isnan(value) else value


def _conclude(outcome: Outcome, spec: ExperimentSpec, parent: RunRecord, tracker: Tracker) -> None:
    """What a person wants to see of the experiment without opening its runs."""
    states = [run.state for run in outcome.runs]
    counts = {f"runs_{state}": float(states.count(state)) for state in ("succeeded", "failed", "stopped")}
    best, failed = outcome.best, [run.run.label for run in outcome.runs if run.state == "failed"]
    if any(run.fresh for run in outcome.runs):
        (recorded, *_) = tracker.find(spec.name, outcome.experiment_id)
        submission = recorded.metrics.get("epoch", 0.0) + 1
        kept = (METRIC, "instability", "val_error")
        numbers = {f"best_{key}": best.metrics[key] for key in kept if key in best.metrics} if best else {}
        parent.metrics([{"epoch": submission, **counts, **numbers}])
        parent.tags({"ipcnn.best": best.run.label if best else ""})
    parent.state("succeeded" if best else "failed", f"failed: {', '.join(failed)}" if failed else "")
