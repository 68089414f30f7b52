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

from ipcnn_ray.on_ray import experiment_dir as home
from ipcnn_ray.on_ray.experiment_context import LABEL, ExperimentContext
from ipcnn_ray.on_ray.optuna_searcher import OptunaSearcher, directions, modes, sampler
from ipcnn_ray.on_ray.ray_session import room_for, session
from ipcnn_ray.on_ray.resources import Nodes, gpus_per_worker, runs_at_once
from ipcnn_ray.on_ray.search_space import Constraints, Settings, StudyStorage, quiet
from ipcnn_ray.on_ray.trainables import resources, trainable
from ipcnn_ray.on_ray.trial_lock import TrialLock
from ipcnn_ray.on_ray.tune_callback import LOST_WORKERS, Listener, RunEnded, StopOnRequest, TuneCallback, Warned
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.objectives import Objectives
from ipcnn_ray.spec.runs import Run
from ipcnn_ray.spec.search import SpaceSearch, early_stopping
from ipcnn_ray.tracking.storage import below
from ipcnn_ray.train.checkpoint import read_result
from ipcnn_ray.train.retry_state import Attempts

TURNS = 4
"""Times that the runs of a search are gone through, where workers are lost while they start."""
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

    def listed(self, context: ExperimentContext, runs: Mapping[str, Run], *, early_stopping: bool) -> Ended:
        """Train runs that are known beforehand; those that ended before are told at once."""
        ended = self._before(context, list(runs.values()))
        for label in runs:
            if label not in ended:
                context.record(runs[label])
        for turn in range(TURNS):
            if todo := [label for label in runs if label not in ended]:
                scheduler = _asha(context.spec) if early_stopping else None
                ended |= self._fit(context, {LABEL: tune.grid_search(todo)}, turn, scheduler=scheduler)
        return ended

    def learned(self, context: ExperimentContext, search: SpaceSearch) -> tuple[dict[str, Run], Ended]:
        """Train runs that are drawn one by one, each from what was learned so far. Settings drawn twice are one run."""
        quiet()
        memory = StudyStorage(below(context.root, "search"), directions(context.objectives))
        ended = self._before(context, [context.run(one) for one in memory.drawn()])
        for turn in range(TURNS):
            bounds, drawn = Constraints(search.constraints), memory.drawn()
            draws = sampler(search, context.spec.seed + len(drawn), bounds)
            memory.settle(_ending(context, bounds), draws)
            first = [one for one in drawn if context.run(one).label not in ended]
            if (missing := len(first) if turn else search.trials - memory.ended()) <= 0:
                break
            learner, scheduler = OptunaSearcher(search, memory, draws, bounds, first), _asha(context.spec)
            ended |= self._fit(context, {}, turn, num_samples=missing, search_alg=learner, scheduler=scheduler)
        return {run.label: run for run in map(context.run, memory.drawn())}, ended

    def _before(self, context: ExperimentContext, runs: Sequence[Run]) -> Ended:
        """The runs that ended in an earlier submission."""
        ended: Ended = {}
        for run in runs:
            if run.label not in ended and (result := read_result(context.folder(run))) is not None:
                ended[run.label] = RunEnded(run.label, result.state, result.why, result.metrics)
                self.listener(ended[run.label])
        return ended

    def _waits(self, context: ExperimentContext, why: str) -> None:
        """Nothing can be trained yet, and why; or, with an empty reason, it can."""
        record = context.tracker.attach(context.parent)
        if why:
            self.listener(Warned(f"waiting for nodes: {why}"))
            record.set_state("queued", f"waiting for nodes: {why}")
        else:
            record.set_state("running")

    def _fit(self, context: ExperimentContext, space: dict[str, Any], turn: int, **tuning: Any) -> Ended:
        """Train what Tune draws from the space. A run whose worker was lost while it started is not among those that
        ended: it is left for the next turn, if there is one."""
        compute = context.spec.compute
        notes = home.notes(context.root, context.paths)
        if self._nodes is None:
            self._nodes = self._stack.enter_context(session(self.address))
        if self.address is not None:
            self._nodes = room_for(compute, self.wait, lambda why: self._waits(context, why))
        shutil.rmtree(notes, ignore_errors=True)  # Tune's own; all that is needed again lies with the runs
        context = replace(context, gpus=gpus_per_worker(compute, self._nodes))
        keep_credentials_out_of_actor_env()
        turns = TrialLock(context.root)
        watcher = TuneCallback(context, turns, self.listener, patient=turn + 1 < TURNS)
        tuner = tune.Tuner(
            tune.with_resources(trainable(context, turns), resources(context)),
            param_space=space,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=runs_at_once(compute, context.gpus, self._nodes),
                reuse_actors=compute.workers == 1,
                **tuning,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(notes),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=LOST_WORKERS),
                callbacks=[watcher],
                stop=StopOnRequest(watcher),
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
                    _close(context, run)
                    context.record(run).set_state("stopped", "interrupted; submitted again, it goes on")
            raise Interrupted from None
        return watcher.ended


def keep_credentials_out_of_actor_env() -> None:
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


def _close(context: ExperimentContext, run: Run) -> None:
    """A run that somebody interrupted was not lost: its attempt has ended."""
    attempts = Attempts.read(context.folder(run))
    if attempts.open:
        attempts.finish(context.folder(run))


def _ending(context: ExperimentContext, bounds: Constraints) -> Callable[[Settings], tuple[bool, list[float] | None]]:
    """Whether the run of these settings has ended, and its goals; the bounds learn of it."""

    def ending(settings: Settings) -> tuple[bool, list[float] | None]:
        result = read_result(context.folder(context.run(settings)))
        if result is None:
            return False, None
        bounds.learn(settings, result.metrics)
        known = context.objectives.costs(result.metrics) is not None
        return True, [result.metrics[goal] for goal in context.objectives.goals] if known else None

    return ending


def _asha(spec: ExperimentSpec) -> ASHAScheduler | None:
    early, objectives = early_stopping(spec.search), Objectives.of(spec.search)
    if early is None:
        return None
    return ASHAScheduler(
        metric=objectives.goals[0],
        mode=modes(objectives)[0],
        time_attr="epoch",
        max_t=spec.train.epochs,
        grace_period=min(early.grace_epochs, spec.train.epochs),
        reduction_factor=early.reduction_factor,
        stop_last_trials=False,  # the last epoch ends by itself, with the run's result
    )
