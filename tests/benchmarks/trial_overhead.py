"""What a one-worker run of a search costs beside its training.

    python tests/benchmarks/trial_overhead.py [--trials 20]

Trains the same nearly empty runs (ten drawn objects, one epoch) one after the other, first in this process, then
through `run_experiment` on an embedded Ray, one at a time. The overhead of a trial is the wall time of the search
beside that of the training in this process, divided by the number of trials; `started` counts from the start of the
search, with the start of its process and its imports, `going` from the end of its first run. The start of Ray and
the control are counted in neither. Both sides write to an MLflow record in SQLite.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bench_tools import nearly_empty, prepared

from ipcnn_ray.on_ray.events import Event, PhaseStarted, RunEnded
from ipcnn_ray.on_ray.submission import run_experiment
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import grid_runs, run_id
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.tracking.tracker import Tracker
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths


def in_process(spec: ExperimentSpec, paths: Paths, tracker: Tracker) -> float:
    """Seconds for all runs of the grid but the first, which pays for what is loaded once."""
    parent = tracker.open_parent(spec.name, "bare").handle
    began = 0.0
    for run in grid_runs(spec):
        handle = tracker.open_child(spec.name, f"bare-{run.label}", parent).handle
        folder = str(Path(paths.storage) / "bare" / run.label)
        summary = RunSummary(run_id(spec, run), run.label)
        train_run(RunRequest(summary, run.spec, paths, handle, folder), Runtime(), tracker)
        began = began or time.perf_counter()
    return time.perf_counter() - began


@dataclass
class Clock:
    """When the search began, and when its runs ended."""

    began: float = 0.0
    ended: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self.began, self.ended = time.perf_counter(), []
        if isinstance(event, RunEnded):
            self.ended.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    trials = parser.parse_args().trials
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        betas = [1 + 0.1 * i for i in range(trials)]
        spec = nearly_empty({"kind": "grid", "grid": {"template.beta": betas}}, concurrent_runs=1)
        paths, tracker = prepared(spec, home)
        bare = in_process(spec, paths, tracker) / (trials - 1)
        clock = Clock()
        outcome = run_experiment(spec, paths, tracker, listener=clock)
    assert len(outcome.runs) == trials + 1
    started = (clock.ended[-1] - clock.began) / trials - bare
    going = (clock.ended[-1] - clock.ended[0]) / (trials - 1) - bare
    print(f"{trials} runs of {bare:.2f} s; overhead of a trial: {started:.2f} s started, {going:.2f} s going")


if __name__ == "__main__":
    main()
