#!/usr/bin/env python3
"""A cluster on one machine: a Ray head, workers with addresses of their own, an MLflow server, an S3 server.

    python cluster/local.py up DIR --workers 2        start what is not running; prints how to use it
    python cluster/local.py down DIR [NAME ...]       stop everything, or only head, worker-1, mlflow, s3
    python cluster/local.py down DIR worker-1 --kill  the same without asking first, as a crash would
    python cluster/local.py status DIR

Run it with the Python that has Ray and MLflow: the nodes use the same one. MLflow, S3 and the dashboard listen on
loopback; Ray's other ports on all addresses (SECURITY.md). Ray asks for the token in DIR/token.
`up` is idempotent: after `down DIR mlflow`, `up DIR` starts the MLflow server again, on the same port and database. DIR
holds the token, the ports and process ids (state.json), logs/ and env.sh, which a client sources. Nothing is found by
name: a process belongs to a service when its environment carries the mark of DIR and that service, so that what was
started is stopped, with all of its children, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
HEAD = "127.0.0.2"
"""Ray takes 127.0.0.1 for "an address of this machine" and puts another in its place."""
MARK = "IPCNN_LOCAL_SERVICE"
START_S, STOP_S = 300.0, 20.0
TRIES = 3
RAY_GAVE_UP = "The current node timed out during startup"
"""Ray gives a node 30 s, which no setting changes and a busy machine may exceed; it is then started anew."""
SOCKET_PATH = 30
"""Characters that Ray appends to a session for the name of a socket, `/sockets/dash_MetricsHead` and some to spare;
Linux allows 107 in all."""
CHOICES = ("workers", "cpus", "gpus", "s3", "s3_url", "mlflow_store")


class Failed(Exception):
    """Told to a person, with what to do."""


class TooSlow(Failed):
    """Ray gave up on a node of its own."""


@dataclass
class Local:
    """The folder of one local cluster, and what was decided when it was first started."""

    folder: Path
    state: dict[str, Any]

    @classmethod
    def at(cls, folder: Path) -> Local:
        file = folder / "state.json"
        return cls(folder, json.loads(file.read_text()) if file.is_file() else {})

    def save(self) -> None:
        partial = self.folder / "state.json.partial"
        partial.write_text(json.dumps(self.state, indent=2))
        partial.replace(self.folder / "state.json")

    def mark(self, name: str) -> str:
        return f"{MARK}={self.folder}:{name}"

    @property
    def services(self) -> list[str]:
        """In the order in which they are started."""
        s3 = ["s3"] if self.state.get("s3") else []
        return [*s3, "mlflow", "head", *(f"worker-{i + 1}" for i in range(self.state.get("workers", 0)))]

    def url(self, service: str) -> str:
        return f"http://{LOOPBACK}:{self.state['ports'][service]}"

    def settings(self) -> dict[str, str]:
        """What every node, and a client, has in its environment."""
        found = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
        }
        return found | ({"AWS_ENDPOINT_URL": self.state["s3_url"]} if self.state.get("s3_url") else {})

    def exports(self) -> dict[str, str]:
        """What a client has: it knows the cluster by its address, for ipcnn and for Ray's own commands."""
        address = self.url("dashboard")
        return {**self.settings(), "IPCNN_ADDRESS": address, "RAY_API_SERVER_ADDRESS": address}


def processes(local: Local, name: str) -> list[int]:
    """Ids of the running processes of a service: the one that was started, and whatever came of it."""
    mark = local.mark(name).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if not dead and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return sorted(found)


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]


def answers(url: str, token: str = "") -> bool:
    """Whether a server says anything there; a refusal is an answer."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code != 401 or not token
    except OSError:
        return False
    return True


def listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def wait(local: Local, name: str, child: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    log = local.folder / "logs" / f"{name}.log"
    while time.monotonic() < deadline:
        if ready():
            return
        if child.poll() not in (None, 0):  # a command that puts its server in the background ends with 0
            break
        time.sleep(0.3)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    kind = TooSlow if RAY_GAVE_UP in tail else Failed
    raise kind(f"{name} did not start; the end of {log}:\n{tail}")


def start(local: Local, name: str, command: list[str], ready: Callable[[], bool], **extra: str) -> None:
    """Start a service if it is not running, in a session of its own, and wait until it answers."""
    if processes(local, name):
        return
    for left in reversed(range(TRIES)):
        try:
            return _start(local, name, command, ready, extra)
        except TooSlow:
            stop(local, name, kill=True)
            if not left:
                raise


def _start(local: Local, name: str, command: list[str], ready: Callable[[], bool], extra: dict[str, str]) -> None:
    mark, _, value = local.mark(name).partition("=")
    own = Path(sys.executable).parent
    env = {**os.environ, **local.settings(), **extra, mark: value, "PATH": f"{own}{os.pathsep}{os.environ['PATH']}"}
    # The nodes see their cores' worth of threads, and report nothing to anybody.
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    log = (local.folder / "logs" / f"{name}.log").open("ab")
    with log:
        child = subprocess.Popen(
            command,
            env=env,
            cwd=local.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    local.state.setdefault("pids", {})[name] = child.pid
    local.save()
    wait(local, name, child, ready)


def token_of(local: Local) -> str:
    """The token of this cluster, made once, readable by its owner only."""
    file = local.folder / "token"
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(32))
    return file.read_text().strip()


def nodes_alive(local: Local, token: str) -> dict[str, str]:
    """Id -> address of the nodes that the head counts as alive."""
    request = urllib.request.Request(
        f"{local.url('dashboard')}/api/v0/nodes?limit=1000", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=5) as answer:
            rows = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {row["node_id"]: row["node_ip"] for row in rows if row["state"] == "ALIVE"}


def start_node(local: Local, name: str, address: str, agent: int, command: list[str], **extra: str) -> None:
    """A node is there when the head knows a new one at its address: one that was killed counts as alive for a while."""
    token = token_of(local)
    before = set(nodes_alive(local, token))

    def ready() -> bool:
        new = {node: there for node, there in nodes_alive(local, token).items() if node not in before}
        return address in new.values() and listens(address, agent)

    start(local, name, command, ready, **extra)


def start_server(local: Local, name: str, command: list[str], url: str) -> None:
    """A server answers at its address; if another one does so already, ours would only seem to run."""
    if not processes(local, name) and answers(url):
        raise Failed(f"{name}: something else answers at {url} already\nStop it, or take another port.")
    start(local, name, command, lambda: bool(processes(local, name)) and answers(url))


def ray_folder(local: Local, name: str) -> Path:
    """Folder of a node's sessions. Each has its own: a node that starts unpacks the code of a running job anew, and
    would delete the working directory of the job's processes on all nodes that share the folder."""
    return local.folder / ("ray" if name == "head" else f"ray{name.removeprefix('worker-')}")


def ray_node(address: str, cpus: int, agent: int, folder: Path, *more: str) -> list[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    # Ports that have a number by default are chosen anew: several nodes, or another Ray, would all take the same ones.
    ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={agent}"]
    own = [f"--node-ip-address={address}", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    return [ray, "start", "--block", *own, *ports, *more]


def mlflow_command(local: Local) -> list[str]:
    port = str(local.state["ports"]["mlflow"])
    options = ["--backend-store-uri", local.state["mlflow_store"], "--host", LOOPBACK, "--port", port, "--workers", "1"]
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *options,
        "--artifacts-destination",
        str(local.folder / "artifacts"),
    ]


def start_all(local: Local) -> None:
    state = local.state
    token_of(local)
    if state["s3"]:
        start_server(local, "s3", ["bash", "-c", state["s3"]], state["s3_url"])
    start_server(local, "mlflow", mlflow_command(local), f"{local.url('mlflow')}/health")
    if not processes(local, "head"):  # its nodes would keep a new one from starting, and do not join it
        for i in range(state["workers"]):
            stop(local, f"worker-{i + 1}", kill=True)
    (agent,) = free_ports(1)
    options = [
        "--head",
        "--num-gpus=0",
        f"--port={state['ports']['head']}",
        f"--ray-client-server-port={state['ports']['client']}",
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={state['ports']['dashboard']}",
    ]
    command = ray_node(HEAD, state["cpus"], agent, ray_folder(local, "head"), *options)
    start_node(local, "head", HEAD, agent, command)
    for i in range(state["workers"]):
        name, address, gpus = f"worker-{i + 1}", f"127.0.0.{i + 3}", state["gpus"]
        devices = ",".join(str(i * gpus + k) for k in range(gpus))
        (agent,) = free_ports(1)
        join = [f"--num-gpus={gpus}", f"--address={HEAD}:{state['ports']['head']}"]
        command = ray_node(address, state["cpus"], agent, ray_folder(local, name), *join)
        start_node(local, name, address, agent, command, CUDA_VISIBLE_DEVICES=devices)


def up(arguments: argparse.Namespace) -> None:
    folder = arguments.folder.absolute()
    local = Local.at(folder)
    workers = arguments.workers or local.state.get("workers", 2)
    longest = ray_folder(local, f"worker-{workers}") / "session_2026-01-01_00-00-00_000000_1234567"
    if len(str(longest)) + SOCKET_PATH > 107:
        raise Failed(f"{folder} is too long a path for Ray's sockets\nTake a shorter one, such as /tmp/ipcnn.")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    asked = {name: getattr(arguments, name) for name in CHOICES if getattr(arguments, name) is not None}
    changed = sorted(name for name in asked if name in local.state and local.state[name] != asked[name])
    if changed and any(processes(local, name) for name in local.services):
        raise Failed(f"{folder} runs with another {', '.join(changed)}\nStop it first: local.py down {folder}")
    defaults = {
        "workers": 2,
        "cpus": 1,
        "gpus": 0,
        "s3": "",
        "s3_url": "",
        "mlflow_store": f"sqlite:///{folder}/mlflow.db",
    }
    local.state = {**defaults, **local.state, **asked}
    if local.state["s3"] and not local.state["s3_url"]:
        raise Failed("--s3 starts a server whose address is not known\nGive it: --s3-url http://127.0.0.1:7480")
    if "ports" not in local.state:
        local.state["ports"] = dict(zip(("head", "dashboard", "client", "mlflow"), free_ports(4), strict=True))
    local.save()
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in local.exports().items())
    (folder / "env.sh").write_text(exports)
    start_all(local)
    sys.stdout.write(f"up: {', '.join(local.services)}\n")
    sys.stdout.write(f"use it:   source {folder}/env.sh\n")
    sys.stdout.write(f"address:  {local.url('dashboard')}\nMLflow:   {local.url('mlflow')}\n")
    sys.stdout.write(f"stop it:  {shlex.join([sys.executable, sys.argv[0], 'down', str(folder)])}\n")


def stop(local: Local, name: str, *, kill: bool) -> None:
    """End the first process of a service politely, then whatever of the service is left."""
    ends = [(signal.SIGKILL, STOP_S)] if kill else [(signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)]
    for number, seconds in ends:
        left = processes(local, name)
        first = local.state.get("pids", {}).get(name)
        for pid in [first] if number == signal.SIGTERM and first in left else left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and processes(local, name):
            time.sleep(0.2)
    if left := processes(local, name):
        raise Failed(f"{name} did not end; still there: {left}")
    local.state.get("pids", {}).pop(name, None)
    local.save()


def known(folder: Path) -> Local:
    local = Local.at(folder.absolute())
    if not local.state:
        raise Failed(f"{folder} is no folder of a local cluster\nStart one: local.py up {folder}")
    return local


def down(arguments: argparse.Namespace) -> None:
    local = known(arguments.folder)
    strange = sorted(set(arguments.names) - set(local.services))
    if strange:
        raise Failed(f"there is no {', '.join(strange)} here\nThere are: {', '.join(local.services)}.")
    for name in reversed(arguments.names or local.services):
        stop(local, name, kill=arguments.kill)
    sys.stdout.write(f"down: {', '.join(arguments.names or local.services)}\n")


def status(arguments: argparse.Namespace) -> None:
    local = known(arguments.folder)
    running = {name: processes(local, name) for name in local.services}
    sys.stdout.write(json.dumps({"exports": local.exports(), "processes": running}, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="local.py", description=(__doc__ or "").partition("\n")[0])
    commands = made.add_subparsers(required=True)
    one = commands.add_parser("up", help="start what is not running")
    one.set_defaults(run=up)
    one.add_argument("--workers", type=int, help="worker nodes, 127.0.0.3 and up (2)")
    one.add_argument("--cpus", type=int, help="cores that each node offers, the head too (1)")
    one.add_argument("--gpus", type=int, help="GPUs of each worker, the machine's in turn (0)")
    one.add_argument("--s3", metavar="COMMAND", help="command that starts an S3 server")
    one.add_argument("--s3-url", metavar="URL", help="where that server, or one that runs already, answers")
    one.add_argument("--mlflow-store", metavar="URI", help="MLflow's database (SQLite in DIR)")
    two = commands.add_parser("down", help="stop everything, or the services named")
    two.set_defaults(run=down)
    two.add_argument("--kill", action="store_true", help="without asking first, as a crash would")
    three = commands.add_parser("status", help="process ids, and the environment of a client, as JSON")
    three.set_defaults(run=status)
    for command in (one, two, three):
        command.add_argument("folder", type=Path, metavar="DIR")
    two.add_argument("names", nargs="*", metavar="NAME")
    return made


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # for all services: a core dump would hold the keys
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except Failed as error:
        sys.stderr.write(f"error  {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
