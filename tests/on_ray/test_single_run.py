"""A run of several workers without Tune: its events, retries, failure and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from fakes.ray_bench import Bench, EventLog, equal_metrics, tiny
from fakes.training import OnReport

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.on_ray import single_run
from ipcnn_ray.on_ray.events import EpochDone, Event, StageReached
from ipcnn_ray.on_ray.experiment_context import ExperimentContext
from ipcnn_ray.on_ray.experiment_dir import request_stop
from ipcnn_ray.on_ray.single_run import train_alone
from ipcnn_ray.on_ray.trainables import MAX_LOST_WORKERS, WorkersLost
from ipcnn_ray.on_ray.tuner import Interrupted
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_dir import Attempts, ProgressFile, ProgressUpdate
from ipcnn_ray.train.runtime import StopRun
from ipcnn_ray.train.trainer import train_run


@pytest.fixture
def alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunSummary | None]:
    """Runs `train_alone` with this process in place of the workers of Ray Train: alone(spec, listener, on_report).

    on_report is called after each reported epoch, and may raise.
    """

    def run(
        spec: Any, listener: Callable[[Event], None], on_report: Callable[[int], object] = lambda epoch: None
    ) -> RunSummary | None:
        prepare(spec.data, spec.model.table.image_size, bench.paths)
        bench.tracker.prepare(spec.name)
        parent = bench.tracker.open_parent(spec.name, "alone").handle
        context = ExperimentContext(spec, bench.paths, bench.tracker, parent, gpus=0.0)

        def in_this_process(request: Any, context: ExperimentContext, reports: Any, controller: None) -> None:
            def report(epoch: int) -> None:
                if epoch < spec.train.epochs:
                    reports.after_report(None, [runtime.reported[-1], {"epoch": -1.0}], None)
                on_report(epoch)

            runtime = OnReport(report)
            train_run(request, runtime, context.tracker)

        monkeypatch.setattr(single_run, "run_ray_train", in_this_process)
        return train_alone(context, context.named["run"], listener)

    return run


def test_it_reports_what_a_trial_reports(bench, alone):
    spec, events = tiny("alone"), EventLog()
    result = alone(spec, events)
    assert result is not None and result.state == "succeeded"
    assert events.started() == {"run"} and events.epochs() == [1, 2, 3]
    last = [event for event in events.events if isinstance(event, EpochDone)][-1]
    assert last.metrics == result.metrics
    assert equal_metrics(result.metrics, bench.train_in_process(spec)[0].metrics)
    assert ProgressFile(bench.folder(spec)).read() is None


def test_progress_within_an_epoch_is_passed_on(bench, alone, monkeypatch):
    monkeypatch.setattr(single_run, "write_interval_s", lambda folder: 0.0)
    spec, events = tiny("stages"), EventLog()
    update = ProgressUpdate("training epoch 2", 1, 3, "steps")

    def on_report(epoch: int) -> None:
        if epoch == 1:
            ProgressFile(bench.folder(spec)).write(update)
            while StageReached("run", update) not in events.events:
                pass

    assert alone(spec, events, on_report) is not None


def test_an_error_is_retried_and_then_recorded(bench, alone):
    spec, events = tiny("failing", compute={"retries": 1}), EventLog()

    def on_report(epoch: int) -> None:
        if epoch >= 2:
            raise RuntimeError("out of luck")

    failed = alone(spec, events, on_report)
    assert failed is not None and (failed.state, failed.cause) == ("failed", "RuntimeError: out of luck")
    assert events.epochs() == [1, 2]  # the second attempt fails in the last epoch, which is reported with the result
    assert Attempts.read(bench.folder(spec)).error == 2
    (record,) = [run for run in bench.tracker.find(spec.name) if run.state == "failed"]
    assert record.cause == failed.cause
    assert "out of luck" in bench.tracker.read(record.handle, "traceback.txt")


def test_workers_that_are_lost_each_time_are_a_failure(alone):
    lost = 0

    def on_report(epoch: int) -> None:
        nonlocal lost
        lost += 1
        raise WorkersLost("the node is gone")

    failed = alone(tiny("lost", train={"epochs": MAX_LOST_WORKERS + 2}), EventLog(), on_report)
    assert failed is not None and lost == MAX_LOST_WORKERS + 1
    assert failed.cause == f"its workers were lost {lost} times; the last time: the node is gone"


def test_a_stop_request_leaves_a_run_to_resume(bench, alone):
    spec, events = tiny("stopping"), EventLog()

    def on_report(epoch: int) -> None:
        request_stop(str(bench.folder(spec).parent))
        raise StopRun("stopped on request", resumable=True)

    assert alone(spec, events, on_report) is None
    assert Attempts.read(bench.folder(spec)) == Attempts()


def test_an_error_of_the_listener_is_not_lost(alone):
    def listener(event: Event) -> None:
        if isinstance(event, EpochDone) and event.metrics["epoch"] == 1:
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        alone(tiny("unheard"), listener)


@pytest.mark.slow
def test_sigterm_aborts_the_workers_and_the_next_submission_resumes(bench, ray_here):
    """The handlers of signals are restored. What is resumed is compared in test_lost_processes.py."""
    spec = tiny("aborted", train={"epochs": 200}, compute={"workers": 2})
    events = EventLog(epoch=2, action=lambda: signal.raise_signal(signal.SIGTERM))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        bench.submit(spec, events)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert 2 <= max(events.epochs()) < 200
    assert Attempts.read(bench.folder(spec)) == Attempts()
    recorded = bench.recorded(spec)
    assert recorded[""].state == recorded["run"].state == "stopped"
