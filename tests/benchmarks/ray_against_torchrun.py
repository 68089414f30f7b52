"""What Ray Train costs beside torchrun: time to the first training step, and images per second of the same loop.

    python tests/benchmarks/ray_against_torchrun.py [--network compact] [--epochs 4] [--rounds 3] [--gpu] [--new-record]

Each round trains the same run twice on two workers with DDP, first by `ipcnn submit` on an embedded Ray, then under
torchrun, whose workers call the same `train_run`, each in a folder of its own. The data and the experiment in MLflow's
database are prepared before. With --new-record, as of everybody's first submission, `ipcnn submit` creates the database
within its time; torchrun's is still there. The start is that of the command; the first step is where the first epoch's
`seconds` began, as the record has it. Images per second count whole epochs, from the end of the first to the end of the
last: training, evaluation, checkpoint and report. Printed are medians over the rounds, and the range of the ratios of
the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import load
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import ProcessGroup
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths

WORKERS = 2
NICE = 15
"""Ray gives its workers this; torchrun's get the same."""


@dataclass(frozen=True)
class Times:
    start: float
    """Seconds from the command to the first training step."""
    images_per_second: float
    whole: float
    """Seconds of the whole command."""


def specification(network: str, epochs: int, objects: int) -> str:
    return f"""
name: throughput
data: {{kind: drawn_animals, objects: {objects}, negatives: {objects // 2}}}
model: {{network: {network}}}
template: {{shape: gradient}}
train: {{epochs: {epochs}, batch_size: 32, learning_rate: 0.001}}
compute: {{workers: {WORKERS}, models: none}}
"""


def worker(pickled: str, gpu: bool) -> None:
    """One of torchrun's processes."""
    if not gpu:
        os.nice(NICE)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    request: RunRequest = pickle.loads(Path(pickled).read_bytes())
    train_run(request, ProcessGroup(device), MlflowTracker(request.paths.tracking_uri, request.paths.artifacts))
    dist.destroy_process_group()


def under_torchrun(file: Path, home: Path, gpu: bool) -> Times:
    spec = load(file).spec
    paths = at(home)
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    tracker.prepare(spec.name)
    parent = tracker.open_parent(spec.name, "torchrun").handle
    handle = tracker.open_child(spec.name, "torchrun-run", parent).handle
    request = RunRequest(RunSummary("torchrun-run", "run"), spec, paths, handle, str(home / "runs/run"))
    pickled = home / "request.pickle"
    pickled.write_bytes(pickle.dumps(request))
    words = ["--standalone", "--nproc-per-node", str(WORKERS), __file__, "--worker", str(pickled)]
    return timed([sys.executable, "-m", "torch.distributed.run", *words, *(["--gpu"] if gpu else [])], home, spec)


def under_ray(file: Path, home: Path, new_record: bool) -> Times:
    if not new_record:
        MlflowTracker(at(home).tracking_uri, at(home).artifacts).prepare(load(file).spec.name)
    return timed([sys.executable, "-m", "ipcnn_ray.cli.app", "submit", str(file), "--json"], home, load(file).spec)


def at(home: Path) -> Paths:
    return Paths.from_environment({"IPCNN_HOME": str(home), "IPCNN_CACHE": str(home.parent / "cache")})


def timed(command: list[str], home: Path, spec: ExperimentSpec) -> Times:
    """Run a command that trains the one run of a spec, and read from the record when its epochs ended."""
    foreign = ("IPCNN_", "MLFLOW_", "RAY_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env |= {"IPCNN_HOME": str(home), "IPCNN_CACHE": str(home.parent / "cache"), "OMP_NUM_THREADS": "1"}
    began = time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    whole = time.time() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    with sqlite3.connect(home / "mlflow.db") as database:
        query = "SELECT step, value, timestamp / 1000.0 FROM metrics WHERE key = 'seconds' ORDER BY step"
        epochs = database.execute(query).fetchall()
    assert [step for step, *_ in epochs] == list(range(1, spec.train.epochs + 1)), epochs
    _, seconds, first = epochs[0]
    store = prepare(spec.data, spec.model.table.image_size, at(home))
    images = len(store.train_items) * (spec.train.epochs - 1)
    return Times(first - seconds - began, images / (epochs[-1][2] - first), whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="compact")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--objects", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="workers on GPUs, as many as workers")
    parser.add_argument("--new-record", action="store_true", help="`ipcnn submit` creates the database of MLflow")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.gpu)
    if args.epochs < 2 or args.rounds < 1:
        parser.error("expected at least two epochs and one round")
    rounds: list[tuple[Times, Times]] = []
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
        file = Path(scratch) / "throughput.yaml"
        file.write_text(specification(args.network, args.epochs, args.objects))
        spec = load(file).spec
        prepare(spec.data, spec.model.table.image_size, at(Path(scratch) / "home"))
        for number in range(args.rounds):
            homes = [Path(scratch) / f"{name}{number}" for name in ("ray", "torchrun")]
            for home in homes:
                home.mkdir()
            rounds.append((under_ray(file, homes[0], args.new_record), under_torchrun(file, homes[1], args.gpu)))
            print(json.dumps([vars(times) for times in rounds[-1]]), file=sys.stderr)
    ray, torchrun = zip(*rounds, strict=True)
    print(f"{args.network}, {WORKERS} workers, {args.epochs} epochs, torch {torch.__version__}, {args.rounds} rounds")
    for name, times in (("ray", ray), ("torchrun", torchrun)):
        start, rate, whole = (
            statistics.median(getattr(one, field) for one in times) for field in ("start", "images_per_second", "whole")
        )
        print(f"  {name:<10}first step after {start:6.1f} s  {rate:8.1f} images/s  whole {whole:6.1f} s")
    ratios = sorted(one.images_per_second / other.images_per_second for one, other in rounds)
    later = statistics.median(one.start - other.start for one, other in rounds)
    print(f"  ray: {later:.1f} s later; images/s {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
