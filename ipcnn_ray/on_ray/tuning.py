"""The runs of an experiment as trials of Ray Tune."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler

from ipcnn_ray.on_ray import home
from ipcnn_ray.on_ray.campaign import LABEL, Campaign
from ipcnn_ray.on_ray.learner import Learner, directions, modes, sampler
from ipcnn_ray.on_ray.optuna_space import Bounds, Memory, Settings, quiet
from ipcnn_ray.on_ray.progress import LOST_WORKERS, EndWhenAsked, Listener, RunEnded, Warned, Watcher
from ipcnn_ray.on_ray.resources import Nodes, gpus_per_worker, runs_at_once
from ipcnn_ray.on_ray.session import room_for, session
from ipcnn_ray.on_ray.trainables import resources, trainable
from ipcnn_ray.on_ray.turns import Turns
from ipcnn_ray.spec.expand import Run
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.goals import Aims
from ipcnn_ray.spec.search import SpaceSearch, stopping
from ipcnn_ray.tracking.storage import below
from ipcnn_ray.train.attempts import Attempts
from ipcnn_ray.train.checkpoint import read_result

Ended = dict[str, RunEnded]
"""How runs ended, by label."""


class Interrupted(Exception):
    """Somebody stopped the experiment; submitted again, it goes on."""


class Tuning:
    """Trains runs on a Ray that is started when the first run needs it, and stopped at the end of the block."""

    def __init__(self, listener: Listener, address: str | None = None, wait: float = 0.0) -> None:
        """address: of a cluster; wait: seconds that it may take to have room for a run."""
        self.listener = listener
        self.address = address
        self.wait = wait
        self._stack = ExitStack()
        self._nodes: Nodes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def listed(self, campaign: Campaign, runs: Mapping[str, Run], *, early_stopping: bool) -> Ended:
        """Train runs that are known beforehand; those that ended before are told at once."""
        ended = self._before(campaign, list(runs.values()))
        todo = [label for label in runs if label not in ended]
        for label in todo:
            campaign.record(runs[label])
        if todo:
            scheduler = _asha(campaign.spec) if early_stopping else None
            ended |= self._fit(campaign, {LABEL: tune.grid_search(todo)}, scheduler=scheduler)
        return ended

    def learned(self, campaign: Campaign, search: SpaceSearch) -> tuple[dict[str, Run], Ended]:
        """Train runs that are drawn one by one, each from what was learned so far. Settings drawn twice are one run."""
        quiet()
        memory = Memory(below(campaign.root, "search"), directions(campaign.aims))
        bounds, drawn = Bounds(search.constraints), memory.drawn()
        draws = sampler(search, campaign.spec.seed + len(drawn), bounds)
        memory.settle(_ending(campaign, bounds), draws)
        runs = {run.label: run for run in map(campaign.run, drawn)}
        ended = self._before(campaign, list(runs.values()))
        if (left := search.trials - memory.ended()) > 0:
            first = [one for one in drawn if campaign.run(one).label not in ended]
            learner = Learner(search, memory, draws, bounds, first)
            ended |= self._fit(campaign, {}, num_samples=left, search_alg=learner, scheduler=_asha(campaign.spec))
            runs = {run.label: run for run in map(campaign.run, memory.drawn())}
        return runs, ended

    def _before(self, campaign: Campaign, runs: Sequence[Run]) -> Ended:
        """The runs that ended in an earlier submission."""
        ended: Ended = {}
        for run in runs:
            if run.label not in ended and (result := read_result(campaign.folder(run))) is not None:
                ended[run.label] = RunEnded(run.label, result.state, result.why, result.metrics)
                self.listener(ended[run.label])
        return ended

    def _waits(self, campaign: Campaign, why: str) -> None:
        """Nothing can be trained yet, and why; or, with an empty reason, it can."""
        record = campaign.tracker.attach(campaign.parent)
        if why:
            self.listener(Warned(f"waiting for nodes: {why}"))
            record.state("queued", f"waiting for nodes: {why}")
        else:
            record.state("running")

    def _fit(self, campaign: Campaign, space: dict[str, Any], **tuning: Any) -> Ended:
        compute = campaign.spec.compute
        notes = home.notes(campaign.root, campaign.places)
        if self._nodes is None:
            self._nodes = self._stack.enter_context(session(self.address))
        if self.address is not None:
            self._nodes = room_for(compute, self.wait, lambda why: self._waits(campaign, why))
        shutil.rmtree(notes, ignore_errors=True)  # Tune's own; all that is needed again lies with the runs
        campaign = replace(campaign, gpus=gpus_per_worker(compute, self._nodes))
        keep_credentials_at_home()
        turns = Turns(campaign.root)
        watcher = Watcher(campaign, turns, self.listener)
        tuner = tune.Tuner(
            tune.with_resources(trainable(campaign, turns), resources(campaign)),
            param_space=space,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=runs_at_once(compute, campaign.gpus, self._nodes),
                reuse_actors=compute.workers == 1,
                **tuning,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(notes),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=LOST_WORKERS),
                callbacks=[watcher],
                stop=EndWhenAsked(watcher),
            ),
        )
        try:
            with _interruptible():
                tuner.fit()
            if watcher.stopping:
                raise Interrupted
        except (Interrupted, KeyboardInterrupt):
            for run in watcher.runs.values():
                if run.label not in watcher.ended:
                    _close(campaign, run)
                    campaign.record(run).state("stopped", "interrupted; submitted again, it goes on")
            raise Interrupted from None
        return watcher.ended


def keep_credentials_at_home() -> None:
    """Tune writes the storage's keys into the environment that it asks for its actors: into the titles of their
    processes and the logs of their nodes. Workers of an embedded Ray inherit them; nodes of a cluster have them."""
    for name in [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]:
        class_cache.ENV_VARS_TO_PROPAGATE.discard(name)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise Interrupted when Tune ended its trials on Ctrl-C; a second Ctrl-C is a KeyboardInterrupt at once.

    Tune puts a handler of its own in place, which puts back ours when it is called, and leaves it there otherwise.
    A polite kill is a Ctrl-C, too: Ray would end this process with a stack trace, and the record would not say why.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    terminated = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise Interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if terminated is None else terminated)


def _close(campaign: Campaign, run: Run) -> None:
    """A run that somebody interrupted was not lost: its attempt has ended."""
    attempts = Attempts.read(campaign.folder(run))
    if attempts.open:
        attempts.close(campaign.folder(run))


def _ending(campaign: Campaign, bounds: Bounds) -> Callable[[Settings], tuple[bool, list[float] | None]]:
    """Whether the run of these settings has ended, and its goals; the bounds learn of it."""

    def ending(settings: Settings) -> tuple[bool, list[float] | None]:
        result = read_result(campaign.folder(campaign.run(settings)))
        if result is None:
            return False, None
        bounds.learn(settings, result.metrics)
        known = campaign.aims.costs(result.metrics) is not None
        return True, [result.metrics[goal] for goal in campaign.aims.goals] if known else None

    return ending


def _asha(spec: ExperimentSpec) -> ASHAScheduler | None:
    early, aims = stopping(spec.search), Aims.of(spec.search)
    if early is None:
        return None
    return ASHAScheduler(
        metric=aims.goals[0],
        mode=modes(aims)[0],
        time_attr="epoch",
        max_t=spec.train.epochs,
        grace_period=min(early.grace_epochs, spec.train.epochs),
        reduction_factor=early.reduction_factor,
        stop_last_trials=False,  # the last epoch ends by itself, with the run's result
    )
