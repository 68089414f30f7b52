"""Runs of an experiment as trials of Ray Tune: run config, scheduler, passes over lost runs, and interrupts."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, Self

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler

from ipcnn_ray.on_ray.events import Listener, Logged, RunEnded, Warned
from ipcnn_ray.on_ray.experiment_context import LABEL, ExperimentContext
from ipcnn_ray.on_ray.experiment_dir import ray_storage_dir
from ipcnn_ray.on_ray.gpu_share import GpuShare, Nodes, gpu_share, largest_run
from ipcnn_ray.on_ray.optuna_searcher import (
    Constraints,
    OptunaSearcher,
    Settings,
    StudyStorage,
    directions,
    make_sampler,
    modes,
)
from ipcnn_ray.on_ray.param_importance import silence_optuna
from ipcnn_ray.on_ray.ray_session import max_concurrent_runs, session, starting_session, wait_for_resources
from ipcnn_ray.on_ray.single_run import train_alone
from ipcnn_ray.on_ray.train_controller import Controllers
from ipcnn_ray.on_ray.trainables import MAX_LOST_WORKERS, TrialLock, make_trainable, trial_resources
from ipcnn_ray.on_ray.tune_callback import StopOnRequest, TuneCallback
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import Run
from ipcnn_ray.spec.search import Objectives, SpaceSearch
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.storage import join_path
from ipcnn_ray.train.checkpoint import read_result
from ipcnn_ray.train.run_dir import Attempts

MAX_PASSES = 4
"""Maximum passes over a list of runs or a search when workers die during start-up."""
RECORDED_AHEAD = 100
"""Runs that are recorded as queued before they start, at 50 ms each. Others, as those of an adaptive search, are
recorded when they start: nothing would train for ten minutes before a search of 10,000."""
Ended = dict[str, RunSummary]
"""How runs ended, by label."""


class Interrupted(Exception):
    """The experiment was stopped. A new submission resumes it."""


class ExperimentTuner:
    """Trains runs on Ray, which is started for the first run, or before, and stopped at the end of the `with` block."""

    def __init__(self, listener: Listener, address: str | None = None, wait: float = 0.0) -> None:
        """
        Args:
            listener: Called with each event.
            address: Address of a cluster; by default an embedded Ray is started.
            wait: Seconds that a cluster may take to provide the resources of one run.
        """
        self.listener = listener
        self.address = address
        self.wait = wait
        self._stack = ExitStack()
        self._controllers = Controllers()
        self._starting: Callable[[], Nodes] | None = None
        self._nodes: Nodes | None = None
        self._largest_run: Callable[[], int | None] | None = None
        self._told = ""

    def start_ray(self, spec: ExperimentSpec) -> None:
        """Start the embedded Ray beside what the caller does next. The first run waits for it, or raises its error."""
        also = self._controllers.start_ahead if _trains_alone(spec) else None
        self._starting = self._stack.enter_context(starting_session(dashboard=_needs_dashboard(spec), also=also))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run_fixed(self, context: ExperimentContext, runs: Mapping[str, Run], *, early_stopping: bool) -> Ended:
        """Train the given runs, by label. Finished runs are reported at once."""
        ended = self._finished_before(context, list(runs.values()))
        for label in [label for label in runs if label not in ended][:RECORDED_AHEAD]:
            context.record(runs[label]).set_tags(context.summary(runs[label]).identity_tags)
        if _trains_alone(context.spec):
            return ended or self._train_alone(context, *runs.values())
        for index in range(MAX_PASSES):
            if remaining := [label for label in runs if label not in ended]:
                scheduler = _asha(context.spec) if early_stopping else None
                space = {LABEL: tune.grid_search(remaining)}
                ended |= self._fit(context, space, index, runs=len(remaining), scheduler=scheduler)
        return ended

    def run_search(self, context: ExperimentContext, search: SpaceSearch) -> tuple[dict[str, Run], Ended]:
        """Train the runs of an adaptive search. Settings that are sampled twice are one run."""
        silence_optuna()
        study = StudyStorage(join_path(context.root, "search"), directions(context.objectives))
        ended = self._finished_before(context, [context.run(settings) for settings in study.sampled_settings()])
        for index in range(MAX_PASSES):
            constraints, sampled = Constraints(search.constraints), study.sampled_settings()
            sampler = make_sampler(search, context.spec.seed + len(sampled), constraints)
            study.close_open_trials(_trial_outcome(context, constraints), sampler)
            unfinished = [settings for settings in sampled if context.run(settings).label not in ended]
            missing = len(unfinished) if index else search.trials - study.finished_trials()
            if missing <= 0:
                break
            searcher = OptunaSearcher(search, study, sampler, constraints, points_to_evaluate=unfinished)
            scheduler = _asha(context.spec)
            how = {"num_samples": missing, "search_alg": searcher, "scheduler": scheduler}
            ended |= self._fit(context, {}, index, runs=missing, **how)
        return {run.label: run for run in map(context.run, study.sampled_settings())}, ended

    def _finished_before(self, context: ExperimentContext, runs: Sequence[Run]) -> Ended:
        """Return and report the runs that an earlier submission finished."""
        ended: Ended = {}
        for run in runs:
            if run.label not in ended and (result := read_result(context.folder(run), context.summary(run))):
                ended[run.label] = result
                self.listener(RunEnded(result))
        return ended

    def _report_waiting(self, context: ExperimentContext, reason: str) -> None:
        """Record that the experiment waits for nodes; with an empty reason, that it runs."""
        record = context.tracker.attach(context.parent)
        if reason:
            self.listener(Warned(f"waiting for nodes: {reason}"))
            record.set_state("queued", f"waiting for nodes: {reason}")
        else:
            record.set_state("running")

    def _fit(
        self, context: ExperimentContext, space: dict[str, Any], index: int, *, runs: int, **tune_config: Any
    ) -> Ended:
        """Train one pass of so many trials and return the runs that ended.

        A run whose worker died during start-up is not among them, unless this is the last pass.
        """
        context, nodes = self._connect(context, runs)
        compute, storage = context.spec.compute, ray_storage_dir(context.root, context.paths)
        shutil.rmtree(storage, ignore_errors=True)  # runs are resumed from their own folders, not by Tune
        keep_actors_without_own_env()
        lock = TrialLock(context.root)
        callback = TuneCallback(context, lock, self.listener, retry_lost_start=index + 1 < MAX_PASSES)
        tuner = tune.Tuner(
            tune.with_resources(make_trainable(context, lock), trial_resources(context)),
            param_space=space,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=max_concurrent_runs(compute, context.gpus, nodes),
                reuse_actors=compute.workers == 1,
                **tune_config,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
                callbacks=[callback],
                stop=StopOnRequest(callback),
            ),
        )
        try:
            with _sigterm_as_ctrl_c():
                tuner.fit()
                if callback.stopping or _tune_was_interrupted():
                    raise Interrupted
        except (Interrupted, KeyboardInterrupt):
            _record_interruption(context, [run for run in callback.runs.values() if run.label not in callback.ended])
            raise Interrupted from None
        return callback.ended

    def _train_alone(self, context: ExperimentContext, run: Run) -> Ended:
        """Train a run of several workers without Tune, whose trial would be one more process that imports torch."""
        context, _ = self._connect(context, runs=1)
        try:
            with _sigterm_as_ctrl_c():
                controller = self._controllers.take if self.address is None else lambda: None
                result = train_alone(context, run, self.listener, controller)
            if result is None:
                raise Interrupted
        except (Interrupted, KeyboardInterrupt, SystemExit):  # SystemExit: Ray Train aborted its run on Ctrl-C
            _record_interruption(context, [run])
            raise Interrupted from None
        self.listener(RunEnded(result))
        return {run.label: result}

    def _connect(self, context: ExperimentContext, runs: int) -> tuple[ExperimentContext, Nodes]:
        """Start or join Ray, once, and wait for the nodes of a cluster. The context is returned with the GPUs of each
        worker while so many runs are trained."""
        compute = context.spec.compute
        share = partial(self._gpu_share, context, runs)
        if self._nodes is None:
            if self._starting is not None:
                self._nodes = self._starting()
            else:
                self._nodes = self._stack.enter_context(session(self.address, dashboard=_needs_dashboard(context.spec)))
        if self.address is not None:
            report = partial(self._report_waiting, context)
            self._nodes = wait_for_resources(compute, lambda nodes: share(nodes).gpus, self.wait, report)
        decided = share(self._nodes)
        if decided.reason not in ("", self._told):
            self._told = decided.reason
            self.listener(Logged(f"GPUs: {decided.reason}"))
        return replace(context, gpus=decided.gpus), self._nodes

    def _gpu_share(self, context: ExperimentContext, runs: int, nodes: Nodes) -> GpuShare:
        if self._largest_run is None:
            self._largest_run = cache(partial(largest_run, context.spec, context.paths.data))
        return gpu_share(context.spec.compute, nodes, runs, self._largest_run)


def _trains_alone(spec: ExperimentSpec) -> bool:
    """Whether an experiment is one run of several workers, which is trained without Tune."""
    return spec.search is None and spec.compute.workers > 1


def _needs_dashboard(spec: ExperimentSpec) -> bool:
    """Whether the experiment has Ray Train runs in trials, whose helper process asks the dashboard. See `session`."""
    return spec.compute.workers > 1 and not _trains_alone(spec)


def _record_interruption(context: ExperimentContext, runs: Sequence[Run]) -> None:
    for run in runs:
        attempts = Attempts.read(context.folder(run))
        if attempts.open:
            attempts.finish(context.folder(run))  # an interrupted attempt is not a lost worker
        context.record_state(run, "stopped", "interrupted; submitted again, it goes on")


def keep_actors_without_own_env() -> None:
    """Stop Tune from requesting environment variables for its actors.

    Ray writes such requests, which would contain the storage's keys, into process titles and logs, and a process with
    variables of its own imports Ray twice. Workers of an embedded Ray inherit the environment, and nodes of a cluster
    have keys of their own.
    """
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    class_cache.DEFAULT_ENV_VARS.clear()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C, and restore both handlers, which Tune and Ray Train replace by their own.

    On SIGTERM Ray would end the process with a stack trace and without a state in the record.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_sigint = signal.signal(signal.SIGINT, signal.default_int_handler)
    on_sigterm = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, on_sigint)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if on_sigterm is None else on_sigterm)


def _tune_was_interrupted() -> bool:
    """Whether Tune ended its trials on Ctrl-C: then it has put back the handler that it found, and else its own stays.
    A second Ctrl-C is a KeyboardInterrupt."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _trial_outcome(
    context: ExperimentContext, constraints: Constraints
) -> Callable[[Settings], tuple[bool, list[float] | None]]:
    """Return a function from settings to (whether their run is finished, its objectives or None).

    The violations of a finished run are passed to `constraints`.
    """

    def outcome(settings: Settings) -> tuple[bool, list[float] | None]:
        run = context.run(settings)
        result = read_result(context.folder(run), context.summary(run))
        if result is None:
            return False, None
        constraints.record(settings, result.metrics)
        complete = context.objectives.costs(result.metrics) is not None
        return True, [result.metrics[goal] for goal in context.objectives.goals] if complete else None

    return outcome


def _asha(spec: ExperimentSpec) -> ASHAScheduler | None:
    early, objectives = spec.search.early_stopping if spec.search else None, Objectives.of(spec.search)
    if early is None:
        return None
    return ASHAScheduler(
        metric=objectives.goals[0],
        mode=modes(objectives)[0],
        time_attr="epoch",
        max_t=spec.train.epochs,
        grace_period=min(early.grace_epochs, spec.train.epochs),
        reduction_factor=early.reduction_factor,
        stop_last_trials=False,  # a run that reaches its last epoch ends by itself and writes its result
    )
