#!/usr/bin/env python3
"""A search on several nodes through every loss that a cluster knows, against the same search undisturbed.

    IPCNN_TEST_S3="COMMAND" IPCNN_TEST_S3_URL=http://127.0.0.1:PORT python tests/cluster/multi_node.py DIR

COMMAND starts an S3 server at that address; the keys of its user are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
DIR is a short path. A head and two workers with addresses of their own, an MLflow server and the S3 server are started
by cluster/local.py as processes of their own. Then, while a search of four runs is trained:

    its client is killed; a worker node is killed; the MLflow server is stopped and started; the process that answers
    for the S3 server is killed and started; head and workers are killed, and the search is submitted to a new cluster.

At the end every run has every epoch once in MLflow, with the numbers of the search that nothing disturbed, which was
trained before on this machine's own Ray and in a folder. Ends with 0 if so; prints what it does and how long it took.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"seconds", "images_per_second", "cpu_hours", "gpu_hours"}
"""Metrics that no two runs share."""
BUCKET, EPOCHS, PATIENCE_S = "ipcnn", 150, 900.0


def search_spec(name: str, epochs: int) -> str:
    """A control and a grid of three runs, on few drawn animals."""
    return f"""
name: {name}
data: {{kind: drawn_animals, objects: 12, negatives: 12}}
model: {{network: compact, dropout: 0.5}}
template: {{shape: gradient}}
train: {{epochs: {epochs}, batch_size: 8, learning_rate: 0.002}}
compute: {{models: none}}
search:
  kind: grid
  runs: [{{name: plain, set: {{template: {{shape: none}}}}}}]
  grid: {{template.beta: [1, 2, 3]}}
"""


@dataclass
class Storm:
    """The folder of the test, and how its processes are reached."""

    folder: Path
    began: float

    @property
    def cluster(self) -> Path:
        return self.folder / "c"

    def tell(self, text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self.began:6.0f} s  {text}\n")
        sys.stdout.flush()

    def local(self, *words: str) -> str:
        command = [sys.executable, str(ROOT / "cluster/local.py"), *words]
        env = {**os.environ, "IPCNN_HOME": str(self.folder / "node"), "IPCNN_CACHE": str(self.folder / "cache")}
        env |= {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "OMP_NUM_THREADS": "1"}
        env.pop("PYTHONPATH", None)  # the nodes get the package from the job
        return _run(command, env)

    def up(self) -> None:
        url = ["--s3", os.environ["IPCNN_TEST_S3"], "--s3-url", os.environ["IPCNN_TEST_S3_URL"]]
        self.local("up", str(self.cluster), "--workers", "2", "--cpus", "1", *url)

    def kill(self, *names: str) -> None:
        self.local("down", str(self.cluster), *names, "--kill")

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.local("status", str(self.cluster)))
        return found

    def client(self) -> dict[str, str]:
        """Environment of somebody who submits to the cluster."""
        exports = self.state()["exports"]
        here = {"IPCNN_HOME": str(self.folder / "client"), "IPCNN_STORAGE": f"s3://{BUCKET}/runs"}
        here["IPCNN_ADDRESS"] = exports["RAY_API_SERVER_ADDRESS"]
        # Nothing of the storage's keys is known here: the nodes have them.
        own = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        return {**own, **exports, **here, "PYTHONPATH": str(ROOT), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}

    def epochs(self) -> dict[str, int]:
        """Epochs of each run that are safe in the storage."""
        found: Counter[str] = Counter()
        pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="runs/stormy-")
        for key in (entry["Key"] for page in pages for entry in page.get("Contents", [])):
            parts = key.split("/")
            if parts[-1] == "meta.json":
                found[parts[2]] = max(found[parts[2]], int(parts[4].removeprefix("epoch-")))
        return found

    def wait_for(self, what: str, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end, f"{what}: not within {PATIENCE_S:.0f} s"
            time.sleep(0.5)
        self.tell(what)

    def progress(self, what: str, epochs: int = 4) -> None:
        """Until the runs together are so many epochs further; the search must not end meanwhile."""
        before = sum(self.epochs().values())
        self.wait_for(what, lambda: sum(self.epochs().values()) >= before + epochs)
        assert sum(self.epochs().values()) < 4 * EPOCHS, "the search ended before the storm was over: more EPOCHS"


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _s3() -> Any:
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return boto3.client("s3", endpoint_url=os.environ["IPCNN_TEST_S3_URL"], region_name="us-east-1")


def ipcnn(*words: str) -> list[str]:
    return [sys.executable, "-m", "ipcnn_ray.cli.app", *words]


def undisturbed(storm: Storm, spec: Path) -> dict[str, dict[str, float]]:
    """Metrics of each run of the same search on this machine's own Ray."""
    home = {"IPCNN_HOME": str(storm.folder / "calm"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    foreign = ("IPCNN_", "MLFLOW_", "RAY_", "AWS_")
    own = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    _run(ipcnn("submit", str(spec), "--json"), {**own, **home})
    return points(storm.folder / "calm/mlflow.db")


def points(database: Path) -> dict[str, dict[tuple[str, int], float]]:
    """All numbers that a record holds, by run; a number that is there twice is an error."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT t.value, m.key, m.step, m.value FROM metrics m JOIN tags t"
            " ON t.run_uuid = m.run_uuid AND t.key = 'ipcnn.run'"
        ).fetchall()
    found: dict[str, dict[tuple[str, int], float]] = {}
    twice = [point for point, times in Counter(row[:3] for row in rows).items() if times > 1]
    assert not twice, f"recorded more than once: {twice[:5]}"
    for run, key, step, value in rows:
        found.setdefault(run, {})[key, step] = value
    return found


def listener_of(url: str) -> int:
    """Id of the process that listens at the port of an address."""
    port = f"{int(url.rpartition(':')[2]):04X}"
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()
        if f":{port} " in line.split("rem")[0][:24]
    }
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                links = {os.readlink(link) for link in (entry / "fd").iterdir()}
            except OSError:
                continue
            if any(f"socket:[{inode}]" in links for inode in inodes):
                return int(entry.name)
    raise AssertionError(f"nobody listens at {url}")


def bounce(storm: Storm, url: str, away: float) -> None:
    """Kill the process that answers there, and start it again as it was."""
    pid = listener_of(url)
    home = Path(f"/proc/{pid}")
    command = (home / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    env = dict(pair.split(b"=", 1) for pair in (home / "environ").read_bytes().split(b"\0") if b"=" in pair)
    where, program = os.readlink(home / "cwd"), os.readlink(home / "exe")
    os.kill(pid, signal.SIGKILL)
    storm.tell(f"S3 server: process {pid} killed")
    time.sleep(away)
    log = (storm.folder / "s3-again.log").open("ab")
    subprocess.Popen(command, executable=program, env=env, cwd=where, stdout=log, stderr=log, start_new_session=True)
    storm.tell("S3 server: started again")


def trains(pid: int) -> bool:
    """Whether a process is a trial's."""
    try:
        return b"ImplicitFunc" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def weather(storm: Storm, spec: Path) -> None:
    """Everything that is lost, one after the other."""
    client = subprocess.Popen(ipcnn("submit", str(spec)), env=storm.client(), stdout=subprocess.PIPE, text=True)
    began = time.monotonic()
    storm.wait_for("the first epoch is in the storage", lambda: sum(storm.epochs().values()) >= 1)
    storm.tell(f"{time.monotonic() - began:.0f} s from `submit` to the first checkpoint")
    client.kill()
    client.wait()
    storm.tell("client killed")
    storm.progress("goes on without its client")

    storm.wait_for("three runs at a time", lambda: len(storm.epochs()) == 4)
    processes = storm.state()["processes"]
    worker = next(name for name in ("worker-1", "worker-2") if any(map(trains, processes[name])))
    storm.kill(worker)
    storm.tell(f"{worker} killed while it trained")
    storm.progress("goes on without the node")
    storm.up()
    storm.tell(f"{worker} is back")

    storm.local("down", str(storm.cluster), "mlflow")
    storm.tell("MLflow server stopped")
    storm.progress("trains on without its record", 8)
    storm.up()
    storm.tell("MLflow server started again")
    storm.progress("goes on with it")

    bounce(storm, os.environ["IPCNN_TEST_S3_URL"], away=10.0)
    storm.wait_for("S3 server answers", lambda: bool(_answers(storm)))
    storm.progress("goes on with the storage")

    storm.kill("head", "worker-1", "worker-2")
    before = storm.epochs()
    storm.tell(f"head and workers killed at epochs {dict(sorted(before.items()))}")
    storm.up()
    storm.tell("a new cluster")
    _run(ipcnn("submit", str(spec)), storm.client())
    storm.tell("submitted again; the search has ended")


def _answers(storm: Storm) -> dict[str, int]:
    try:
        return storm.epochs()
    except Exception:
        return {}


def compare(storm: Storm, calm: dict[str, dict[tuple[str, int], float]]) -> None:
    """The record of the search that was disturbed against that of the one that was not."""
    stormy = points(storm.cluster / "mlflow.db")
    runs = sorted(run for run in calm if run.count("-") == 2)
    assert len(runs) == 4, runs
    for run in runs:
        ours, theirs = measured(stormy[run]), measured(calm[run])
        assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:5]
        steps = sorted(step for key, step in ours if key == "train_loss")
        assert steps == list(range(1, EPOCHS + 1)), f"{run}: epochs {steps}"
        other = [point for point in ours if not same(ours[point], theirs[point])]
        assert not other, f"{run}: {[(point, ours[point], theirs[point]) for point in other[:5]]}"
    rows = json.loads(_run(ipcnn("status", "stormy", "--json"), storm.client()))
    assert {row["state"] for row in rows} == {"succeeded"}, rows
    waiting = _s3().list_objects_v2(Bucket=BUCKET, Prefix="runs/stormy-")
    left = [entry["Key"] for entry in waiting["Contents"] if "/spool/" in entry["Key"]]
    assert not left, left
    lost = [run for run in runs if json.loads(_attempts(run))["lost"]]
    assert lost, "no run has lost its worker"
    storm.tell(
        f"4 runs, {sum(len(stormy[run]) for run in runs)} numbers, all as in the undisturbed search; lost: {lost}"
    )


def _attempts(run: str) -> bytes:
    experiment, _, label = run.rpartition("-")
    body: bytes = _s3().get_object(Bucket=BUCKET, Key=f"runs/{experiment}/{label}/attempts.json")["Body"].read()
    return body


def measured(points: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """What two runs of the same spec share: neither times nor the load of the machine."""
    own = {point for point in points if point[0] in CLOCKS or point[0].startswith("system/")}
    return {point: value for point, value in points.items() if point not in own}


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def main() -> None:
    missing = [name for name in ("IPCNN_TEST_S3", "IPCNN_TEST_S3_URL") if not os.environ.get(name)]
    if missing or len(sys.argv) != 2:
        sys.exit(f"usage: multi_node.py DIR, with {' and '.join(missing)} set; see the head of the file")
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    storm = Storm(folder, time.monotonic())
    spec = folder / "stormy.yaml"
    spec.write_text(search_spec("stormy", EPOCHS))
    try:
        calm = undisturbed(storm, spec)
        storm.tell("undisturbed search trained on this machine's own Ray")
        storm.up()
        storm.tell("head, two workers, MLflow and S3 are up")
        _s3().create_bucket(Bucket=BUCKET)
        weather(storm, spec)
        compare(storm, calm)
    finally:
        if storm.cluster.exists():
            storm.local("down", str(storm.cluster), "--kill")
    storm.tell("everything is stopped")


if __name__ == "__main__":
    main()
