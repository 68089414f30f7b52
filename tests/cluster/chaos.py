#!/usr/bin/env python3
"""A sweep on three nodes through faults at random moments, against the same sweep undisturbed.

    IPCNN_TEST_S3="COMMAND" IPCNN_TEST_S3_URL=http://127.0.0.1:PORT python tests/cluster/chaos.py DIR --kills N --seed S

COMMAND starts an S3 server at that address; the keys of its user are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
DIR is a short path that does not exist. Needs root: head, two workers, MLflow and S3 server each run in a network
namespace of their own, connected by a bridge, so that a network can be cut. The nodes have disks of their own (tmpfs),
see everything else but DIR read-only, and one of them has a clock of its own (fakes/clock.c, compiled by `cc`).

Until as many faults as asked for have happened, sweeps of four runs are trained, three at a time, and faults are drawn
from `FAULTS`. What a person or a supervisor would do is done: servers and nodes that died are started again, and an
experiment whose submission ended without success is submitted again. After each sweep:

    every run has ended with success; every number of every epoch is in MLflow once, and is that of the undisturbed
    sweep; the weights are those of the undisturbed sweep, byte for byte; no process trains or submits any more; no
    lease, open attempt or buffered record is left; the storage has the files of the undisturbed sweep and no others;
    nothing was written elsewhere.

Faults, victims and moments follow from the seed; what they hit does not, since processes take different times. The log
is in DIR/chaos.log. Ends with 0 if every invariant held.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from multi_node import ROOT, ipcnn, measured, points, same, search_spec

_spec = importlib.util.spec_from_file_location("cluster_local", ROOT / "cluster/local.py")
assert _spec is not None and _spec.loader is not None
local = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = local
_spec.loader.exec_module(local)
local.START_S = 120.0

FAULTS = {
    ("kill", "trial"): 16,
    ("stop", "trial"): 10,
    ("kill", "client"): 3,
    ("kill", "driver"): 4,
    ("stop", "driver"): 5,
    ("kill", "node"): 4,
    ("stop", "node"): 6,
    ("cut", "node"): 8,
    ("kill", "head"): 3,
    ("stop", "head"): 4,
    ("cut", "head"): 5,
    ("kill", "mlflow"): 6,
    ("stop", "mlflow"): 6,
    ("cut", "mlflow"): 6,
    ("kill", "s3"): 6,
    ("stop", "s3"): 6,
    ("cut", "s3"): 6,
    ("full", "disk"): 6,
    ("late", "clock"): 4,
}
"""What happens to whom, and how often relative to the others. A killed driver, node or head costs half a minute."""
LENGTH_S = (1.0, 20.0)
"""Seconds that a stop, a cut, a full disk or a wrong clock lasts, or a killed server is away. Ray gives a node up
after 15."""
GAP_S = (1.0, 8.0)
"""Seconds between two faults."""
COSTLY = {"driver", "node", "head"}
"""Victims that are left alone until the sweep has gone on after the last fault of one of them."""
PATIENCE_S = 900.0
"""A sweep that does nothing for as long is lost."""
ADDRESSES = {"head": "10.213.7.2", "worker-1": "10.213.7.3", "worker-2": "10.213.7.4", "mlflow": "10.213.7.5"}
ADDRESSES |= {"s3": "10.213.7.6"}
BRIDGE, HERE = "ipcnn-chaos", "10.213.7.1"
NODES = ("head", "worker-1", "worker-2")
DISK = "size=64m"
BUCKET, EPOCHS = "ipcnn", 80
READ_ONLY = 'mount --rbind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
"""Shell that sees everything but a folder read-only, in a mount namespace of its own."""


def run(*words: object) -> None:
    subprocess.run([*map(str, words)], check=True, capture_output=True)


@dataclass
class Network:
    """A bridge, and a network namespace for each service, with one address."""

    def namespace(self, name: str) -> str:
        return f"{BRIDGE}-{name}"

    def __enter__(self) -> Network:
        self.delete()
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{HERE}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for index, (name, address) in enumerate(ADDRESSES.items()):
            inside = ("ip", "-n", self.namespace(name))
            run("ip", "netns", "add", self.namespace(name))
            run("ip", "link", "add", self.port(name), "type", "veth", "peer", "eth0", "netns", self.namespace(name))
            run("ip", "link", "set", self.port(name), "master", BRIDGE, "up")
            run(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")
            assert index < 9
        return self

    def port(self, name: str) -> str:
        """The end of the service's cable at the bridge; names of interfaces have 15 characters at most."""
        return f"ic-{name}"

    def plug(self, name: str, *, in_: bool) -> None:
        run("ip", "link", "set", self.port(name), "up" if in_ else "down")

    def delete(self) -> None:
        for name in ADDRESSES:
            subprocess.run(["ip", "link", "del", self.port(name)], capture_output=True)
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)

    def __exit__(self, *exception: object) -> None:
        self.delete()

    def inside(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace(name)}"]


class Cluster(local.Local):  # type: ignore[name-defined,misc]
    """cluster/local.py's services, each in its namespace."""

    network: Network

    def url(self, service: str) -> str:
        host = ADDRESSES["head" if service == "dashboard" else service]
        return f"http://{host}:{self.state['ports'][service]}"

    @property
    def names(self) -> list[str]:
        return ["s3", "relay", "mlflow", *NODES]

    @property
    def s3(self) -> Any:
        config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1})
        return boto3.client("s3", endpoint_url=self.url("s3"), region_name="us-east-1", config=config)

    def confined(self, *command: str, alone: bool = False) -> list[str]:
        """alone: it does not see the processes of the machine. A head does not start where it sees nodes of another."""
        processes = ["--pid", "--fork", "--kill-child", "--mount-proc"] if alone else []
        return ["unshare", "--mount", *processes, "sh", "-c", READ_ONLY, str(self.folder), *command]

    def own_disk(self, name: str) -> dict[str, str]:
        """Environment that keeps all files of a process in a folder of its own."""
        disk = self.folder / "disks" / name
        found = {"HOME": disk / "home", "TMPDIR": disk / "tmp", "IPCNN_HOME": disk / "ipcnn"}
        found["MPLCONFIGDIR"] = disk / "tmp"
        for folder in found.values():
            folder.mkdir(parents=True, exist_ok=True)
        return {key: str(folder) for key, folder in found.items()}

    def mount_disks(self) -> None:
        for name in NODES:
            (disk := self.folder / "disks" / name).mkdir(parents=True)
            run("mount", "-t", "tmpfs", "-o", DISK, "chaos", disk)

    def unmount_disks(self) -> None:
        for name in NODES:
            subprocess.run(["umount", "--lazy", str(self.folder / "disks" / name)], capture_output=True)

    def start(self, name: str) -> None:
        if local.processes(self, name):
            return
        ports, inside = self.state["ports"], self.network.inside("s3" if name == "relay" else name)
        if name == "s3":
            at = os.environ["IPCNN_TEST_S3_URL"].rpartition(":")[2]
            up = f"until curl -s -m 2 http://127.0.0.1:{at} > /dev/null; do sleep 0.3; done; touch s3-is-up"
            command = [*inside, "bash", "-c", f"{os.environ['IPCNN_TEST_S3']}\n{up}"]
            local.start(self, name, command, (self.folder / "s3-is-up").exists)
        elif name == "relay":
            there = ["127.0.0.1", os.environ["IPCNN_TEST_S3_URL"].rpartition(":")[2]]
            words = [ADDRESSES["s3"], str(ports["s3"]), *there]
            command = [*inside, sys.executable, str(ROOT / "tests/fakes/relay.py"), *words]
            local.start(self, name, command, lambda: local.answers(self.url("s3")))
        elif name == "mlflow":
            command = [word.replace(local.LOOPBACK, "0.0.0.0") for word in local.mlflow_command(self)]
            env = self.own_disk(name)
            local.start(self, name, [*inside, *self.confined(*command)], lambda: local.answers(self.url(name)), **env)
        else:
            self._start_node(name, inside)

    def _start_node(self, name: str, inside: list[str]) -> None:
        ports, env = self.state["ports"], self.own_disk(name)
        if name == "head":
            more = [f"--port={ports['head']}", f"--dashboard-port={ports['dashboard']}"]
            more += ["--head", f"--dashboard-host={ADDRESSES['head']}"]
        else:
            more = [f"--address={ADDRESSES['head']}:{ports['head']}"]
        if name == NODES[-1]:
            self.set_clock(0)
            env |= {"LD_PRELOAD": str(self.folder / "clock.so"), "FAKE_CLOCK": str(self.folder / "clock")}
            env["RAY_LD_PRELOAD_ON_WORKERS"] = "1"
        agent = 52400 + NODES.index(name)
        command = local.ray_node(ADDRESSES[name], 1, agent, local.ray_folder(self, name), "--num-gpus=0", *more)
        words = [*inside, *self.confined(*command, alone=True)]
        if name == "head":
            local.start_node(self, name, ADDRESSES[name], agent, words, **env)
        else:  # joins when it can; on a busy machine that takes a while, and Ray may give up
            local.start(self, name, words, lambda: True, **env)

    def set_clock(self, seconds: int) -> None:
        descriptor = os.open(self.folder / "clock", os.O_WRONLY | os.O_CREAT)  # not emptied: processes have it mapped
        os.pwrite(descriptor, seconds.to_bytes(8, sys.byteorder, signed=True), 0)
        os.close(descriptor)

    def find(self, name: str, *words: str) -> list[int]:
        """Processes of a service whose command line has all these words."""
        return [pid for pid in local.processes(self, name) if all(word in command_of(pid) for word in words)]

    def trials(self) -> list[int]:
        return [pid for name in NODES for pid in self.find(name, "ImplicitFunc")]

    def drivers(self) -> list[int]:
        return [pid for pid in self.find("head", "ipcnn_ray.cli.app", "--on-cluster") if not is_shell(pid)]

    def server(self, name: str) -> list[int]:
        """Of S3 the process that answers, which alone can be started again as it was."""
        if name == "mlflow":
            return list(local.processes(self, "mlflow"))
        port = int(os.environ["IPCNN_TEST_S3_URL"].rpartition(":")[2])
        return [pid for pid in local.processes(self, "s3") if listens_at(pid, port)]

    def mend(self, tell: Callable[[str], None]) -> None:
        """Start what a supervisor would: servers and nodes that have ended; all nodes, if it was the head."""
        dead = [name for name in self.names if not local.processes(self, name)]
        if "head" in dead:
            dead = list(dict.fromkeys([*dead, *NODES]))
        for name in dead:
            local.stop(self, name, kill=True)
        for name in dead:
            tell(f"{name} is started")
            try:
                self.start(name)
            except local.Failed as error:  # a busy machine: tried again by the next call
                tell(f"{name} did not start: {str(error).splitlines()[-1]}")
                return


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def is_shell(pid: int) -> bool:
    return not command_of(pid).split(" ")[0].rpartition("/")[2].startswith("python")


def listens_at(pid: int, port: int) -> bool:
    """Whether a process has a listening socket of this port, in its network namespace."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    with contextlib.suppress(OSError):
        return any(os.readlink(link) in inodes for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass
class Sweep:
    """One sweep: its submissions, and what the storage has of it."""

    cluster: Cluster
    name: str
    submissions: int = 0
    client: subprocess.Popen[bytes] | None = None
    ended: bool = False
    fresh: float = field(default_factory=time.monotonic)
    """When the last epoch was stored, or the last submission made."""
    epochs: dict[str, int] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "IPCNN_", "RAY_"))}
        here = {"IPCNN_STORAGE": f"s3://{BUCKET}/runs", "PYTHONPATH": str(ROOT), **self.cluster.own_disk("client")}
        here |= {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "OMP_NUM_THREADS": "1"}
        mark, _, value = self.cluster.mark("client").partition("=")
        return {**own, **self.cluster.exports(), **here, mark: value}

    def submit(self) -> None:
        spec = self.cluster.folder / f"{self.name}.yaml"
        spec.write_text(search_spec(self.name, EPOCHS))
        self.submissions += 1
        with (self.cluster.folder / f"logs/client-{self.name}-{self.submissions}.log").open("wb") as log:
            command = self.cluster.confined(*ipcnn("submit", str(spec)))
            cwd = self.cluster.folder
            self.client = subprocess.Popen(command, env=self.env, cwd=cwd, stdout=log, stderr=log)

    def look(self, tell: Callable[[str], None]) -> None:
        """Submit if nothing of ours is submitted; note what the storage has."""
        if self.client is not None and (code := self.client.poll()) is not None:
            self.client, self.ended = None, code == 0
            tell(f"submission {self.submissions} ended with {code}")
            self.fresh = time.monotonic()
        if self.client is None and not self.ended:
            self.submit()
            tell(f"submission {self.submissions}")
        with contextlib.suppress(BotoCoreError, ClientError):
            if (now := self.stored_epochs()) != self.epochs:
                self.epochs, self.fresh = now, time.monotonic()
        assert time.monotonic() < self.fresh + PATIENCE_S, f"{self.name}: nothing has happened for {PATIENCE_S:.0f} s"

    def keys(self) -> list[str]:
        pages = self.cluster.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"runs/{self.name}-")
        return [entry["Key"].split("/", 2)[2] for page in pages for entry in page.get("Contents", [])]

    def stored_epochs(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for label, *names in (key.split("/") for key in self.keys()):
            if names and names[-1] == "meta.json":
                found[label] = max(found.get(label, 0), int(names[1].removeprefix("epoch-")))
        return found

    def read(self, key: str) -> bytes:
        (root,) = {
            entry["Prefix"]
            for entry in self.cluster.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"runs/{self.name}-", Delimiter="/")[
                "CommonPrefixes"
            ]
        }
        content: bytes = self.cluster.s3.get_object(Bucket=BUCKET, Key=root + key)["Body"].read()
        return content


class Chaos:
    """Draws faults and does them; keeps the log."""

    def __init__(self, cluster: Cluster, seed: int, kills: int) -> None:
        self.cluster, self.kills, self.random = cluster, kills, random.Random(seed)
        self.began, self.done = time.monotonic(), Counter[tuple[str, str]]()
        self.file = (cluster.folder / "chaos.log").open("a")

    def tell(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {time.monotonic() - self.began:7.1f} s  {text}\n"
        for out in (sys.stdout, self.file):
            out.write(line)
            out.flush()

    def wait(self, sweep: Sweep, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not sweep.ended:
            self.cluster.mend(self.tell)
            sweep.look(self.tell)
            time.sleep(0.5)

    def disturb(self, sweep: Sweep) -> None:
        """Faults until the sweep ends, or there were enough; then let it end."""
        recovers: dict[str, int] | None = {}
        while not sweep.ended and self.done.total() < self.kills:
            self.wait(sweep, self.random.uniform(*GAP_S))
            recovers = None if sweep.epochs != recovers else recovers
            table = {fault: n for fault, n in FAULTS.items() if recovers is None or fault[1] not in COSTLY}
            what, whom = self.random.choices(list(table), list(table.values()))[0]
            if not sweep.ended and self.fault(sweep, what, whom):
                self.done[what, whom] += 1
                if whom in COSTLY:
                    recovers = dict(sweep.epochs)
        while not sweep.ended:
            self.wait(sweep, 1.0)

    def fault(self, sweep: Sweep, what: str, whom: str) -> bool:
        """Do one fault, from beginning to end; return False if there is no victim now."""
        length = self.random.uniform(*LENGTH_S)
        place = self.random.choice(NODES[1:] if whom == "node" else NODES)
        number = f"fault {self.done.total() + 1}: {what} {whom}"
        if what == "kill" and whom == "client":
            if sweep.client is None:
                return False
            self.tell(f"{number} (process {sweep.client.pid})")
            sweep.client.kill()
        elif whom in ("trial", "driver"):
            pids = self.cluster.trials() if whom == "trial" else self.cluster.drivers()
            if not pids:
                return False
            pid = self.random.choice(pids)
            self.tell(f"{number} (process {pid})" + (f", {length:.1f} s" if what == "stop" else ""))
            self._kill_or_stop(what, [pid], length, sweep)
        elif whom in ("node", "head"):
            name = place if whom == "node" else "head"
            self.tell(f"{number} ({name}), {length:.1f} s")
            if what == "cut":
                self._cut(name, length, sweep)
            else:
                self._kill_or_stop(what, local.processes(self.cluster, name), length, sweep, name)
        elif whom in ("mlflow", "s3"):
            self.tell(f"{number}, {length:.1f} s")
            if what == "cut":
                self._cut(whom, length, sweep)
            elif what == "kill" and whom == "s3":
                self._bounce_s3(length)
            else:
                self._kill_or_stop(what, self.cluster.server(whom), length, sweep, whom)
        elif whom == "disk":
            self.tell(f"{number} of {place}, {length:.1f} s")
            self._fill(self.cluster.folder / "disks" / place, length, sweep)
        else:
            by = self.random.choice((-60, 60))
            self.tell(f"{number} of {NODES[-1]} by {by:+d} s, {length:.1f} s")
            self.cluster.set_clock(by)
            self.wait(sweep, length)
            self.cluster.set_clock(0)
        return True

    def _kill_or_stop(self, what: str, pids: list[int], length: float, sweep: Sweep, service: str = "") -> None:
        if what == "kill":
            send(pids, signal.SIGKILL)
            if service:
                local.stop(self.cluster, service, kill=True)
                time.sleep(length)
                self.cluster.mend(self.tell)
            return
        send(pids, signal.SIGSTOP)
        time.sleep(length)
        send(pids, signal.SIGCONT)

    def _cut(self, name: str, length: float, sweep: Sweep) -> None:
        self.cluster.network.plug(name, in_=False)
        time.sleep(length)
        self.cluster.network.plug(name, in_=True)

    def _bounce_s3(self, length: float) -> None:
        (pid,) = self.cluster.server("s3")
        home = Path(f"/proc/{pid}")
        command = (home / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        env = dict(pair.split(b"=", 1) for pair in (home / "environ").read_bytes().split(b"\0") if b"=" in pair)
        where, program = os.readlink(home / "cwd"), os.readlink(home / "exe")
        os.kill(pid, signal.SIGKILL)
        time.sleep(length)
        with (self.cluster.folder / "logs/s3-again.log").open("ab") as log:
            # The program is named by the last word: nsenter hands its own words on.
            words = [*self.cluster.network.inside("s3"), "sh", "-c", 'exec "$0" "$@"', program, *command[1:]]
            subprocess.Popen(words, env=env, cwd=where, stdout=log, stderr=log, start_new_session=True)

    def _fill(self, disk: Path, length: float, sweep: Sweep) -> None:
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        self.wait(sweep, length)
        filler.unlink()


@dataclass
class Calm:
    """The undisturbed sweep, on this machine's own Ray and in a folder."""

    folder: Path

    def train(self) -> None:
        (spec := self.folder.with_suffix(".yaml")).write_text(search_spec("calm", EPOCHS))
        foreign = ("IPCNN_", "MLFLOW_", "RAY_", "AWS_")
        own = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        env = {**own, "IPCNN_HOME": str(self.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.folder.with_suffix(".log").open("wb") as log:
            subprocess.run(ipcnn("submit", str(spec)), env=env, stdout=log, stderr=log, check=True)

    def points(self) -> dict[str, dict[tuple[str, int], float]]:
        return by_label(points(self.folder / "mlflow.db"), "calm")

    def files(self) -> dict[str, bytes]:
        (root,) = (self.folder / "runs").glob("calm-*")
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def by_label(found: dict[str, Any], name: str) -> dict[str, Any]:
    runs = {run.split("-", 2)[2]: value for run, value in found.items() if run.count("-") >= 2 and run.startswith(name)}
    assert len(runs) == 4, sorted(found)
    return runs


def trained_and_recorded(sweep: Sweep, calm: Calm) -> str:
    """Every run has ended, and every number of every epoch is there once, as in the undisturbed sweep."""
    stormy, expected = by_label(points(sweep.cluster.folder / "mlflow.db"), sweep.name), calm.points()
    for label in expected:
        ours, theirs = measured(stormy[label]), measured(expected[label])
        assert ours.keys() == theirs.keys(), f"{label}: {sorted(ours.keys() ^ theirs.keys())[:5]}"
        other = [point for point in ours if not same(ours[point], theirs[point])]
        assert not other, f"{label}: {[(point, ours[point], theirs[point]) for point in other[:5]]}"
        result = json.loads(sweep.read(f"{label}/result.json"))
        assert result["state"] == "succeeded", f"{label}: {result}"
    done = subprocess.run(ipcnn("status", sweep.name, "--json"), env=sweep.env, capture_output=True, text=True)
    states = {row["state"] for row in json.loads(done.stdout)}
    assert states == {"succeeded"}, states
    return f"{len(stormy)} runs, {sum(map(len, stormy.values()))} numbers"


def same_weights(sweep: Sweep, calm: Calm) -> str:
    files = {name: content for name, content in calm.files().items() if name.endswith("weights.safetensors")}
    other = [name for name, content in files.items() if sweep.read(name) != content]
    assert len(files) == 4 and not other, f"other weights: {other}"
    return f"{len(files)} files, {sum(map(len, files.values()))} bytes"


def nothing_held(sweep: Sweep, calm: Calm) -> str:
    """No lease, no open attempt, no buffered record; the storage has the files of the undisturbed sweep."""
    assert json.loads(sweep.read("driver.json"))["owner"] == "", "the lease is held"
    keys = set(sweep.keys())
    still_open = [key for key in keys if key.endswith("/attempts.json") and json.loads(sweep.read(key))["open"]]
    assert not still_open, still_open
    files = {name for name in calm.files() if not name.endswith("/lock") and not name.startswith("ray/")}
    files.add("driver.json")
    assert keys == files, f"too many: {sorted(keys - files)}, too few: {sorted(files - keys)}"
    lost = [json.loads(sweep.read(key))["lost"] for key in sorted(keys) if key.endswith("/attempts.json")]
    return f"{len(keys)} files; lost attempts {lost}"


def nothing_runs(sweep: Sweep, calm: Calm) -> str:
    """Trials and drivers have ended. The nodes may take a while to notice."""
    end = time.monotonic() + 60
    while left := sweep.cluster.trials() + sweep.cluster.drivers():
        assert time.monotonic() < end, [f"{pid} {command_of(pid)}" for pid in left]
        time.sleep(1)
    return "no trial, no driver"


def nothing_elsewhere(sweep: Sweep, calm: Calm) -> str:
    """What is not below DIR was read-only for all processes; below it, homes stay empty."""
    homes = {path for path in sweep.cluster.folder.glob("disks/*/home") if any(path.iterdir())}
    assert not homes, [str(path) for home in homes for path in home.rglob("*")][:9]
    top = sorted(path.name for path in sweep.cluster.folder.glob("disks/*/ipcnn/*"))
    return f"homes empty; in IPCNN_HOME of nodes and client: {sorted(set(top))}"


def check(sweep: Sweep, calm: Calm, tell: Callable[[str], None]) -> bool:
    """Whether all invariants hold; each is told."""
    fine = True
    for invariant in (nothing_runs, trained_and_recorded, same_weights, nothing_held, nothing_elsewhere):
        try:
            tell(f"{sweep.name}: {invariant.__name__}: {invariant(sweep, calm)}")
        except Exception as error:
            tell(f"{sweep.name}: {invariant.__name__} FAILS: {error!r}")
            fine = False
    return fine


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    (folder / "logs").mkdir(parents=True)
    folder.chmod(0o700)
    run("cc", "-shared", "-fPIC", "-O2", "-o", folder / "clock.so", ROOT / "tests/fakes/clock.c", "-ldl")
    state = {"mlflow_store": f"sqlite:///{folder}/mlflow.db", "s3_url": f"http://{ADDRESSES['s3']}:7480"}
    state["ports"] = {"head": 6379, "dashboard": 8265, "mlflow": 5000, "s3": 7480}
    cluster = Cluster(folder, state)
    with Network() as cluster.network:
        try:
            cluster.mount_disks()
            while not all(local.processes(cluster, name) for name in cluster.names):
                cluster.mend(lambda line: sys.stdout.write(f"{line}\n"))
            cluster.s3.create_bucket(Bucket=BUCKET)
            yield cluster
        finally:
            for name in ["client", *reversed(cluster.names)]:
                local.stop(cluster, name, kill=True)
            cluster.unmount_disks()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--kills", type=int, default=100, help="faults in all (100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calm", type=Path, help="folder of an undisturbed sweep that an earlier call has trained")
    arguments = parser.parse_args()
    missing = [name for name in ("IPCNN_TEST_S3", "IPCNN_TEST_S3_URL") if not os.environ.get(name)]
    if missing or os.getuid() != 0 or not (shutil.which("ip") and shutil.which("cc")):
        parser.error(
            f"needs root, `ip`, `cc`, and {' and '.join(missing) or 'nothing else'} set; see the head of the file"
        )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    folder = arguments.folder.absolute()
    os.environ.pop("PYTHONPATH", None)  # the nodes get the package from the job
    os.environ |= {"OMP_NUM_THREADS": "1", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "NO_PROXY": "*"}
    calm = Calm(arguments.calm.absolute() if arguments.calm else folder.with_name(f"{folder.name}-calm"))
    if not calm.folder.exists():
        calm.train()
    with running(folder) as cluster:
        chaos, fine, number = Chaos(cluster, arguments.seed, arguments.kills), True, 0
        chaos.tell(f"{arguments.kills} faults, seed {arguments.seed}")
        while chaos.done.total() < arguments.kills:
            number += 1
            sweep = Sweep(cluster, f"chaos{number}")
            try:
                chaos.disturb(sweep)
                fine = check(sweep, calm, chaos.tell) and fine
            except Exception as error:
                chaos.tell(f"{sweep.name} FAILS: {error!r}")
                fine = False
                raise
            chaos.tell(f"{sweep.name}: {sweep.submissions} submissions, {chaos.done.total()} faults so far")
        for (what, whom), count in sorted(chaos.done.items()):
            chaos.tell(f"{what:6} {whom:8} {count:4}")
        chaos.tell(f"{number} sweeps, {chaos.done.total()} faults: {'all as undisturbed' if fine else 'FAILED'}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
