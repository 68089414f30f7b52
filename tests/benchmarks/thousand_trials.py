"""What a search of many trials on a cluster of many nodes costs its driver, its record and its storage.

    python tests/benchmarks/thousand_trials.py [--trials 1000] [--nodes 100] [--cores 1] [--parts 10]

The nodes are processes of this machine (Ray's `cluster_utils`), so that memory limits their number: about 0.5 GiB a
node and 0.4 GiB a core. The search is real: nearly empty runs (`compact`, ten drawn objects, one epoch) that are
recorded in an MLflow server and stored in an S3 server, both processes of this machine that write down every request.

Printed for each part of the trials, in the order in which they ended: seconds per trial, seconds of the driver's own
processor time per trial, its resident memory, and requests per trial to MLflow and to S3. Flat columns mean that a
search may grow. Then what was asked before the first trial ended and after the last, and the requests of all by kind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_tools import nearly_empty
from driver_growth import resident
from fakes.s3 import FakeS3, Handler

from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.on_ray.events import Event, PhaseStarted, RunEnded
from ipcnn_ray.on_ray.experiment_dir import experiment_folder
from ipcnn_ray.on_ray.submission import run_experiment
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.mlflow_tracker import environment, server_command
from ipcnn_ray.tracking.storage import join_path
from ipcnn_ray.utils.paths import Paths

ROOT = Path(__file__).parents[2]
WAIT_S = 300.0
OBJECT_STORE = 80 << 20
"""Bytes of each node; Ray takes 30 % of the machine's memory by default."""
NAMES = re.compile(r"[0-9a-f]{32}|r[0-9a-f]{8,}|[0-9a-f]{16}|\d+")


class _Log:
    """Takes the requests of a FakeS3 and writes them to a file, one a line."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", buffering=1)

    def append(self, request: str) -> None:
        self.file.write(f"{request}\n")


def serve_s3(port: int, log: Path) -> None:
    store = FakeS3()
    store.requests = _Log(log)  # type: ignore[assignment]
    ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"store": store})).serve_forever()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(words: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a server until the end of the block, once it answers at its port."""
    with log.open("a") as out:
        server = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None and time.monotonic() < end, f"{words} did not start: {log.read_text()}"
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@contextlib.contextmanager
def cluster(nodes: int, cores: int) -> Iterator[str]:
    """A head without cores and so many nodes; yields the address."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            made.add_node(wait=True, num_cpus=cores, object_store_memory=OBJECT_STORE)
        yield made.address
    finally:
        made.shutdown()


def requests(mlflow: Path, s3: Path) -> tuple[list[str], list[str]]:
    """Requests to each server so far, such as `POST runs/create` and `PUT meta.json`."""
    of_mlflow = re.findall(r'"([A-Z]+) /(?:api|ajax-api)/2\.0/(?:mlflow/|)([^ ?"]+)', mlflow.read_text())
    of_s3 = [
        re.match(r"([A-Z]+) /bucket(?:/[^?]*?)?([^/?]*)(\?list-type)?(?:$|\?|&)", line)
        for line in s3.read_text().splitlines()
    ]
    return (
        [f"{verb} {NAMES.sub('*', name)}" for verb, name in of_mlflow],
        ["LIST" if found[3] else f"{found[1]} {NAMES.sub('*', found[2])}" for found in of_s3 if found],
    )


@dataclass
class Watch:
    """What there was when each drawn run ended."""

    logs: tuple[Path, Path]
    searching: bool = False
    ended: list[tuple[float, float, float, int, int]] = field(default_factory=list)
    """Seconds, processor seconds and MiB of the driver, requests to MLflow and to S3."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self.searching = event.name == "search"
            self.now()
        if isinstance(event, RunEnded) and self.searching:
            self.now()

    def now(self) -> None:
        lines = [sum(1 for _ in log.open()) for log in self.logs]
        self.ended.append((time.perf_counter(), time.process_time(), resident(), lines[0], lines[1]))


def search(trials: int, nodes: int, cores: int, parts: int, home: Path) -> None:
    logs = home / "mlflow.log", home / "s3.log"
    s3, mlflow = free_port(), free_port()
    os.environ.update(environment())
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "IPCNN_HOME": str(home),
        "IPCNN_STORAGE": "s3://bucket/runs",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": str(round(WAIT_S)),
        "RAY_TMPDIR": str(home),  # the address of another cluster on this machine stays the default one
    }
    server = server_command(f"sqlite:///{home}/mlflow.db", mlflow)
    server[server.index("--log-level warning")] = "--log-level info"
    server += ["--artifacts-destination", str(home / "artifacts")]
    space = {"template.beta": {"uniform": [0.5, 4]}}
    spec = nearly_empty({"kind": "space", "algorithm": "random", "trials": trials, "space": space})
    paths = Paths.from_environment()
    prepare(spec.data, spec.model.table.image_size, paths)
    watch = Watch(logs)
    with (
        process([sys.executable, __file__, "--s3", str(s3), str(logs[1])], s3, logs[1]),
        process(server, mlflow, logs[0]),
        cluster(nodes, cores) as address,
    ):
        tracker = open_tracker(paths, buffer=join_path(experiment_folder(spec, paths), "spool"))
        tracker.prepare(spec.name)
        watch.now()
        outcome = run_experiment(spec, paths, tracker, listener=watch, address=address)
        watch.now()
        kinds = [Counter(found) for found in requests(*logs)]
    succeeded = sum(run.state == "succeeded" for run in outcome.runs)
    assert succeeded == trials + 1, f"{succeeded} of {trials + 1} runs have succeeded"
    begin, _, phase, *ended, last = watch.ended
    print(f"{trials} trials, {nodes} nodes of {cores} cores, {os.cpu_count()} cores and load {os.getloadavg()[1]:.0f}")
    print("   trials  s/trial  driver s/trial   MiB   MLflow/trial  S3/trial")
    size = max(1, len(ended) // parts)
    for start in range(0, len(ended) - size, size):
        one, other = ended[start], ended[start + size]
        wall, own, _, to_mlflow, to_s3 = ((b - a) / size for a, b in zip(one, other, strict=True))
        print(f"{start + size:>9}{wall:>9.2f}{own:>16.3f}{other[2]:>6.0f}{to_mlflow:>15.1f}{to_s3:>10.1f}")
    for what, one, other in (
        ("until the search", begin, phase),
        ("until its first end", phase, ended[0]),
        ("after its last", ended[-1], last),
    ):
        wall, own, _, to_mlflow, to_s3 = (b - a for a, b in zip(one, other, strict=True))
        print(f"{what}: {wall:.1f} s, {own:.1f} s of the driver, {to_mlflow} and {to_s3} requests")
    for name, counts in zip(("MLflow", "S3"), kinds, strict=True):
        print(f"{name}, requests per run: {sum(counts.values()) / (trials + 1):.1f}")
        for kind, count in counts.most_common(16):
            print(f"  {kind:<44}{count / (trials + 1):>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--s3", nargs=2, metavar=("PORT", "LOG"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.s3:
        return serve_s3(int(args.s3[0]), Path(args.s3[1]))
    if args.trials < 2 or min(args.nodes, args.cores, args.parts) < 1:
        parser.error("--trials: expected at least 2; --nodes, --cores, --parts: at least 1")
    with tempfile.TemporaryDirectory(prefix="ipcnn-") as home:
        search(args.trials, args.nodes, args.cores, args.parts, Path(home))


if __name__ == "__main__":
    main()
