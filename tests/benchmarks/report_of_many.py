"""How long `ipcnn report` takes for a large experiment, read from a real record.

    python tests/benchmarks/report_of_many.py [--runs 1000] [--half-failed 60] [--keep FOLDER]

Writes invented runs (tests/fakes/tracker.py) into an MLflow store in SQLite through the tracker that runs use: a
search of that many runs of 12 epochs, and a search of which every second trial failed. Then times the command as a
process of its own, from start to end, with everything it does: reading, plotting, writing the page, storing it with the
run. Writing the store is reported and not counted. On a busy machine compare the CPU seconds: the command runs on one
core.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes.tracker import FakeTracker, half_failed_search, many_runs, written

from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.utils.paths import Paths

ROOT = Path(__file__).resolve().parents[2]


def record(fake: FakeTracker, home: Path) -> float:
    """Write it; the seconds that took."""
    paths = Paths.from_environment({"IPCNN_HOME": str(home)})
    began = time.perf_counter()
    written(fake, MlflowTracker(paths.tracking_uri, paths.artifacts))
    return time.perf_counter() - began


def report(name: str, home: Path) -> float:
    """Seconds of the command; its page must be there, and hold every run."""
    page = home / f"{name}.html"
    command = [sys.executable, "-m", "ipcnn_ray.cli.app", "report", name, "--out", str(page)]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {"IPCNN_HOME": str(home), "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, cwd=home, check=True, stdout=subprocess.DEVNULL)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    rows = len((home / name / "runs.csv").read_text(encoding="utf-8").splitlines()) - 1
    size = page.stat().st_size / 1e6
    print(f"ipcnn report {name}: {rows} runs in {took:.1f} s, of these {cpu:.1f} s on a core, page of {size:.1f} MB")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--half-failed", type=int, default=60, help="trials of the search of which half failed")
    parser.add_argument("--keep", type=Path, help="write the record here and keep it; one that is there is used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.keep or Path(temporary)
        if not (home / "mlflow.db").exists():
            home.mkdir(parents=True, exist_ok=True)
            took = record(many_runs(options.runs), home) + record(half_failed_search(options.half_failed), home)
            print(f"recorded in {took:.0f} s")
        report("many", home)
        report("sweep", home)


if __name__ == "__main__":
    main()
