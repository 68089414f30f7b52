"""An experiment from its first run to its outcome: named runs first, then what the search draws."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.on_ray.campaign import LABEL, Campaign
from ipcnn_ray.on_ray.optuna_space import DefineByRun, sampler
from ipcnn_ray.on_ray.progress import Listener, PhaseStarted, RunEnded, TellListener, settle
from ipcnn_ray.on_ray.resources import gpus_per_worker, runs_that_fit
from ipcnn_ray.on_ray.session import embedded_ray
from ipcnn_ray.on_ray.trainables import LOST_WORKERS, resources, trainable
from ipcnn_ray.spec.expand import Run, experiment_id, grid_runs, named_runs
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.places import Places
from ipcnn_ray.spec.search import SpaceSearch
from ipcnn_ray.tracking.protocol import State, Tracker
from ipcnn_ray.train.attempts import Attempts
from ipcnn_ray.train.checkpoint import read_result, write_whole
from ipcnn_ray.train.metrics import objective
from ipcnn_ray.train.request import ControlReference, RunRequest

METRIC = "combined"


class Interrupted(Exception):
    """Somebody stopped the experiment; submitted again, it goes on."""


@dataclass(frozen=True)
class RunOutcome:
    """How one run of an experiment ended."""

    run: Run
    request: RunRequest
    state: State
    why: str
    metrics: Mapping[str, float]
    drawn: bool = False
    """Drawn by the search, not listed in the spec."""
    fresh: bool = True
    """It was trained, at least in part, by this submission."""


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended."""

    experiment_id: str
    parent: str
    """The tracker's id of the experiment's run."""
    runs: tuple[RunOutcome, ...]
    """Best first: by the combined objective, else by instability; failed ones last."""
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
) -> Outcome:
    """Train all runs of an experiment; those that ended before are not trained again.

    The data must be prepared. `tags` (lineage) and `texts` (path -> content) go to the experiment's own record. Raises ResourceError before anything starts, TrainingError when the control of a
    search fails, Interrupted after Ctrl-C.
    """
    identity = experiment_id(spec)
    root = Path(places.storage) / identity
    if fresh and root.exists():
        root.rename(root.with_name(f"{root.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"))
    tracker.prepare(spec.name)
    parent = tracker.open_parent(spec.name, identity, fresh=fresh)
    parent.state("running")
    parent.tags(tags or {})
    for path, content in (texts or {}).items():
        parent.text(content, path)
    campaign = Campaign(spec, places, tracker, parent.handle, gpus=0.0)
    engine = _Engine(listener)
    try:
        runs = engine.listed(campaign, named_runs(spec), "named runs" if spec.search else "training", None)
        control = None
        if spec.search:
            control = spec.search.objective.control
            found = next(run for run in runs if run.run.label == control)
            if found.state != "succeeded":
                raise TrainingError(
                    f"the control run {control!r} has {found.state}: {found.why}\n"
                    "Every other run is measured against it; mend it and submit again."
                )
            reference = ControlReference(
                found.metrics["instability"], found.metrics["val_error"], spec.search.objective.instability_weight
            )
            campaign = replace(campaign, reference=reference)
            runs = [_with_combined(run, reference) for run in runs]
            if isinstance(spec.search, SpaceSearch):
                runs += engine.drawn(campaign, spec.search)
            else:
                runs += engine.listed(campaign, grid_runs(spec), "grid", _stopping(spec))
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        parent.state("stopped" if stopped else "failed", "Ctrl-C" if stopped else str(error))
        raise
    finally:
        engine.close()
    outcome = Outcome(identity, parent.handle, tuple(sorted(runs, key=_rank)), control)
    states = [run.state for run in outcome.runs]
    parent.tags({f"ipcnn.runs_{state}": str(states.count(state)) for state in ("succeeded", "failed", "stopped")})
    if outcome.best:
        parent.tags({"ipcnn.best": outcome.best.run.label})
        kept = ("combined", "instability", "val_error")
        parent.metrics([{"epoch": 1.0, **{f"best_{k}": v for k, v in outcome.best.metrics.items() if k in kept}}])
    parent.state("succeeded" if outcome.best else "failed", "" if outcome.best else "no run was trained to its end")
    return outcome


def _rank(outcome: RunOutcome) -> tuple[int, float]:
    order = {"succeeded": 0, "stopped": 1}.get(outcome.state, 2)
    value = outcome.metrics.get(METRIC, outcome.metrics.get("instability", math.inf))
    return order, math.inf if math.isnan(value) else value


def _with_combined(outcome: RunOutcome, reference: ControlReference) -> RunOutcome:
    """A named run was trained before the control was known: its objective follows from its metrics."""
    if "val_error" not in outcome.metrics:
        return outcome
    return replace(outcome, metrics={**outcome.metrics, METRIC: objective(outcome.metrics, reference)})


def _stopping(spec: ExperimentSpec) -> ASHAScheduler | None:
    stopping = spec.search.early_stopping if spec.search else None
    if stopping is None:
        return None
    return ASHAScheduler(
        metric=METRIC,
        mode="min",
        time_attr="epoch",
        max_t=spec.train.epochs,
        grace_period=stopping.grace_epochs,
        reduction_factor=stopping.reduction_factor,
    )


class _Engine:
    """Starts Ray when the first run needs it."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.session: Any = None
        self.nodes: Sequence[Mapping[str, float]] = ()

    def close(self) -> None:
        if self.session:
            self.session.__exit__(None, None, None)

    def _ready(self, campaign: Campaign) -> tuple[Campaign, int]:
        """The campaign with its GPUs, and how many of its runs may go on at the same time."""
        if self.session is None:
            self.session = embedded_ray()
            self.nodes = self.session.__enter__()
        compute = campaign.spec.compute
        gpus = gpus_per_worker(compute, self.nodes)
        fit = runs_that_fit(compute, gpus, self.nodes)
        return replace(campaign, gpus=gpus), min(fit, compute.concurrent_runs or fit)

    def _tuner(
        self, campaign: Campaign, concurrent: int, name: str, space: dict[str, Any], **tuning: Any
    ) -> tune.Tuner:
        return tune.Tuner(
            tune.with_resources(trainable(campaign), resources(campaign)),
            param_space=space,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent, reuse_actors=campaign.spec.compute.workers == 1, **tuning
            ),
            run_config=self._run_config(campaign, name),
        )

    def _run_config(self, campaign: Campaign, name: str) -> tune.RunConfig:
        return tune.RunConfig(
            name=name,
            storage_path=f"{campaign.root}/ray",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=LOST_WORKERS),
            callbacks=[TellListener(campaign, self.listener)],
        )

    def listed(
        self, campaign: Campaign, runs: Sequence[Run], name: str, scheduler: ASHAScheduler | None
    ) -> list[RunOutcome]:
        """Train runs that are known beforehand."""
        self.listener(PhaseStarted(name, len(runs)))
        todo = []
        for run in runs:
            if (known := read_result(Path(campaign.folder(run)))) is None:
                todo.append(run)
            else:
                self.listener(RunEnded(run.label, known.state, known.why or "ended before", known.metrics))
        if todo:
            ready, concurrent = self._ready(campaign)
            space = {LABEL: tune.grid_search([run.label for run in todo])}
            tune_name = f"{name.replace(' ', '_')}-{time.time_ns()}"
            self._tuner(ready, concurrent, tune_name, space, scheduler=scheduler).fit()
        return [replace(_outcome(campaign, run), fresh=run in todo) for run in runs]

    def drawn(self, campaign: Campaign, search: SpaceSearch) -> list[RunOutcome]:
        """Train runs that the search draws from its space."""
        self.listener(PhaseStarted("search", search.trials))
        ended = Path(campaign.root) / "drawn.json"
        known = ended.is_file()
        if known:
            configs = json.loads(ended.read_text())
            for config in configs:
                self.listener(settle(campaign, config, {}))
        else:
            configs = self._search(campaign, search)
            write_whole(ended, json.dumps(configs).encode())
        runs = {run.label: run for run in map(campaign.run, configs)}
        return [replace(_outcome(campaign, run), drawn=True, fresh=not known) for run in runs.values()]

    def _search(self, campaign: Campaign, search: SpaceSearch) -> list[dict[str, Any]]:
        campaign, concurrent = self._ready(campaign)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path = f"{campaign.root}/ray/search"
        if tune.Tuner.can_restore(path):
            tuner = tune.Tuner.restore(
                path,
                trainable=tune.with_resources(trainable(campaign), resources(campaign)),
                resume_unfinished=True,
                resume_errored=True,
            )
        else:
            searcher = OptunaSearch(
                space=DefineByRun(dict(search.space)),
                metric=METRIC,
                mode="min",
                sampler=sampler(search, campaign.spec.seed),
            )
            tuner = self._tuner(
                campaign,
                concurrent,
                "search",
                {},
                num_samples=search.trials,
                search_alg=searcher,
                scheduler=_stopping(campaign.spec),
            )
        results = tuner.fit()
        configs = [dict(result.config or {}) for result in results]
        if len(configs) < search.trials:
            raise Interrupted
        return configs


def _outcome(campaign: Campaign, run: Run) -> RunOutcome:
    folder = Path(campaign.folder(run))
    request = campaign.request(run)
    if (result := read_result(folder)) is not None:
        return RunOutcome(run, request, result.state, result.why, result.metrics)
    attempts = Attempts.read(folder)
    if attempts.why:
        return RunOutcome(run, request, "failed", attempts.why, {})
    if attempts.lost > LOST_WORKERS:
        return RunOutcome(run, request, "failed", "its worker was lost too often", {})
    campaign.record(run).state("stopped", "Ctrl-C")
    raise Interrupted
