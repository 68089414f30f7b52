"""Memory of the driver and wall time per trial of searches of more and more trials.

    python tests/benchmarks/driver_growth.py [--trials 10 100 1000] [--algorithm random]

Each search is a process of its own with its own embedded Ray: nearly empty runs (`compact`, ten drawn objects, one
epoch), one core each. Printed for each: seconds per trial, from the end of the first drawn run to the end of the last;
the driver's resident memory when the first drawn run has ended and when the last has, and the difference per trial.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench_tools import nearly_empty, prepared

from ipcnn_ray.on_ray.events import Event, PhaseStarted, RunEnded
from ipcnn_ray.on_ray.submission import run_experiment
from ipcnn_ray.spec.experiment import ExperimentSpec


def search_of(trials: int, algorithm: str) -> ExperimentSpec:
    space = {"template.beta": {"uniform": [0.5, 4]}}
    return nearly_empty({"kind": "space", "algorithm": algorithm, "trials": trials, "space": space})


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@dataclass
class Watch:
    """When the drawn runs ended, and how much memory the driver had then."""

    searching: bool = False
    ended: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self.searching = event.name == "search"
        if isinstance(event, RunEnded) and self.searching:
            self.ended.append((time.perf_counter(), resident()))


def driver(trials: int, algorithm: str) -> None:
    """One search; prints its numbers as JSON."""
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as home:
        spec = search_of(trials, algorithm)
        paths, tracker = prepared(spec, home)
        watch = Watch()
        outcome = run_experiment(spec, paths, tracker, listener=watch)
    succeeded = sum(run.state == "succeeded" for run in outcome.runs)
    assert succeeded == trials + 1, f"{succeeded} of {trials + 1} runs have succeeded"
    (began, before), (end, after) = watch.ended[0], watch.ended[-1]
    print(json.dumps({"seconds": (end - began) / (trials - 1), "before": before, "after": after}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--algorithm", choices=("random", "tpe"), default="random")
    parser.add_argument("--driver", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.driver:
        return driver(args.driver, args.algorithm)
    if min(args.trials) < 2:
        parser.error("--trials: expected at least 2")
    print(f"{args.algorithm}: trials, seconds per trial, MiB after the first, MiB after the last, KiB per trial")
    for trials in args.trials:
        words = [sys.executable, __file__, "--driver", str(trials), "--algorithm", args.algorithm]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        growth = (found["after"] - found["before"]) * 1024 / (trials - 1)
        numbers = f"{found['seconds']:>9.2f}{found['before']:>9.0f}{found['after']:>9.0f}{growth:>9.0f}"
        print(f"{trials:>6}{numbers}", flush=True)


if __name__ == "__main__":
    main()
