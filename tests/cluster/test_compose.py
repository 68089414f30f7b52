"""cluster/compose.yaml: its form, and each of its commands as a process of this machine, without containers.

The second test takes command, environment and secrets of every service from the file; names of services become loopback
addresses with ports of their own, folders of containers become folders of the test. It needs PostgreSQL's programs, the
extra `server`, and rclone (IPCNN_TEST_RCLONE, or on the PATH).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster/compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KEYS = {
    "image",
    "restart",
    "shm_size",
    "ulimits",
    "environment",
    "secrets",
    "volumes",
    "healthcheck",
    "entrypoint",
    "command",
}
KEYS |= {"ports", "depends_on"}
"""Keys of services that the file uses, all of the compose specification."""
INITDB = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path(shutil.which("initdb") or "/none"))
RCLONE = os.environ.get("IPCNN_TEST_RCLONE") or shutil.which("rclone") or ""
SERVER = importlib.util.find_spec("psycopg") and importlib.util.find_spec("flask_wtf")
START_S = 300.0


def test_services_are_healthy_pinned_and_on_loopback():
    assert set(SERVICES) == {"postgres", "s3", "mlflow", "head", "worker"}
    for name, service in SERVICES.items():
        assert set(service) <= KEYS, name
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]+", service["image"]), name
        assert service["restart"] == "unless-stopped" and "test" in service["healthcheck"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert all(wait == {"condition": "service_healthy"} for wait in service.get("depends_on", {}).values())
        named = {volume.partition(":")[0] for volume in service.get("volumes", []) if not volume.startswith("$")}
        assert named <= set(COMPOSE["volumes"]), name
        used = {secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", [])}
        assert used and used <= set(COMPOSE["secrets"]), name
        # A secret is the name of a file, in no variable and on no command line.
        for variable, value in service.get("environment", {}).items():
            assert not re.search(r"password|secret|token", variable, re.I) or value.startswith("/run/secrets/"), name


def test_the_head_of_the_file_makes_every_secret(tmp_path):
    """Its commands, up to docker's."""
    lines = [line.removeprefix("#").strip() for line in FILE.read_text().splitlines() if line.startswith("#   ")]
    script = "\n".join(lines[: next(i for i, line in enumerate(lines) if line.startswith("docker"))])
    subprocess.run(["bash", "-euc", script], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    for secret in COMPOSE["secrets"].values():
        file = Path(secret["file"].replace("${HOME}", str(tmp_path)))
        assert len(file.read_text()) >= 64 and file.stat().st_mode & 0o777 == 0o600


def test_the_services_are_those_of_the_other_files():
    mlflow = yaml.safe_load((FILE.parent / "mlflow.yaml").read_text())["services"]
    assert SERVICES["postgres"] == mlflow["postgres"]
    for key in ("image", "command", "ports", "volumes"):
        assert SERVICES["mlflow"][key] == mlflow["mlflow"][key]


class Stack:
    """The services as processes, in a folder with a home for each."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("cluster_local", ROOT / "cluster/local.py")
        assert spec is not None and spec.loader is not None
        self.local = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = self.local
        spec.loader.exec_module(self.local)
        self.folder = folder
        names = ("postgres:5432", "s3:7480", "mlflow:5000", "head:6379", "dashboard:8265")
        self.ports = dict(zip(names, self.local.free_ports(len(names)), strict=True))
        self.cluster = self.local.Local(folder, {"pids": {}, "ports": {"dashboard": self.ports["dashboard:8265"]}})
        self.user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        (folder / "secrets").mkdir()
        self.secret("ray_token", secrets.token_hex(32))
        self.secret("postgres_password", secrets.token_hex(32))
        login = "mlflow_tracking_username = ipcnn\nmlflow_tracking_password"
        self.secret("mlflow_credentials", f"[mlflow]\n{login} = {secrets.token_hex(32)}\n")
        key = secrets.token_hex(32)
        self.secret("aws_credentials", f"[default]\naws_access_key_id = ipcnn\naws_secret_access_key = {key}\n")

    def secret(self, name: str, content: str) -> None:
        (self.folder / "secrets" / name).write_text(content)

    def here(self, text: str) -> str:
        """A text of the file as it is on this machine."""
        text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text).replace("$$", "$")
        head = f"127.0.0.2:{self.ports['head:6379']}"
        text = text.replace("head:6379", head).replace("--port=6379", f"--port={self.ports['head:6379']}")
        text = text.replace("--dashboard-port=8265", f"--dashboard-port={self.ports['dashboard:8265']}")
        for name, port in self.ports.items():
            for there in (name, f"0.0.0.0:{name.partition(':')[2]}"):
                text = text.replace(there, f"127.0.0.1:{port}")
        return text.replace("/run/secrets/", f"{self.folder}/secrets/").replace("/objects", f"{self.folder}/objects")

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        for secret in SERVICES[name]["secrets"]:
            if isinstance(secret, dict):
                target = home / secret["target"].removeprefix("/home/ray/")
                target.parent.mkdir(exist_ok=True)
                shutil.copy(self.folder / "secrets" / secret["source"], target)
        programs = [Path(sys.executable).parent, ROOT / "cluster", Path(RCLONE).parent, INITDB.parent]
        # What the image sets, for all that is started in it.
        image = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "IPCNN_CACHE": str(self.folder / "cache")}
        own = {key: os.environ[key] for key in ("PYTHONPATH", "OMP_NUM_THREADS") if key in os.environ}
        path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
        found = {**own, **image, "HOME": str(home), "PATH": path, "NO_PROXY": "127.0.0.1"}
        found |= {key: self.here(str(value)) for key, value in SERVICES[name].get("environment", {}).items()}
        mark = {self.local.MARK: f"{self.folder}:{name}"}  # by which local.py finds what it has to stop
        return {**found, **mark, "IPCNN_MLFLOW_PORT": str(self.ports["mlflow:5000"])}

    def start(self, name: str, command: list[str], ready: Callable[[], bool]) -> None:
        """Start a service and wait for it; one that ends is started again (`restart: unless-stopped`), as Ray's nodes
        do on a busy machine."""
        log, end, child = self.folder / f"{name}.log", time.monotonic() + START_S, None
        while not ready():
            assert time.monotonic() < end, log.read_text()[-3000:]
            if child is None or child.poll() is not None:
                env = self.environment(name)
                with log.open("ab") as out:
                    child = subprocess.Popen(
                        command, env=env, cwd=self.folder, stdout=out, stderr=out, start_new_session=True
                    )
                self.cluster.state["pids"][name] = child.pid
            time.sleep(0.5)

    def start_postgres(self) -> None:
        """Its command is the image's own; name, user and password are those of the file."""
        data, port = self.folder / "postgres-data", self.ports["postgres:5432"]
        data.mkdir()
        password = self.folder / "password"
        shutil.copy(self.folder / "secrets/postgres_password", password)
        if self.user:
            shutil.chown(data, "nobody", "nogroup")
            shutil.chown(password, "nobody", "nogroup")
        user, name = (SERVICES["postgres"]["environment"][key] for key in ("POSTGRES_USER", "POSTGRES_DB"))
        login = [f"--username={user}", "--auth=scram-sha-256", f"--pwfile={password}"]
        subprocess.run([INITDB, f"--pgdata={data}", *login], cwd="/", check=True, capture_output=True, **self.user)
        server = [str(INITDB.with_name("postgres")), "-D", str(data), "-p", str(port), "-c", "unix_socket_directories="]
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if self.user else []
        env = {**os.environ, "PGPASSWORD": password.read_text(), "PGHOST": "127.0.0.1", "PGPORT": str(port)}
        # The image makes the database before the container is healthy.
        health = self.here(SERVICES["postgres"]["healthcheck"]["test"][1]).removesuffix(f" --dbname {name}")

        def healthy() -> bool:
            return subprocess.run(["sh", "-c", f"{INITDB.parent}/{health}"], env=env).returncode == 0

        self.start("postgres", [*as_user, *server], healthy)
        subprocess.run([INITDB.with_name("createdb"), "-U", user, name], env=env, check=True)

    def start_all(self) -> None:
        self.start_postgres()
        s3, mlflow = SERVICES["s3"], SERVICES["mlflow"]
        port, url = self.ports["s3:7480"], f"http://127.0.0.1:{self.ports['mlflow:5000']}/health"
        words = [*s3["entrypoint"], *map(self.here, s3["command"])]
        self.start("s3", words, lambda: self.local.listens("127.0.0.1", port))
        self.start("mlflow", list(map(self.here, mlflow["command"])), lambda: self.local.answers(url))
        # A container has an address and all ports of its own.
        for name, address in {"head": "127.0.0.2", "worker": "127.0.0.3"}.items():
            (agent, client) = self.local.free_ports(2)
            own = [f"--node-ip-address={address}", f"--dashboard-agent-listen-port={agent}"]
            own += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.folder}/ray-{name}"]
            own += [f"--ray-client-server-port={client}"] if name == "head" else []
            command = [*shlex.split(self.here(SERVICES[name]["command"])), *own]
            self.start(name, command, lambda there=address, port=agent: self.node_is_up(there, port))

    def node_is_up(self, address: str, agent: int) -> bool:
        nodes = self.local.nodes_alive(self.cluster, (self.folder / "secrets/ray_token").read_text())
        return address in nodes.values() and self.local.listens(address, agent)

    def stop(self) -> None:
        for name in reversed(list(self.cluster.state["pids"])):
            self.local.stop(self.cluster, name, kill=False)


@pytest.fixture
def stack() -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="ipcnn-", dir="/tmp"))  # short enough for Ray's sockets
    folder.chmod(0o711)
    made = Stack(folder)
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not INITDB.is_file(), reason="needs PostgreSQL: apt-get install postgresql")
@pytest.mark.skipif(not RCLONE, reason="needs rclone: set IPCNN_TEST_RCLONE")
@pytest.mark.skipif(SERVER is None, reason="needs the extra `server`")
def test_its_commands_make_a_cluster_that_doctor_finds_right(stack):
    stack.start_all()
    dashboard = f"http://127.0.0.1:{stack.ports['dashboard:8265']}"
    env = {**stack.environment("head"), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "ipcnn_ray.cli.app", "doctor", "--address", dashboard, "--json"]
    done = subprocess.run(command, env=env, cwd=stack.folder, capture_output=True, text=True)
    checks = {(line["check"], line["state"]): line["fact"] for line in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, checks
    assert checks["nodes", "ok"].startswith("2 nodes with 2 cores")
    assert checks["authentication", "ok"] and checks["MLflow", "ok"] and checks["clocks", "ok"]
    assert checks["storage", "ok"].startswith("s3://ipcnn/runs: 1 MiB written, read back, compared")
    assert "does not know conditional requests" in checks["storage", "note"]
    titles = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    logs = "".join(file.read_text(errors="replace") for file in stack.folder.glob("*.log"))
    for file in (stack.folder / "secrets").iterdir():
        assert file.read_text().split()[-1] not in titles + logs, file.name
