"""The record in PostgreSQL, behind the MLflow server of cluster/local.py: six writers at once, a server that is killed
meanwhile, backup and restore by the commands of cluster/README.md.

Needs PostgreSQL's programs (Debian: postgresql) and psycopg (the extra `server`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.tracker import RecordedRun
from ipcnn_ray.utils.paths import Paths

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
BIN = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path(shutil.which("initdb") or "/none")).parent
WRITERS, EPOCHS = 6, 30
METRICS = 5
PATIENCE_S = 300.0

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not (BIN / "pg_ctl").is_file(), reason="needs PostgreSQL: apt-get install postgresql"),
    pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="needs psycopg: the extra `server`"),
]


def local_module() -> Any:
    """cluster/local.py, which is no package."""
    spec = importlib.util.spec_from_file_location("cluster_local", CLUSTER / "local.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass
class Postgres:
    """A cluster of databases of its own: no system service, not the root user."""

    folder: Path
    port: int

    @property
    def uri(self) -> str:
        """As in mlflow.yaml: without the password, which libpq reads from a file."""
        return f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/mlflow"

    @property
    def env(self) -> dict[str, str]:
        """How libpq reaches it, in clients."""
        found = {"PGPASSFILE": str(self.folder / "pgpass"), "PGHOST": "127.0.0.1", "PGPORT": str(self.port)}
        return {**os.environ, **found, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def own(self, *command: object) -> None:
        """Run a program as the user of the databases, who cannot be root."""
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        log = self.folder / "own.log"
        with log.open("ab") as out:  # the server keeps its output open
            words = [str(word) for word in command]
            done = subprocess.run(words, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out, **user)
        assert done.returncode == 0, f"{command}\n{log.read_text()}"

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], env=self.env, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    def rows(self) -> dict[str, list[str]]:
        """Every row of every table, as text."""
        names = self.run("psql -U mlflow -AtX -c \"SELECT tablename FROM pg_tables WHERE schemaname = 'public'\"")
        tables = sorted(names.split())
        assert "metrics" in tables and "latest_metrics" in tables
        return {
            name: sorted(self.run(f"psql -U mlflow -AtX -c 'SELECT t FROM \"{name}\" t'").splitlines())
            for name in tables
        }


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="ipcnn-pg-", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    found, password = Postgres(folder, port), secrets.token_urlsafe(24)
    for name, content in {"password": password, "pgpass": f"127.0.0.1:{port}:*:mlflow:{password}"}.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
    (folder / "data").mkdir()
    if os.getuid() == 0:
        folder.chmod(0o711)
        for name in ("password", "data"):
            shutil.chown(folder / name, "nobody", "nogroup")
    data = folder / "data"
    login = ["--username=mlflow", "--auth=scram-sha-256", f"--pwfile={folder}/password"]
    found.own(BIN / "initdb", f"--pgdata={data}", *login)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    found.own(BIN / "pg_ctl", f"--pgdata={data}", "-o", options, f"--log={data}/log", "--wait", "start")
    try:
        found.run("createdb -U mlflow mlflow")
        yield found
    finally:
        found.own(BIN / "pg_ctl", f"--pgdata={data}", "--wait", "--mode=immediate", "stop")
        shutil.rmtree(folder)


class Server:
    """The MLflow server, by the command of cluster/local.py."""

    def __init__(self, postgres: Postgres) -> None:
        self.module = local_module()
        (port,) = self.module.free_ports(1)
        state = {"ports": {"mlflow": port}, "mlflow_store": postgres.uri}
        self.local = self.module.Local(postgres.folder, state)
        self.postgres = postgres
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (self.postgres.folder / "mlflow.log").open("ab")
        with log:
            self.child = subprocess.Popen(
                self.module.mlflow_command(self.local),
                env={**self.postgres.env, **settings},
                cwd=self.postgres.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + PATIENCE_S
        while not self.module.answers(f"{self.local.url('mlflow')}/health"):
            assert self.child.poll() is None and time.monotonic() < end, (
                self.postgres.folder / "mlflow.log"
            ).read_text()
            time.sleep(0.3)

    def kill(self) -> None:
        """Without asking: what it was doing is lost."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()


@pytest.fixture
def server(postgres) -> Iterator[Server]:
    made = Server(postgres)
    made.start()
    yield made
    made.kill()


def tracker_of(uri: str, folder: Path) -> Any:
    environment = {"IPCNN_HOME": str(folder), "MLFLOW_TRACKING_URI": uri}
    return open_tracker(Paths.from_environment(environment), buffer=str(folder / "buffer"))


def value(writer: int, metric: int, epoch: int) -> float:
    return writer + metric / 8 + epoch / 64


def write_run(uri: str, folder: Path, parent: str, writer: int) -> None:
    """One run, as a trial records it: after each epoch, what is known of all epochs."""
    record = tracker_of(uri, folder).open_child("storm", f"storm-1-r{writer}", parent)
    record.set_state("running")
    record.log_params({"train.epochs": str(EPOCHS), "writer": str(writer)})
    history = []
    for epoch in range(1, EPOCHS + 1):
        values = {f"m{metric}": value(writer, metric, epoch) for metric in range(METRICS)}
        history.append({"epoch": float(epoch), **values})
        record.log_metrics(history)
        record.set_tags({"last": str(epoch)})
        (folder / f"epoch-{writer}").write_text(str(epoch))
        time.sleep(0.5)
    record.set_state("succeeded")


def epochs(folder: Path) -> list[int]:
    return [int(path.read_text() or 0) for path in folder.glob("epoch-*")]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def documented(heading: str) -> str:
    """The commands below a comment of cluster/README.md, as they run inside the container of the database."""
    readme = (CLUSTER / "README.md").read_text()
    block = re.search(rf"^# {heading}\n(.*?)(?=^#|^```)", readme, re.M | re.S)
    assert block is not None, heading
    inside = re.compile(r"^docker compose -f cluster/mlflow\.yaml exec -T postgres (.*)$", re.M)
    commands = inside.findall(block[1])
    assert commands
    return "\n".join(commands)


@pytest.mark.timeout(1500)
def test_six_writers_a_killed_server_backup_and_restore(postgres, server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    uri = server.local.url("mlflow")
    tracker = tracker_of(uri, tmp_path)
    tracker.prepare("storm", "# What it asks")
    parent = tracker.open_parent("storm", "storm-1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow"])
    writers = [
        context.Process(target=write_run, args=(uri, tmp_path, parent.handle, writer)) for writer in range(WRITERS)
    ]
    for process in writers:
        process.start()

    wait_until(lambda: len(epochs(tmp_path)) == WRITERS and min(epochs(tmp_path)) >= 2)
    server.kill()
    killed_at = epochs(tmp_path)
    wait_until(lambda: min(epochs(tmp_path)) >= max(killed_at) + 3)
    assert tracker.buffer.list(), "nothing was buffered while the server was away"
    assert min(epochs(tmp_path)) < EPOCHS, "the writers ended before the server was back"
    server.start()
    for process in writers:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in writers] == [0] * WRITERS
    assert tracker.flush(timeout=PATIENCE_S) == 0 and tracker.buffer.list() == []

    runs = {run.label: run for run in tracker.find("storm") if run.parent}
    assert len(runs) == WRITERS and {run.state for run in runs.values()} == {"succeeded"}
    query = "SELECT p.value, key, step, value FROM metrics JOIN params p USING (run_uuid) WHERE p.key = 'writer'"
    query = query.replace("key, step, value FROM metrics", "m.key, m.step, m.value FROM metrics m")
    lines = postgres.run(f'psql -U mlflow -AtX -F " " -c {shlex.quote(query)}').splitlines()
    points = sorted((int(w), key, int(step), float(number)) for w, key, step, number in map(str.split, lines))
    expected = [
        (writer, f"m{metric}", epoch, value(writer, metric, epoch))
        for writer in range(WRITERS)
        for metric in range(METRICS)
        for epoch in range(1, EPOCHS + 1)
    ]
    expected += [(writer, "epoch", epoch, float(epoch)) for writer in range(WRITERS) for epoch in range(1, EPOCHS + 1)]
    assert points == sorted(expected), "every number once"
    assert {run.tags["last"] for run in runs.values()} == {str(EPOCHS)}
    check_backup(postgres, server, tmp_path)


def recorded(uri: str, folder: Path) -> list[RecordedRun]:
    return tracker_of(uri, folder).find("storm")


def check_backup(postgres: Postgres, server: Server, folder: Path) -> None:
    uri = server.local.url("mlflow")
    before, rows = recorded(uri, folder), postgres.rows()
    postgres.run(documented("copy"))
    tracker_of(uri, folder).open_parent("storm", "storm-2")  # after the copy: not in it
    server.kill()
    postgres.run(documented("bring the copy back"))
    server.start()
    assert postgres.rows() == rows
    assert recorded(uri, folder) == before
    again = tracker_of(uri, folder).open_parent("storm", "storm-3")  # its sequences and constraints are there, too
    again.log_metrics([{"epoch": 1.0}])
    assert len(recorded(uri, folder)) == len(before) + 1
